"""The chain: which stages must run, running them one after another, and the run's summary."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from launch.local import LocalStage, processes_of, stage_command, visible_gpus
from rlhf.config import Recipe
from rlhf.errors import ArtifactError, ConfigError
from rlhf.recipe import load_recipe, resolved_yaml
from rlhf.store.artifact import Artifact, environment, find_artifact, tidy, write_json, write_text
from rlhf.store.checkpoint import CheckpointStore, retention_of
from rlhf.store.turnover import recover
from rlhf.store.unfinished import hold, is_unfinished
from stages import gate, preflight
from stages.lineage import STAGES, is_current, lineage_of, used_by
from stages.room import require_room
from stages.signals import RESUMABLE, STOP


class StageFailed(Exception):
    """A stage's processes ended with a code other than 0; `problems` is what they had to say, one line each."""

    def __init__(self, stage: str, code: int, problems: Sequence[str] = ()) -> None:
        self.stage = stage
        self.code = code
        self.problems = problems
        super().__init__(f"{stage} ended with exit code {code}")


class Interrupted(BaseException):
    """A signal stopped the chain; the same command goes on. No Exception, as `stages.signals.Stopped` is none."""

    code = RESUMABLE


@dataclass(frozen=True)
class Selection:
    """Which stages a command is about."""

    first: str = "sft"
    last: str = "evaluate"
    force: bool = False  # run them from the beginning although they are complete, or begun
    stop_after: int | None = None  # a step of the last stage

    @property
    def stages(self) -> list[str]:
        """The stages from first to last."""
        names = list(STAGES)
        for name in (self.first, self.last):
            if name not in names:
                raise ConfigError(f"{name} is not a stage; use one of {', '.join(names)}")
        if names.index(self.first) > names.index(self.last):
            raise ConfigError(f"--from {self.first} comes after --until {self.last}; exchange them")
        return names[names.index(self.first) : names.index(self.last) + 1]


def run_chain(recipe: Recipe, run: Path, selection: Selection, say: Callable[[str], None]) -> None:
    """Run the selected stages that are not complete, each in a process group of its own.

    A stage is complete when its manifest's fingerprint is the one that the recipe, the data and its inputs now give.
    A stage that began and did not end goes on from its newest checkpoint. Raises StageFailed with the stage's exit
    code, Interrupted where a signal stopped it.
    """
    with stoppable():
        check_and_run(recipe, run, selection, say)


