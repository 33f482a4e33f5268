"""Optimizer, gradients and weights partitioned by DeepSpeed: ZeRO-1, 2 and 3 (Rajbhandari et al. 2020)."""

from __future__ import annotations

import importlib
import io
import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from rlhf.distributed import device, rank, world_size
from rlhf.engine.optimizer import OptimizerOptions
from rlhf.engine.zero_section import refused
from rlhf.errors import ConfigError
from rlhf.partitions import OWNER
from rlhf.trunk import PolicyWithValueHead

TAG = "zero"  # DeepSpeed's checkpoints lie in a folder of this name below ours


class ZeroEngine:
    """See `rlhf.engine.Engine`.

    DeepSpeed averages over ranks, so losses are multiplied first, and it would divide by a number of micro-batches and
    count them, so it is told which is the last. settings: what `rlhf.engine.zero_options.to_deepspeed` gave.
    """

    def __init__(self, module: nn.Module, options: OptimizerOptions, settings: dict[str, Any]) -> None:
        deepspeed = load_deepspeed()
        self.module = module.train()
        self.options = options
        self.device = device()
        self.steps = 0  # optimizer steps, those that were skipped included
        self.has_gradient = False
        learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
        optimizer, _ = options.build(learning)
        # Vectors, of norms and biases, stay whole; DeepSpeed's own limit would keep all of a small model.
        vectors = max((parameter.numel() for parameter in module.parameters() if parameter.dim() < 2), default=0)
        settings["zero_optimization"].setdefault("stage3_param_persistence_threshold", vectors)
        try:
            self.engine, *_ = deepspeed.initialize(
                model=module, optimizer=optimizer, model_parameters=learning, config=settings
            )
        except (AssertionError, ValidationError) as error:  # DeepSpeed's own check of its settings
            wrong = refused(settings["zero_optimization"])  # of other sections it says less
            wrong = wrong or [f"{' '.join(str(error).split())}; mend the file"]
            raise ConfigError(*(f"parallelism.deepspeed: {each}" for each in wrong)) from error
        self.stage = int(settings["zero_optimization"]["stage"])
        self.name = type(self.engine).__name__
        if self.engine.zero_optimization_stage() != self.stage:
            found = self.engine.zero_optimization_stage()
            raise ConfigError(f"parallelism.strategy=zero{self.stage}: DeepSpeed runs ZeRO-{found}; use strategy=fsdp")
        self.files = Files(self.engine)
        if self.stage == 3:
            self._own(module.policy if isinstance(module, PolicyWithValueHead) else module)

    def _own(self, sampled: nn.Module) -> None:
        """Let the module that samples find what gathers its weights."""
        setattr(sampled, OWNER, self.engine.optimizer.parameter_offload)

    def __call__(self, **inputs: Any) -> Any:
        """The forward pass of training, by autocast where that is wanted."""
        return self.engine(**inputs)

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """ZeRO-1 reduces gradients with the last micro-batch, ZeRO-2 and 3 with each; DeepSpeed's own count is off."""
        self.engine.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradient, undoing DeepSpeed's average over ranks."""
        self.engine.backward(loss * world_size(), scale_wrt_gas=False)
        self.has_gradient = True

    def norm(self) -> float:
        """The gradient's global norm before clipping."""
        if not self.has_gradient:
            return 0.0
        inner = self.engine.optimizer
        if self.stage < 3:
            return finite(inner.scaled_global_norm())
        from deepspeed.runtime.utils import combine_grad_norm_groups

        return finite(combine_grad_norm_groups(inner._get_norm_groups()))

    def step(self) -> float:
        """Clip to the global norm and update; a gradient that is not finite is dropped on every rank alike."""
        self._set_rate()
        self.engine.step()
        self.has_gradient = False
        self._advance(1)
        return finite(self.engine.get_global_grad_norm())

    def skip(self, steps: int = 1) -> None:
        """Clear gradients and advance the schedule, without an update."""
        self._drop()
        self._advance(steps)

    def rest(self) -> None:
        """Nothing: DeepSpeed has its own offloading."""

    def save(self, directory: Path) -> None:
        """Every rank writes its part. Raises OSError on each that cannot."""
        state = {"steps": self.steps}
        self.engine.save_checkpoint(
            str(directory), tag=TAG, client_state=state, save_latest=False, exclude_frozen_parameters=True
        )
        self.files.require_written()

    def snapshot(self) -> None:
        """DeepSpeed writes the state that it trains, and no copy of it."""
        return None

    def load(self, directory: Path) -> None:
        """Every rank reads what it wrote: as many ranks, and the same strategy, as `stages.context` has made sure."""
        # What lies frozen below adapters was not written.
        complete = all(parameter.requires_grad for parameter in self.module.parameters())
        _, state = self.engine.load_checkpoint(
            str(directory), tag=TAG, load_module_strict=complete, load_lr_scheduler_states=False
        )
        if state is None:
            raise OSError(f"{directory}: DeepSpeed finds no checkpoint there")
        self.steps = int(state["steps"])

    def _set_rate(self) -> None:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = self.options.learning_rate * self.options.share(self.steps)

    def _advance(self, steps: int) -> None:
        self.steps += steps

    def _drop(self) -> None:
        """Forget gradients, as DeepSpeed does where they overflow; it has no public way to."""
        inner, self.has_gradient = self.engine.optimizer, False
        inner.zero_grad()
        if self.stage == 3:
            inner._overflow_clean_up(1.0)
            return
        inner.micro_step_id = -1
        inner._release_preflattened_grad_buffers()
        if inner.cpu_offload:
            inner._offload_accumulated_param_ids = set()
            inner.reset_cpu_buffers()
            return
        for part in inner.averaged_gradients:
            inner.averaged_gradients[part] = inner.all_grad_tensors[part] = None


