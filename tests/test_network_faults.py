"""A cable that is out for seconds and one that is out for good, between two real nodes of one stage.

`tests/soak/test_network_faults.py` has all cases.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from network import Network, network  # noqa: F401  # the fixture `net`
from network_faults import carried_out, undisturbed

pytestmark = [pytest.mark.services, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def reference(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return undisturbed(tiny_run, tmp_path_factory.mktemp("undisturbed"), "ddp")


@pytest.mark.parametrize("case", ["cable_out_for_seconds", pytest.param("cable_out", marks=pytest.mark.soak)])
def test_figures_are_those_of_an_undisturbed_run(
    case: str, net: Network, tiny_run: Path, reference: Path, tmp_path: Path
) -> None:
    times = carried_out(case, net, tiny_run, tmp_path, reference)
    print({what: round(seconds, 1) for what, seconds in times.items()})
