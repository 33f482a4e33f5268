"""`rlhf label up` without a Label Studio: what it refuses before it would need one."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from launch.cli import app
from rlhf.errors import InUseError
from rlhf.store.unfinished import hold


def test_the_directory_of_a_server_has_one_at_a_time(tmp_path: Path) -> None:
    """The second draws no secrets, and makes no environment."""
    with hold(tmp_path):
        done = CliRunner().invoke(app, ["label", "up", "--directory", str(tmp_path)])
    assert isinstance(done.exception, InUseError)
    told = f"{tmp_path}: in use by another rlhf process; wait or give another --directory"
    assert done.exception.problems == (told,) and [file.name for file in tmp_path.iterdir()] == [".lock"]
