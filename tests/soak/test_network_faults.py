"""All that can happen to two nodes and the network between them: `make soak ARGS="-k network -s"` prints the times."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from network import Network, network  # noqa: F401  # the fixture `net`
from network_faults import CASES, Times, carried_out, undisturbed

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def references(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Undisturbed runs, by strategy."""
    return {each: undisturbed(tiny_run, tmp_path_factory.mktemp(each), each) for each in ("ddp", "fsdp")}


@pytest.fixture(scope="module")
def table() -> Iterator[dict[str, Times]]:
    """The times of all cases, printed at the end."""
    measured: dict[str, Times] = {}
    yield measured
    print("\n\n| case | seconds from the fault |\n| --- | --- |")
    for case, times in measured.items():
        print(f"| {case} | {', '.join(f'{what} {seconds:.1f}' for what, seconds in times.items())} |")


@pytest.mark.parametrize(("case", "strategy"), [*((case, "ddp") for case in CASES), ("worker_killed", "fsdp")])
def test_figures_are_those_of_an_undisturbed_run(
    case: str,
    strategy: str,
    net: Network,
    tiny_run: Path,
    references: dict[str, Path],
    tmp_path: Path,
    table: dict[str, Times],
) -> None:
    times = carried_out(case, net, tiny_run, tmp_path, references[strategy], strategy)
    table[f"{case}, {strategy}"] = times
