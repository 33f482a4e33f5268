"""The picture of a run: what is read, what is drawn, when it is written, and that nothing else suffers from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from running import rlhf

from launch.commands.curves import draw_behind_summary
from rlhf.analysis import curves
from rlhf.analysis.curves import PANELS, draw, moving_mean, picture
from rlhf.analysis.metrics import Figures, read_metrics, read_run
from rlhf.errors import ArtifactError

PPO = [{"step": n, "time": 0.0, "objective/scores": n / 10, "objective/kl": n / 5} for n in range(1, 31)]
HELD_OUT = [{"step": n, "eval/scores": n / 9, "eval/scores_stderr": 0.1, "eval/judge": 0.5} for n in (0, 10, 20)]


def write(run: Path, stage: str, lines: Iterable[dict[str, Any]], end: str = "") -> Path:
    path = run / stage / "metrics.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + end)
    return path


def complete(run: Path, stage: str, fingerprint: str, inputs: dict[str, str], **results: Any) -> None:
    manifest = {"format": 1, "fingerprint": fingerprint, "inputs": inputs, "results": results}
    (run / stage / "manifest.json").write_text(json.dumps(manifest | {"checksums": {}, "environment": {}}))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """PPO in progress, behind a complete SFT."""
    write(
        tmp_path / "mine",
        "sft",
        [{"step": 1, "loss/sft": 2.0}, {"step": 2, "loss/sft": None}, {"step": 2, "eval/loss": 1.5}],
    )
    complete(tmp_path / "mine", "sft", "a", {})
    write(tmp_path / "mine", "ppo", PPO + HELD_OUT)
    return tmp_path / "mine"


def drawn(run: Path) -> dict[str, Any]:
    """The panels of a run's picture by title."""
    return {ax.get_title(loc="left"): ax for ax in picture(read_run(run), run.name).axes}


def test_the_end_of_a_file_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path, "ppo", PPO, end='{"step": 31, "objective/sc')
    assert max(read_metrics(path)["objective/scores"]) == 30


def test_a_resumed_step_counts_once_and_as_it_was_made_last(tmp_path: Path) -> None:
    again = [{"step": n, "objective/scores": -1.0} for n in range(21, 31)]
    steps, values = Figures(read_metrics(write(tmp_path, "ppo", PPO + again))).series("objective/scores")
    assert steps == list(range(1, 31))
    assert values == [n / 10 for n in range(1, 21)] + [-1.0] * 10


