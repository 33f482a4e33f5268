"""A stage that finds no memory says so in a line, with what takes less, and is not tried again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from running import TINY

from stages import command
from stages.lineage import STAGES


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, MemoryError])
def test_it_is_a_line(
    kind: type[Exception],
    stage: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object) -> None:
        raise kind("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has less")

    monkeypatch.setattr(command, "adopt_missing", full)
    monkeypatch.setattr("sys.argv", [stage, "--recipe", str(TINY), "--run-dir", str(tmp_path)])
    monkeypatch.setattr(command.Signals, "install", lambda self: None)
    with pytest.raises(SystemExit) as left:
        command.run_stage(stage, full)
    said = capsys.readouterr().err
    assert left.value.code == 2
    assert (
        said.startswith(f"error: {stage}: out of memory (CUDA out of memory. Tried to allocate 2.00 GiB); lower ")
        and said.count("\n") == 1
    )
