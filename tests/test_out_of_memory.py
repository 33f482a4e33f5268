"""A stage that finds no memory says so in a line, with what takes less, and is not tried again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from running import TINY

from stages import command
from stages.lineage import STAGES


def on_gpu(*_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has less")


def in_python(*_: object) -> None:
    raise MemoryError


def on_cpu(*_: object) -> None:
    torch.empty(2**50)


KINDS = {
    on_gpu: "CUDA out of memory. Tried to allocate 2.00 GiB); lower ",
    in_python: "the machine has none left); lower ",
    on_cpu: "DefaultCPUAllocator: can't allocate memory",
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("full", KINDS)
def test_it_is_a_line(
    full: Callable[..., None],
    stage: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "adopt_missing", full)
    monkeypatch.setattr("sys.argv", [stage, "--recipe", str(TINY), "--run-dir", str(tmp_path)])
    monkeypatch.setattr(command.Signals, "install", lambda self: None)
    with pytest.raises(SystemExit) as left:
        command.run_stage(stage, full)
    said = capsys.readouterr().err
    assert left.value.code == 2
    assert said.startswith(f"error: {stage}: out of memory (") and said.count("\n") == 1
    assert KINDS[full] in said and f"; {command.LOWER[stage]}" in said


def test_another_error_is_none_of_them() -> None:
    assert not command.found_no_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
