"""A GPU that is none: tensors of the CPU that say they are on cuda:0, and refuse what a GPU would refuse.

    python tests/imitated_gpu.py tests/gpu/check.py --size tiny
    python tests/imitated_gpu.py -m stages.bench.ours '{...}' bfloat16

What is moved to "cuda" is a copy in the CPU's memory with a mark. Whoever asks is told `cuda:0`, so that all code takes
the way it takes on a GPU; an operation of a marked and an unmarked tensor is the error that it is there, and what waits
for the device is counted. Not imitated: kernels, their roundings and dtypes, streams, what memory is taken at a peak.
"""

from __future__ import annotations

import importlib
import os
import runpy
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from imitated_cuda import Graph, patches
from imitated_memory import CUDA, MARKS, PINNED, Crossing, mark, on_gpu, storage, tensors
from tape import FORBIDDEN
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
# Operations that may have operands on both sides.
BOTH = {"_to_copy", "copy_", "_copy_from", "set_", "_foreach_copy_"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
# Numbers on the CPU (tensors without dimensions) may meet a GPU's tensors in what is computed element by element alone.
STRICT = {"cat", "stack", "gather", "index_select", "embedding", "scatter", "scatter_", "_fused_adamw_", "_fused_adam_"}
# What looks at torch.cuda while it is imported.
LIBRARIES = ["torch.distributed.fsdp", "transformers", "trl.trainer.sft_trainer", "trl.trainer.reward_trainer", "peft"]


class OnTwoDevices(RuntimeError):
    """Tensors on two devices in one operation."""


def says_cuda(given: Any) -> bool:
    """Whether an argument is the imitated device."""
    return (isinstance(given, str) and given.startswith("cuda")) or (
        isinstance(given, torch.device) and given.type == "cuda"
    )


def says_device(given: Any) -> bool:
    """Whether an argument is a device."""
    return isinstance(given, torch.device) or (
        isinstance(given, str) and given.split(":")[0] in ("cpu", "cuda", "meta")
    )


class Waits:
    """Who has waited for the device: an operation, and the places of our code that called it, the innermost first.

    What asks for an answer waits, and so does a copy in either direction that does not say `non_blocking`.
    """

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, tuple[str, ...]]] = Counter()

    def add(self, name: str) -> None:
        """One more, for who is calling now."""
        called = [each for each in reversed(traceback.extract_stack()) if each.filename.startswith(f"{ROOT}/")]
        ours = [each for each in called if not any(part in each.filename for part in (".venv/", "tests/imitated_"))]
        self.counts[name, tuple(f"{Path(each.filename).relative_to(ROOT)}:{each.lineno}" for each in ours)] += 1

    def __str__(self) -> str:
        """For people, the most frequent first."""
        return "\n".join(f"{n:7d} {name} {' < '.join(places[:3])}" for (name, places), n in self.counts.most_common())


class State:
    """What both modes know."""

    def __init__(self) -> None:
        self.made = False  # whether what an operation makes from nothing is on the GPU
        self.waits = Waits()


