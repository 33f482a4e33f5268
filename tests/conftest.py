"""Shared by all tests: an offline, quiet environment, and one tiny run of the whole chain."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

os.environ.update(HF_HUB_OFFLINE="1", OMP_WAIT_POLICY="passive", TOKENIZERS_PARALLELISM="false")
# Stages are compared bit for bit, and how two threads share a sum is not always the same on a busy machine.
os.environ["OMP_NUM_THREADS"] = "1"


# The same examples in every run: a rare one must not turn somebody else's change red.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")

# Files that take longest, in this order: a worker that had one of them last would work alone.
LONG = ("resume", "signals", "chain", "bad_input", "mutations", "two_processes", "optimum", "faults_of_two", "break_it")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, whichever worker gets them."""
    place = {f"test_{name}.py": number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONG)))


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of tests/recipes/tiny.yaml; tests must not change it."""
    return made_once(tmp_path_factory, "tiny")


@pytest.fixture(scope="session")
def tiny_run_of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of tests/recipes/tiny.yaml by two processes; tests must not change it."""
    return made_once(tmp_path_factory, "tiny-of-two", "parallelism.processes=2")


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, *overrides: str) -> Path:
    """A run of the tiny recipe that all worker processes of this session of tests share."""
    from running import TINY, rlhf  # loads torch, which the tests of torch-free modules must not pay for

    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, partial = shared / name, shared / f"{name}.partial"
    with FileLock(shared / f"{name}.lock"):
        if not folder.is_dir():
            partial.mkdir()
            done = rlhf("run", str(TINY), *overrides, folder=partial)
            assert done.returncode == 0, done.stdout + done.stderr
            partial.rename(folder)
    return folder / "runs" / "tiny"