@pytest.mark.parametrize("line", ["{", "[]", "7", '{"objective/kl": 1}', '{"step": null}'])
def test_a_line_that_no_stage_wrote_is_named(tmp_path: Path, line: str) -> None:
    path = write(tmp_path, "ppo", PPO[:2], end=f"{line}\n")
    with pytest.raises(ArtifactError, match=r"metrics.jsonl, line 3: no figures of a step"):
        read_metrics(path)


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_nothing_to_draw_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="no such directory|no figures yet"):
        draw(tmp_path / name, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_results_of_another_input_are_left_out(run: Path) -> None:
    """As after a changed SFT: the old PPO is of another policy."""
    complete(run, "ppo", "c", {"sft": "a"})
    assert set(read_run(run)) == {"sft", "ppo"}
    (run / "sft" / ".partial").mkdir()
    assert set(read_run(run)) == {"sft"}
    (run / "sft" / ".partial").rmdir()
    complete(run, "sft", "b", {})
    assert set(read_run(run)) == {"sft"}


def test_panels_show_what_was_measured(run: Path) -> None:
    panels = drawn(run)
    assert list(panels) == ["SFT loss", "PPO score", "PPO judge", "PPO KL to SFT"]
    each_step, mean, held_out = panels["PPO score"].lines
    assert each_step.get_xydata().tolist() == [[n, n / 10] for n in range(1, 31)]
    assert mean.get_ydata()[14] == pytest.approx(1.5)
    assert held_out.get_xydata().tolist() == [[n, n / 9] for n in (0, 10, 20)]
    (band,) = panels["PPO score"].collections
    low, high = band.get_paths()[0].vertices[:, 1].min(), band.get_paths()[0].vertices[:, 1].max()
    assert (low, high) == pytest.approx((-0.196, 20 / 9 + 0.196), abs=1e-3)


def test_the_evaluation_has_a_panel(run: Path) -> None:
    results = {"judge": "data.toy:gold", "gold_before": 0.4, "gold_after": 0.8, "win_rate": 0.9}
    write(run, "evaluate", [{"step": 0, "evaluate/gold_before": 0.4}])
    complete(run, "evaluate", "e", {"sft": "a"}, **results)
    panel = drawn(run)["Final evaluation"]
    assert panel.lines[0].get_ydata().tolist() == [0.4, 0.8]
    assert {text.get_text() for text in panel.texts} == {"0.400", "0.800", "win rate 0.900"}


def test_a_judge_that_is_no_gold_has_a_panel_too(run: Path) -> None:
    results = {"judge": "reward model", "judged_before": -0.5, "judged_after": 1.5, "win_rate": 0.9}
    write(run, "evaluate", [{"step": 0, "evaluate/judged_before": -0.5}])
    complete(run, "evaluate", "e", {"sft": "a"}, **results)
    assert drawn(run)["Final evaluation"].lines[0].get_ydata().tolist() == [-0.5, 1.5]


def test_the_policy_that_was_kept_is_ringed(run: Path) -> None:
    complete(run, "ppo", "c", {"sft": "a"}, best_step=10)
    rings = [line for line in drawn(run)["PPO judge"].lines if line.get_fillstyle() == "none"]
    assert [ring.get_xydata().tolist() for ring in rings] == [[[10, 0.5]]]


def test_every_metric_of_the_panels_is_logged(tiny_run: Path) -> None:
    """The names are those of the stages; the judge's is there where a recipe names one."""
    logged = {stage: set(figures.by_step) for stage, figures in read_run(tiny_run).items()}
    wanted = {(p.stage, key) for p in PANELS for key in (p.training, p.held_out) if key and key != "eval/judge"}
    assert {(stage, key) for stage, key in wanted if key not in logged[stage]} <= {("reward", "eval/loss")}


def test_moving_mean_leaves_gaps_out() -> None:
    nan = float("nan")
    assert moving_mean([1.0, nan, 3.0, 5.0], 1) == [1.0, 2.0, 4.0, 4.0]
    assert str(moving_mean([nan, nan], 1)) == "[nan, nan]"


def test_the_picture_is_readable_and_small(run: Path) -> None:
    assert draw(run, run / "curves.png")
    with Image.open(run / "curves.png") as image:
        assert image.width >= 1200  # twice README's width in points or more
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    assert (run / "curves.png").stat().st_size < 150_000


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_it_is_written_when_figures_changed(run: Path, suffix: str) -> None:
    output = run / f"curves.{suffix}"
    assert draw(run, output)
    first = output.read_bytes()
    assert not draw(run, output)
    output.unlink()
    assert draw(run, output)
    assert output.read_bytes() == first  # equal figures, equal files
    write(run, "ppo", PPO + HELD_OUT + [{"step": 31, "objective/scores": 0.0}])
    assert draw(run, output)
    assert output.read_bytes() != first


def test_whole_or_not_at_all(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(run, run / "curves.png")
    before = (run / "curves.png").read_bytes()
    write(run, "ppo", PPO)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(curves.os, "fsync", full)
    with pytest.raises(ArtifactError, match=r"curves.png: cannot be written \(No space left on device\)"):
        draw(run, run / "curves.png")
    assert (run / "curves.png").read_bytes() == before
    assert {path.name for path in run.iterdir()} == {"sft", "ppo", "curves.png"}


@pytest.mark.parametrize("output", ["absent/curves.png", "sft/metrics.jsonl/curves.png", "curves.jpg", "curves"])
def test_a_place_that_cannot_be_written_is_one_line(run: Path, output: str) -> None:
    with pytest.raises(ArtifactError) as error:
        draw(run, run / output)
    assert error.value.problems[0].startswith(f"{run / output}: ")
    assert len(error.value.problems[0].splitlines()) == 1


def test_a_run_never_fails_because_its_picture_does(run: Path) -> None:
    (run / "curves.png").mkdir()
    line = draw_behind_summary(run)
    assert line.startswith(f"curves: not drawn ({run / 'curves.png'}: cannot be written")
    assert len(line.splitlines()) == 1
    write(run, "ppo", [], end="nonsense\n")
    assert "line 1: no figures of a step" in draw_behind_summary(run)


def test_the_chain_draws_and_says_where(tiny_run: Path) -> None:
    assert (tiny_run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert draw_behind_summary(tiny_run) == f"curves: {tiny_run / 'curves.png'}"


def test_a_name_under_runs_will_do(run: Path) -> None:
    (run.parent / "runs").mkdir()
    run.rename(run.parent / "runs" / "mine")
    done = rlhf("curves", "mine", folder=run.parent)
    assert (done.returncode, done.stdout, done.stderr) == (0, "runs/mine/curves.png\n", "")
    assert (run.parent / "runs" / "mine" / "curves.png").is_file()


def test_a_bare_machine_will_do(run: Path) -> None:
    """No display, no home directory, a style of the user's that would break the drawing: not a word on stderr."""
    settings = run / "matplotlibrc"
    settings.write_text("text.usetex: True\nbackend: TkAgg\nno such setting\n")
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "MPLCONFIGDIR")}
    environment |= {"HOME": "/proc/nowhere", "XDG_CACHE_HOME": "/proc/nowhere", "MATPLOTLIBRC": str(settings)}
    command = [sys.executable, "-P", "-m", "launch.cli", "curves", str(run)]
    done = subprocess.run(command, cwd=run, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_matplotlib_is_loaded_to_draw_and_not_before() -> None:
    names = ("matplotlib", "PIL", "torch")
    code = f"import sys, launch.cli, rlhf.analysis.curves; print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
