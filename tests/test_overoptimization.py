import json
import math
import signal
from pathlib import Path

import psutil
import pytest
from interruption import lines_of, start, wait_for
from running import TINY, rlhf

from launch.commands.options import numbers
from launch.commands.overoptimization import table
from launch.jobs import Job, Workers
from launch.overoptimization import Sweep
from rlhf.analysis.overoptimization import Outcome, Setting, Trajectory, fit, gather, read_trajectory, report
from rlhf.analysis.overoptimization_picture import draw
from rlhf.errors import ArtifactError, ConfigError, RLHFError

SETTINGS = [Setting(pairs, coefficient, seed) for pairs in (100, 400) for coefficient in (0.0, 0.1) for seed in (1, 2)]


def trajectory(setting: Setting) -> Trajectory:
    """On the curve 0.5 + d (a - 0.1 log d) with a = 0.1 for few pairs and 0.3 for many, d = 0 ... 6."""
    distance = [float(d) for d in range(7)]
    slope = 0.1 if setting.pairs == 100 else 0.3
    gold = [0.5 + (d * (slope - 0.1 * math.log(d)) if d else 0.0) for d in distance]
    return Trajectory(setting, list(range(0, 70, 10)), [d * d for d in distance], distance, gold)


def sweep(folder: Path, *overrides: str, recipe: str = str(TINY)) -> Sweep:
    return Sweep(recipe, [100, 400], [0.0, 0.1], [1, 2], 2, 1, folder, overrides)


def test_seeds_stand_together_and_peaks_are_those_of_their_mean() -> None:
    outcomes = gather(map(trajectory, SETTINGS))
    assert [(o.pairs, o.coefficient) for o in outcomes] == [(100, 0.0), (100, 0.1), (400, 0.0), (400, 0.1)]
    few, many = outcomes[0].summary(), outcomes[2].summary()
    assert few["gold_peak_step"] == 10 and few["gold_peak_kl"] == 1  # d (0.1 - 0.1 log d) is highest at d = 1
    assert few["gold_lost"] == pytest.approx(0.1 - 6 * (0.1 - 0.1 * math.log(6))) and few["gold_lost_stderr"] == 0
    assert few["proxy_peak_step"] == many["proxy_peak_step"] == 60
    assert many["gold_peak_step"] == 60 and many["gold_lost"] == 0 and many["kl_largest"] == 36


def test_a_loss_is_measured_where_the_seeds_mean_was_highest() -> None:
    def of(seed: int, gold: list[float]) -> Trajectory:
        return Trajectory(Setting(1, 0.0, seed), [0, 1, 2], [0.0, 1.0, 4.0], [0.0, 1.0, 2.0], gold)

    found = Outcome(1, 0.0, [of(1, [0.0, 0.9, 0.5]), of(2, [0.0, 0.3, 0.6])]).summary()
    assert found["gold_peak_step"] == 1 and found["gold_lost"] == pytest.approx((0.4 - 0.3) / 2)
    assert found["gold_lost_stderr"] == pytest.approx(0.35)


def test_the_curve_is_found_again() -> None:
    curves = fit(gather(map(trajectory, SETTINGS)))
    assert curves[100] == pytest.approx((0.5, 0.1, 0.1)) and curves[400] == pytest.approx((0.5, 0.3, 0.1))
    assert curves[100](0.0) == 0.5 and curves[100](math.e) == pytest.approx(0.5)