class Files:
    """What an engine of DeepSpeed writes. A rank that cannot write goes on, for it owes the others its calls."""

    def __init__(self, engine: Any) -> None:
        self.unwritten: str | None = None  # why a file of a checkpoint could not be written
        files = engine.checkpoint_engine
        files.save, files.makedirs = self._or_remember(files.save), self._or_remember(files.makedirs)
        engine._copy_recovery_script = lambda _: None  # another file to fail on, of the main rank alone

    def require_written(self) -> None:
        """Raise OSError where a file of this rank could not be written since the last call."""
        cause, self.unwritten = self.unwritten, None
        if cause is not None:
            raise OSError(cause)

    def _or_remember(self, write: Callable[..., Any]) -> Callable[..., Any]:
        def careful(*arguments: Any, **named: Any) -> Any:
            try:
                return write(*arguments, **named)
            except (OSError, RuntimeError) as error:  # torch does not raise OSError
                self.unwritten = self.unwritten or f"rank {rank()}: {error}"
                return None

        return careful


def finite(norm: Any) -> float:
    """A norm, or infinity where DeepSpeed gives -1 for one that is not finite."""
    return float(norm) if math.isfinite(norm) and norm >= 0 else math.inf


def load_deepspeed() -> Any:
    """DeepSpeed, quiet, on this process's device."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")  # it asks for one in a single process too
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # On a CPU it would compile, in minutes, an all-reduce through shared memory; killed meanwhile, it leaves a lock for
    # which every later run waits for ever.
    backend: Any = importlib.import_module("deepspeed.comm.torch")  # as an attribute, that name is torch itself
    backend.build_shm_op = lambda: None
    return deepspeed


def load_zero_weights(module: nn.Module, directory: Path) -> None:
    """Give a whole model, in this process alone, the weights that learned from what the engine of one like it wrote."""
    load_deepspeed()
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with redirect_stdout(io.StringIO()):  # it prints what it reads
        weights = get_fp32_state_dict_from_zero_checkpoint(str(directory), tag=TAG, exclude_frozen_parameters=True)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(weights[name])
