"""Measures work side by side: processes that take turns on the same load, so that a ratio is of one hour."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

from launch.local import stage_environment
from rlhf.errors import ConfigError
from stages.bench.turns import MARK

END_SECONDS = 5.0  # until a process that was told to end is made to


class Side:
    """A process that makes an update when told to."""

    def __init__(
        self, name: str, module: str, arguments: list[str], environment: Mapping[str, str], python: str = sys.executable
    ) -> None:
        self.name = name
        self.updates: list[dict[str, Any]] = []
        self.facts: dict[str, Any] = {}
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115  # a pipe that nobody reads would fill up
        self.process = subprocess.Popen(
            [python, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            text=True,
            env=environment,
        )

    def __enter__(self) -> Side:
        """Wait until all is loaded."""
        try:
            self.facts = self._line()["ready"]
        except BaseException:
            self.close()
            raise
        return self

    def update(self) -> dict[str, Any]:
        """One update."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, and its output says why
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        self.updates.append(self._line())
        return self.updates[-1]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """See `close`."""
        self.close()

    def close(self) -> None:
        """End the process, with the less force the better: it may have processes of its own."""
        for force in (None, self.process.terminate, self.process.kill):
            if force:
                force()
            with suppress(subprocess.TimeoutExpired):
                self.process.communicate(timeout=END_SECONDS)  # closes its input, which tells it to end
                break
        self.said.close()

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(MARK):
                found: dict[str, Any] = json.loads(line.removeprefix(MARK))
                return found
        self.said.seek(0)
        said = self.said.read().strip().splitlines()
        why = said[-1] if said else "killed: out of memory?"
        if (mark := f"{ConfigError.__name__}: ") in why:
            raise ConfigError(why.rpartition(mark)[2])
        remedy = "a smaller --batch, --micro or --size needs less" if "memory" in why else "mend what it names"
        raise ConfigError(f"bench: {self.name} has ended ({why}); {remedy}")

    def figures(self, skipped: int) -> dict[str, Any]:
        """Medians over the updates behind the first ones, which warm up."""
        kept = self.updates[skipped:]
        names = {name for update in kept for name in update["phases"]}
        others = kept[0].keys() - {"seconds", "phases", "peak_memory_bytes"}
        return {
            "seconds_per_update": median(update["seconds"] for update in kept),
            "phases": {name: median(update["phases"].get(name, 0.0) for update in kept) for name in sorted(names)},
            "peak_memory_bytes": max(update["peak_memory_bytes"] for update in kept),
            **{name: median(update[name] for update in kept) for name in sorted(others)},
        }


@dataclass(frozen=True)
class Contestant:
    """One side."""

    name: str
    module: str
    arguments: Sequence[str] = ()  # behind load, dtype and device
    path: Path | None = None  # of packages that come before all others
    python: str | None = None  # of an environment of its own, which lends it nothing of ours but the bench


@dataclass(frozen=True)
class Bench:
    """What is measured, and how often."""

    load: Mapping[str, Any]  # of stages/bench/load.py
    dtype: str
    device: str
    updates: int  # that count
    contestants: Sequence[Contestant]  # ours, and who is compared with it if anybody is
    skipped: int = 1

    def run(self, progress: Callable[[int, int], None]) -> dict[str, Any]:
        """Measure. Raises ConfigError where a side cannot run, or where the two do not have the same weights."""
        gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]  # TRL wants no more in one process
        environment = {**stage_environment(1), "OMP_NUM_THREADS": str(self.load["threads"])}
        environment["CUDA_VISIBLE_DEVICES"] = gpu if self.device == "cuda" else ""
        # In images that set it, products in float32 would be TF32's, which training here never takes.
        environment.pop("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", None)
        root = str(Path(__file__).parents[1])
        ceilings = self._ceilings(environment)
        common = [json.dumps(self.load), self.dtype, self.device]
        total = (self.updates + self.skipped) * len(self.contestants)
        with ExitStack() as stack:
            sides = []
            # Where trainers want a directory; a side is killed at the end, and would leave it behind.
            environment["TMPDIR"] = stack.enter_context(tempfile.TemporaryDirectory())
            for each in self.contestants:
                first = [] if each.path is None else [str(each.path)]
                path = {"PYTHONPATH": os.pathsep.join([*first, root])} if each.path or each.python else {}
                arguments = [*common, *each.arguments]
                side = Side(each.name, each.module, arguments, {**environment, **path}, each.python or sys.executable)
                sides.append(stack.enter_context(side))
            sums = [side.facts["checksum"] for side in sides]
            if not all(math.isclose(each, sums[0], rel_tol=1e-9) for each in sums):  # in whatever order it was added
                raise ConfigError("bench: the two sides start from other weights; reinstall torch and transformers")
            for turn in range(self.updates + self.skipped):
                for place_in_turn, side in enumerate(sides if turn % 2 else reversed(sides)):
                    side.update()
                    progress(turn * len(sides) + place_in_turn + 1, total)
            return self._result(sides, ceilings)

    def _ceilings(self, environment: Mapping[str, str]) -> dict[str, float]:
        """What the machine can do."""
        command = [sys.executable, "-m", "stages.bench.ceilings", self.dtype, self.device, str(self.load["threads"])]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            why = (done.stderr.strip().splitlines() or ["killed"])[-1]
            place = f"--device={self.device} --dtype={self.dtype}"
            raise ConfigError(f"{place}: cannot be measured here ({why}); use --device cpu --dtype float32")
        found: dict[str, float] = json.loads(done.stdout)
        return found

    def _result(self, sides: list[Side], ceilings: Mapping[str, float]) -> dict[str, Any]:
        ours = sides[0].figures(self.skipped)
        flops: Mapping[str, float] = sides[0].facts["flops"]
        seconds = ours["seconds_per_update"]
        mfu = {name: flops[name] / taken for name, taken in ours["phases"].items() if taken and name in flops}
        ceiling = ceilings["ceiling_gflops"] * 1e9
        result = {
            **ceilings,
            **ours,
            "tokens_per_second": sides[0].facts["tokens"] / seconds,
            "mfu": sum(flops.values()) / seconds / ceiling,
            "mfu_phases": {name: rate / ceiling for name, rate in mfu.items()},
            "load": {**self.load, "dtype": self.dtype, "device": self.device},
            "updates": self.updates,
        }
        if len(sides) > 1:
            theirs = sides[1].figures(self.skipped)
            result["against"] = {**theirs, "name": sides[1].name, "version": sides[1].facts["version"]}
            result["ratio"] = theirs["seconds_per_update"] / seconds
            result["memory_ratio"] = ours["peak_memory_bytes"] / theirs["peak_memory_bytes"]
        return result
