"""Two processes joined as under torchrun, which play what a test asks of them, and end even if they wait for ever."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import multiprocessing

from launch.local import Meeting, free_port, rank_environment
from rlhf.distributed import process_group

Play = Callable[[Path, list[str]], Any]
MINUTES = 3.0  # that one rank waits for the other


@contextmanager
def two_ranks(play: Play, folder: Path, cases: list[str], seconds: float, start: str = "spawn") -> Iterator[list[Any]]:
    """What each rank's `play(folder, cases)` returns, there once the block has ended; fails after so many seconds."""
    meeting, outcomes = Meeting(port=free_port()), list[Any]()
    processes = multiprocessing.start_processes(
        _one_of_two, args=(meeting, play, folder, cases), nprocs=2, join=False, start_method=start
    )
    try:
        yield outcomes
        deadline = time.monotonic() + seconds
        while not processes.join(timeout=1.0):
            if time.monotonic() > deadline:
                pytest.fail(f"the two processes did not end within {seconds:.0f} seconds: they wait for each other")
    finally:
        for process in processes.processes:
            process.kill()
    outcomes.extend(torch.load(folder / f"rank{i}.pt", weights_only=False) for i in range(2))


def _one_of_two(index: int, meeting: Meeting, play: Play, folder: Path, cases: list[str]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of a fork; a new process has no other
    os.environ.update(rank_environment(index, 2, meeting))
    with process_group(timeout_minutes=MINUTES):
        torch.save(play(folder, cases), folder / f"rank{index}.pt")


def chosen(request: pytest.FixtureRequest, parameter: str) -> set[Any]:
    """The values of a parameter in the tests that run in this session."""
    asked = (getattr(item, "callspec", None) for item in request.session.items)
    return {spec.params.get(parameter) for spec in asked if spec}
