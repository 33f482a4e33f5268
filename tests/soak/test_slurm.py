"""Each thing that can happen to a job of Slurm, on a real cluster; `tests/test_slurm.py` has one of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import Cluster, slurm_cluster
from slurm_faults import CASES, carried_out
from slurm_runs import undisturbed

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as made:
        yield made


@pytest.fixture(scope="module")
def reference(tiny_run_of_two: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return undisturbed(tiny_run_of_two, tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize("case", CASES)
def test_comes_back_with_undisturbed_figures(
    case: str, cluster: Cluster, tiny_run_of_two: Path, reference: Path, tmp_path: Path
) -> None:
    times = carried_out(case, cluster, tiny_run_of_two, tmp_path, reference)
    print(case, {what: round(seconds, 1) for what, seconds in times.items()})