class Operations(TorchDispatchMode):
    """Looks at what each operation is given, and marks what it makes."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self.state = state

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(kind.__name__ == "DTensor" for kind in types):  # asks again for each of its parts
            return NotImplemented
        name, known = function.overloadpacket.__name__, MARKS.known
        given = [(each, held) for each in tensors((args, kwargs)) if (held := storage(each)) is not None]
        before = {held._cdata for _, held in given}
        here = not known.keys().isdisjoint(before)
        if here:
            mark(kwargs.get("out"))  # where DDP writes to, which it has made unseen
            operands = [each for each, _ in given]
            self._check(function, name, args, operands)
            self._count(name, args, kwargs, operands)
        found = function(*args, **kwargs)
        for each in () if name == "set_" else tensors(found):
            if (held := storage(each)) is not None and held._cdata not in before:
                MARKS.put(held, here if given else self.state.made)
        return found

    def _check(self, function: Any, name: str, args: Any, given: list[Tensor]) -> None:
        if name in BOTH or function.namespace in ("c10d", "_c10d_functional"):
            return
        if name in INDEXED and on_gpu(args[0]):  # by indices that may be anywhere
            given = tensors((args[0], args[2:]))
        if any(not on_gpu(each) and (each.dim() or name in STRICT) for each in given):
            shapes = ", ".join(f"{tuple(each.shape)} on {'cuda' if on_gpu(each) else 'cpu'}" for each in given)
            raise OnTwoDevices(f"Expected all tensors to be on the same device: {function} of {shapes}")

    def _count(self, name: str, args: Any, kwargs: Any, given: list[Tensor]) -> None:
        by_mask = name in INDEXED and any(each.dtype == torch.bool for each in tensors(args[1]))
        crossing = name == "copy_" and not all(map(on_gpu, given)) and not kwargs.get("non_blocking", False)
        if name in FORBIDDEN or by_mask or crossing:
            self.state.waits.add(name)


GETTERS: dict[Any, Callable[[Any, Any], Any]] = {
    torch.Tensor.device.__get__: lambda x, real: CUDA if on_gpu(x) else real,  # type: ignore[attr-defined]
    torch.Tensor.is_cuda.__get__: lambda x, real: on_gpu(x),  # type: ignore[attr-defined]
    torch.Tensor.is_cpu.__get__: lambda x, real: real and not on_gpu(x),  # type: ignore[attr-defined]
    torch.Tensor.get_device: lambda x, real: CUDA.index if on_gpu(x) else real,
}
HOSTS = {torch.Tensor.numpy, torch.Tensor.__array__}


class Functions(TorchFunctionMode):
    """Says where tensors are, and takes "cuda" for what it is."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self.state = state

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function in GETTERS:
            return GETTERS[function](args[0], function(*args, **kwargs))
        if function in HOSTS and on_gpu(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        if function is torch.Tensor.tolist and args[0].dim() and on_gpu(args[0]):  # a number is asked for as any is
            self.state.waits.add("tolist")
        if function is torch.Tensor.is_pinned:
            return (held := storage(args[0])) is not None and held._cdata in PINNED.known
        if function is torch.Tensor.pin_memory:
            return self._pinned(args[0])
        if kwargs.pop("pin_memory", False):
            return self._pinned(function(*args, **kwargs))
        if function in (torch.Tensor.to, torch.Tensor.cuda, torch.Tensor.cpu):
            return self._moved(function, args, kwargs)
        if getattr(function, "__name__", "") == "_parse_to":  # which is about arguments alone
            return function(*args, **kwargs)
        before = self.state.made
        given = tensors((args, kwargs))
        asked = kwargs.get("device")
        here = says_cuda(asked) if asked is not None else any(on_gpu(each) for each in given)
        if asked is not None and (says_cuda(asked) or isinstance(asked, int)):
            kwargs["device"] = CPU
            here = True
        args = [CPU if isinstance(each, torch.device) and says_cuda(each) else each for each in args]
        self.state.made = here
        try:
            with MARKS.hidden() if function is torch.Tensor.__deepcopy__ else nullcontext():
                found = function(*args, **kwargs)
            if function is torch.Tensor.__deepcopy__:
                return mark(found, here)
            if asked is not None and isinstance(found, Tensor) and on_gpu(found) != here:
                found = Crossing.apply(found, here)
            return found
        finally:
            self.state.made = before

    def _pinned(self, x: Tensor) -> Tensor:
        """A copy that cannot be paged out."""
        if on_gpu(x):
            raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
        copy = mark(x.clone(), False)
        PINNED.put(storage(copy), True)
        return copy  # type: ignore[no-any-return]

    def _moved(self, function: Any, args: Any, kwargs: Any) -> Any:
        """`to`, `cuda` and `cpu`."""
        x, others = args[0], list(args[1:])
        if function is not torch.Tensor.to:
            others, kwargs = [CUDA if function is torch.Tensor.cuda else CPU], {}
        there = on_gpu(x)
        for each in (*others, kwargs.get("device"), kwargs.get("other")):
            if says_device(each) and torch.device(each).type == "meta":
                return function(*args, **kwargs)
            if says_device(each) or type(each) is int:  # a number is a GPU's
                there = not says_device(each) or says_cuda(each)
            elif isinstance(each, Tensor):
                there = on_gpu(each)
        others = [CPU if says_device(each) or type(each) is int else each for each in others]
        if kwargs.get("device") is not None:
            kwargs["device"] = CPU
        if storage(x) is not None and there != on_gpu(x):
            if not kwargs.get("non_blocking", True in others):  # torch waits for all that the device has to do
                self.state.waits.add("to the GPU" if there else "to the CPU")
            x = Crossing.apply(x, there)
        return torch.Tensor.to(x, *others, **kwargs)


@contextmanager
def imitated() -> Iterator[State]:
    """Inside, there is a GPU, in this thread and in those that it starts."""
    for name in LIBRARIES:
        importlib.import_module(name)
    state, run, backward = State(), threading.Thread.run, torch.autograd._engine_run_backward
    functions = Functions(state)

    def with_functions(*args: Any, **kwargs: Any) -> Any:
        with functions:  # what a backward calls asks as well
            return backward(*args, **kwargs)

    def with_modes(self: Any) -> None:
        with Operations(state), Functions(state):
            run(self)

    with ExitStack() as stack:
        for each in patches():
            stack.enter_context(each)
        stack.enter_context(mock.patch.object(threading.Thread, "run", with_modes))
        stack.enter_context(mock.patch.object(torch.autograd, "_engine_run_backward", with_functions))
        stack.enter_context(Operations(state))
        stack.enter_context(functions)
        stack.callback(lambda: (MARKS.known.clear(), PINNED.known.clear()))
        yield state


def main() -> None:
    """Run a script or a module on the imitated GPU, and print what waited for it."""
    is_module = sys.argv[1:2] == ["-m"]
    given = sys.argv[1 + is_module :]
    if not given or given[0].startswith("-"):
        sys.exit("usage: python tests/imitated_gpu.py SCRIPT | -m MODULE, and its arguments")
    if not is_module and not Path(given[0]).is_file():
        sys.exit(f"{given[0]}: there is no such script; -m MODULE runs a module")
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    sys.argv = given
    os.environ["CUDA_VISIBLE_DEVICES"] = "0,1,2,3"
    with imitated() as state:
        try:
            if is_module:
                runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(sys.argv[0], run_name="__main__")
        finally:
            print(state.waits, file=sys.stderr)
            if Graph.replays:
                print(f"{Graph.replays:7d} replays of graphs", file=sys.stderr)


if __name__ == "__main__":
    main()
