"""Shared by all tests: an offline, quiet environment, and one tiny run of the whole chain."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.update(HF_HUB_OFFLINE="1", OMP_WAIT_POLICY="passive", TOKENIZERS_PARALLELISM="false")
# Stages are compared bit for bit, and how two threads share a sum is not always the same on a busy machine.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of tests/recipes/tiny.yaml; tests must not change it."""
    from running import TINY, rlhf  # loads torch, which the tests of torch-free modules must not pay for

    folder = tmp_path_factory.mktemp("tiny")
    done = rlhf("run", str(TINY), folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs" / "tiny"


@pytest.fixture(scope="session")
def tiny_run_of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of tests/recipes/tiny.yaml by two processes; tests must not change it."""
    from running import TINY, rlhf

    folder = tmp_path_factory.mktemp("tiny-of-two")
    done = rlhf("run", str(TINY), "parallelism.processes=2", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs" / "tiny"