def test_figures_are_json_a_table_and_a_picture(tmp_path: Path) -> None:
    outcomes = gather(map(trajectory, SETTINGS))
    written = json.loads(json.dumps(report(outcomes)))
    assert len(written["settings"]) == 4 and len(written["trajectories"]) == 8 and len(written["fits"]) == 2
    assert table(outcomes).row_count == 4
    draw(outcomes, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG") and len(list(tmp_path.iterdir())) == 1


def test_evaluations_are_read_from_a_runs_figures(tmp_path: Path) -> None:
    setting = Setting(100, 0.0, 1)
    with pytest.raises(ArtifactError, match=r"metrics\.jsonl: no such file"):
        read_trajectory(tmp_path, setting)
    (tmp_path / "ppo").mkdir()
    lines = [{"step": 0, "eval/scores": 0.1, "eval/judge": 0.4, "eval/kl": 0.0}, {"step": 1, "objective/kl": 0.3}]
    lines.append({"step": 2, "eval/scores": 0.6, "eval/judge": 0.5, "eval/kl": 0.9})
    (tmp_path / "ppo" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_trajectory(tmp_path, setting) == Trajectory(setting, [0, 2], [0.0, 0.9], [0.1, 0.6], [0.4, 0.5])


def test_a_sweep_shares_what_its_runs_have_in_common(tmp_path: Path) -> None:
    made = sweep(tmp_path)
    assert len(list(made.settings())) == 8
    assert len({made.place(setting) for setting in made.settings()}) == 8
    assert len({made._ppo(setting, "data.toy:gold").log for setting in made.settings()}) == 8
    assert sweep(tmp_path, "ppo.epochs=3").check().ppo.epochs == 3


def test_a_sweep_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.gold=null"):
        sweep(tmp_path, "evaluate.gold=null").check()
    with pytest.raises(ConfigError, match=r"reward\.use=data\.toy:gold: the study trains its own"):
        sweep(tmp_path, "reward.use=data.toy:gold").check()
    for text in ("1,x", "1,1", "-1", "", "1.5"):
        with pytest.raises(ConfigError, match="--seeds"):
            numbers("--seeds", text, whole=True)
    for text in ("nan", "0,inf"):
        with pytest.raises(ConfigError, match="none below zero or infinite"):
            numbers("--coefficients", text)
    assert numbers("--coefficients", "0,0.5") == [0.0, 0.5]


def test_jobs_run_to_the_end_and_those_that_fail_are_named(tmp_path: Path) -> None:
    arguments = (["schema", "--nowhere"], ["schema", "--output", str(tmp_path / "schema.json")])
    jobs = [Job(f"job {i}", given, tmp_path / f"{i}.log") for i, given in enumerate(arguments)]
    with pytest.raises(RLHFError) as caught:
        Workers(2).run(jobs, "jobs")
    assert caught.value.problems == (f"job 0: ended with exit code 2; {tmp_path / '0.log'} says why",)
    assert (tmp_path / "schema.json").is_file() and "--nowhere" in (tmp_path / "0.log").read_text()


@pytest.mark.services
@pytest.mark.beside
def test_the_study_runs_and_is_not_run_again(tmp_path: Path) -> None:
    options = ["--pairs", "100", "--coefficients", "0,0.1", "--seeds", "1", "--steps", "2", "--every", "1"]
    command = ["study", "overoptimization", str(TINY), *options, "--output", "study", "--at-once", "2"]
    done = rlhf(*command, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "study" / "overoptimization.json").read_text())
    assert [t["steps"] for t in found["trajectories"]] == [[0, 1, 2]] * 2
    assert (tmp_path / "study" / "overoptimization.png").is_file()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "study").rglob("manifest.json")}
    assert len(before) == 9  # what a stage uses in place of another stands in its run, too
    assert rlhf(*command, folder=tmp_path).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.services
@pytest.mark.soak
def test_an_interrupted_study_goes_on(tmp_path: Path) -> None:
    options = ["--pairs", "100", "--coefficients", "0", "--seeds", "1", "--steps", "30", "--every", "15"]
    command = ["study", "overoptimization", str(TINY), *options, "--output", "study"]
    process = start(*command, folder=tmp_path, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    ppo = tmp_path / "study" / "seed-1" / "pairs-100" / "coefficient-0" / "ppo"
    assert wait_for(lambda: lines_of(ppo / "metrics.jsonl") > 2, process)
    job = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 75, printed + errors
    assert "the same command goes on; exit code 75" in printed and not psutil.wait_procs(job, timeout=0)[1]
    reward = ppo.parents[1] / "reward" / "manifest.json"
    before = reward.stat().st_mtime_ns
    done = rlhf(*command, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ppo: going on from" in (ppo.parents[1] / "coefficient-0-ppo.log").read_text()
    assert reward.stat().st_mtime_ns == before
