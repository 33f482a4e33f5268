"""Real data that lie beside the repository: in ../shared/data, or where RLHF_TEST_DATA says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("RLHF_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def require_data() -> None:
    """Skip where they are not, but for continuous integration, which has them."""
    if not DATA.is_dir() and os.environ.get("CI") != "true":
        pytest.skip(f"no data in {DATA}; set RLHF_TEST_DATA")


@pytest.fixture(scope="module", name="real_data")
def published_data() -> str:
    """The directory."""
    require_data()
    return str(DATA)