@contextmanager
def stoppable(when: str = "before a stage began") -> Iterator[None]:
    """Where no stage runs, a signal to stop ends the chain at once, and one to save has nothing to save."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted(f"{signal.Signals(number).name} {when}")

    previous = {number: signal.signal(number, stop) for number in STOP}
    previous[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def check_and_run(recipe: Recipe, run: Path, selection: Selection, say: Callable[[str], None]) -> None:
    """See `run_chain`."""
    chosen = selection.stages
    require_own(recipe, run)
    gpu = visible_gpus() > 0
    preflight.check(recipe, chosen, lambda stage: processes_of(recipe, stage), gpu, run, selection.force)
    for name in STAGES[chosen[0]].inputs:
        if name not in chosen and not used_by(recipe, name):  # what is used instead, the stage itself takes in
            require_current(recipe, run, name)
    for stage in chosen:
        if selection.force or not is_current(recipe, run, stage):
            require_room(recipe, stage, run)
            break
    with hold(run) as lock:
        if gate.is_shut(recipe, chosen):
            gate.keep(recipe, run)
        run_stages(recipe, run, selection, say, lock.fileno())


def require_own(recipe: Recipe, run: Path) -> None:
    """Raise ArtifactError where a run directory is that of a recipe with another name."""
    path = run / "recipe.yaml"
    if not path.is_file():
        return
    try:
        name = load_recipe(path).name
    except ConfigError:
        return  # written by another version; it will be written anew
    if name != recipe.name:
        raise ArtifactError(f"{run}: holds the run of recipe {name}, not {recipe.name}; give another --run")


def run_stages(recipe: Recipe, run: Path, selection: Selection, say: Callable[[str], None], lock: int) -> None:
    """Run what must run of the selected stages; they inherit the lock, and hold it should we die before them."""
    path = run / "recipe.yaml"
    if not path.is_file() or path.read_text(encoding="utf-8") != resolved_yaml(recipe):
        write_text(path, resolved_yaml(recipe))
    for stage in selection.stages:
        if (run / stage).is_dir():
            recover(run / stage)
        fingerprint = lineage_of(recipe, stage, run).fingerprint
        artifact = find_artifact(run / stage)
        if artifact and artifact.fingerprint == fingerprint and not selection.force:
            say(f"{stage}: complete, nothing to do")
            tidy(run / stage)
            CheckpointStore(run / stage / "checkpoints", fingerprint, retention_of(recipe)).finish()
            warn_of_other_versions(artifact, say)
            continue
        unfinished = is_unfinished(run / stage, fingerprint) and not selection.force
        require_room(recipe, stage, run)
        say(f"{stage}: {'begun before, going on' if unfinished else why(artifact)}")
        options = ["--restart"] if selection.force else []
        if selection.stop_after is not None and stage == selection.last:
            options += ["--stop-after", str(selection.stop_after)]
        running = LocalStage(stage_command(stage, path, run, *options), processes_of(recipe, stage), [lock])
        outcome = running.wait(recipe.checkpoint.grace_seconds, say)
        complete = is_current(recipe, run, stage)  # asked anew: the stage may have taken in inputs that were missing
        if outcome.code == RESUMABLE or (outcome.signal and complete):
            raise Interrupted(interruption(stage, complete, selection.stages))
        if outcome.code:
            raise StageFailed(stage, outcome.code, outcome.problems)
        if not complete and selection.stop_after is None:
            raise ArtifactError(f"{run / stage}: the stage ended without a complete result; run it again with --force")


def interruption(stage: str, complete: bool, stages: Sequence[str]) -> str:
    """What a signal left undone of the selected stages."""
    if not complete:
        return f"{stage} stopped"
    remaining = stages[stages.index(stage) + 1 :]
    what = f"{' and '.join(remaining)} {'remain' if len(remaining) > 1 else 'remains'}" if remaining else "that is all"
    return f"{stage} is complete, {what}; the same command goes on"


def why(artifact: Artifact | None) -> str:
    """Why a stage starts from the beginning."""
    return "its recipe, data or inputs changed, running again" if artifact else "running"


def require_current(recipe: Recipe, run: Path, stage: str) -> None:
    """Raise ArtifactError unless a stage is complete and is what the recipe now describes."""
    artifact = find_artifact(run / stage)
    if artifact is None:
        raise ArtifactError(f"{run / stage}: needed and not complete; run with --from {stage}")
    if artifact.fingerprint != lineage_of(recipe, stage, run).fingerprint:
        raise ArtifactError(f"{run / stage}: made by another recipe or from other data; run with --from {stage}")


def warn_of_other_versions(artifact: Artifact, say: Callable[[str], None]) -> None:
    """Say which packages differ from those that made an artifact."""
    made, now = artifact.manifest["environment"]["packages"], environment()["packages"]
    differing = [
        f"{name} {version} (now {now.get(name)})" for name, version in made.items() if now.get(name) != version
    ]
    if differing:
        say(f"{artifact.manifest['stage']}: made with {', '.join(differing)}; --force runs it again")


def summarize(recipe: Recipe, run: Path) -> dict[str, Any]:
    """The headline figures of the stages that are complete and current; the others are absent."""
    artifacts = {}
    for stage in STAGES:
        artifact = find_artifact(run / stage)
        if artifact and artifact.fingerprint == lineage_of(recipe, stage, run).fingerprint:
            artifacts[stage] = artifact
    seconds = {stage: artifact.manifest["seconds"] for stage, artifact in artifacts.items()}
    summary: dict[str, Any] = {"run": recipe.name, "seconds": round(sum(seconds.values()), 2)}
    if "sft" in artifacts:
        summary["sft"] = chosen_figures(artifacts["sft"], "eval_loss", "uniform_loss")
    if "reward" in artifacts:
        summary["reward"] = chosen_figures(artifacts["reward"], "accuracy", "accuracy_ci", "bayes_accuracy")
    if "ppo" in artifacts:
        kept = ("kl", "episodes", "held_out_judge", "best_step", "best_score", "last_score", "stopped_early")
        ppo = artifacts["ppo"].results
        ppo = {"held_out_judge": ppo["judge"], **ppo} if "judge" in ppo else ppo
        summary["ppo"] = {key: ppo[key] for key in kept if key in ppo}
        summary["ppo"]["seconds"] = seconds["ppo"]
    if "evaluate" in artifacts:
        summary.setdefault("ppo", {}).update(evaluation(artifacts["evaluate"].results))
    summary["stages"] = seconds
    return summary


def chosen_figures(artifact: Artifact, *keys: str) -> dict[str, Any]:
    """Some of a stage's figures, as far as it has them, or what was used in its place."""
    used = {"use": artifact.manifest["use"]} if "use" in artifact.manifest else {}
    return used | {key: artifact.results[key] for key in keys if key in artifact.results}


def evaluation(results: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of the evaluate stage that a summary shows."""
    scores = [f"{name}_{key}" for name in ("gold", "judged") for key in ("before", "after", "gain_ci")]
    keys = ("win_rate", "win_rate_ci", "kl", "judge", "judge_trained_on", "prompts", "responses")
    optional = ("second_gold_before", "second_gold_after", "best_of", "lm_eval")
    return {key: results[key] for key in (*scores, *keys, *optional) if key in results}


def write_summary(summary: Mapping[str, Any], run: Path) -> None:
    """Write `summary.json` unless it says the same already."""
    path = run / "summary.json"
    if path.is_file() and path.read_text(encoding="utf-8") == json.dumps(summary, indent=2) + "\n":
        return
    write_json(path, summary)
