"""The line of progress: what gives way in a narrow terminal, and what figures look like."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress
from running import rlhf

from rlhf.distributed import counted
from rlhf.tracking.console import columns, counter, shown


@pytest.mark.parametrize(("width", "bar"), [(80, False), (140, True)])
def test_in_a_narrow_terminal_the_bar_gives_way_to_times_and_figures(width: int, bar: bool) -> None:
    written = io.StringIO()
    console = Console(file=written, width=width, force_terminal=True, color_system=None)
    progress = Progress(*columns(width), console=console)
    figures = shown({"scores": 0.1234, "kl": 3.21, "entropy": 12.3})
    progress.add_task("ppo", total=150, completed=75, figures=figures)
    console.print(progress.get_renderable())
    line = written.getvalue()
    assert ("━" in line) is bar
    assert all(
        part in line for part in ("ppo", "75/150", "0:00:00", "left", "-:--:--", "scores 0.123  kl 3.21", "12.3")
    )


def test_rounding_is_no_kl() -> None:
    assert shown({"scores": 1e-7, "kl": -1.27e-07}) == "scores 1e-07  kl 0"
    assert shown({"objective/kl": 2e-3}) == "objective/kl 0.002"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_count_shows_on_terminals_and_is_gone_behind_the_end(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_INTERACTIVE", str(int(terminal)))
    monkeypatch.setenv("TTY_COMPATIBLE", str(int(terminal)))
    with counter("sampling", 12) as done:
        for _ in range(3):
            done(4)
    found = capfd.readouterr()
    assert ("12/12" in found.err) is terminal and not found.out
    if terminal:
        assert found.err.rpartition("12/12")[2].count("\x1b[2K")  # the line is erased


def test_processes_are_counted_in_words() -> None:
    assert [counted(1), counted(2)] == ["1 process", "2 processes"]


@pytest.mark.parametrize("group", ["study", "data"])
def test_a_group_of_commands_alone_shows_its_help_and_no_empty_error(group: str, tmp_path: Path) -> None:
    done = rlhf(group, folder=tmp_path)
    assert f"Usage: rlhf {group}" in done.stdout + done.stderr and "error" not in done.stderr.lower()
