"""From what somebody has and wishes to a proposal, and from that to a file that has passed every check of a run."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data.scorers import load_scorer
from launch.proposal.examples import KINDS, Examples, Source, assign, look
from launch.proposal.hardware import Hardware, hardware
from launch.proposal.models import FirstModel, first_model, new_model
from launch.proposal.sizes import LONGEST_RESPONSE, Task, propose
from launch.proposal.writing import Proposal, recipe_text
from rlhf.config import InitConfig
from rlhf.errors import ArtifactError, ConfigError
from rlhf.recipe import load_recipe
from rlhf.references import check_address, kind_of
from rlhf.schema import modeline
from rlhf.shapes import Shape
from rlhf.store.artifact import write_text
from stages import preflight
from stages.lineage import STAGES

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
ON_A_PROCESSOR = InitConfig(hidden_size=128, layers=3, heads=4, vocab_size=1024)
ON_A_GPU = InitConfig(hidden_size=512, layers=8, heads=8, vocab_size=8192)


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the command line, or its user, says."""

    path: Path
    model: str | None = None
    model_size: str | None = None
    demonstrations: tuple[str, ...] = ()
    comparisons: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    sft_use: str | None = None
    reward_use: str | None = None
    gpus: int | None = None
    gpu_memory: float | None = None
    max_length: int | None = None
    name: str | None = None
    directory: str | None = None

    @property
    def needed(self) -> list[str]:
        """Kinds of examples that the recipe's stages read."""
        without = {kind for kind, use in (("demonstrations", self.sft_use), ("comparisons", self.reward_use)) if use}
        return [kind for kind in KINDS if kind not in without]


def begin(wishes: Wishes, schema: Path, say: Callable[[str], None]) -> Proposal:
    """Look at everything that was given, and propose a recipe.

    schema: where the schema goes, relative to the recipe. Raises RLHFError for what cannot be used.
    """
    if wishes.sft_use and wishes.model:
        raise ConfigError("--model is what SFT starts from, and with --sft-use there is no SFT; give one of them")
    name = run_name(wishes)
    machine = hardware(wishes.gpus, wishes.gpu_memory)
    given = wishes.sft_use or wishes.model
    start = first_model(given, wishes.model_size, wishes.directory) if given else None
    scorer = scorer_of(wishes)
    found = {kind: [look(path, kind, wishes.directory) for path in getattr(wishes, kind)] for kind in KINDS}
    for source in {source.path: source for sources in found.values() for source in sources}.values():
        say(described(source))
    examples = assign(found, wishes.needed)
    model = start or made_from_nothing(examples, machine)
    lengths = examples.lengths(model)
    task = Task(
        policy=model.shape,
        scorer=scorer.shape if scorer else None if wishes.reward_use else model.shape,
        pretrained=model.pretrained,
        hardware=machine,
        lengths=lengths,
        counts={kind: examples.count(kind) for kind in KINDS},
        stages=tuple(stage for stage in ("sft", "reward", "ppo") if not getattr(wishes, f"{stage}_use", None)),
        max_length=wishes.max_length,
    )
    return Proposal(
        file=str(wishes.path),
        schema=modeline(wishes.path, wishes.path.parent / schema),
        name=name,
        directory=wishes.directory,
        start=model,
        init=None if start else init_of(model),
        uses_sft=wishes.sft_use is not None,
        reward_use=scorer.reference if scorer else wishes.reward_use,
        examples=examples,
        lengths=lengths,
        task=task,
        sizes=propose(task),
    )


def write(proposal: Proposal, path: Path, force: bool) -> None:
    """Write the recipe once it has passed what `rlhf run` checks before its first stage; whole or not at all."""
    text = recipe_text(proposal)
    with tempfile.TemporaryDirectory(prefix="rlhf-init-") as folder:
        draft = Path(folder) / "recipe.yaml"
        draft.write_text(text, encoding="utf-8")
        recipe = load_recipe(draft)
    preflight.check(recipe, list(STAGES), lambda stage: proposal.task.hardware.processes)
    if path.exists() and not force:
        raise ConfigError(f"{path}: is there already; give another PATH, or --force to write over it")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def run_name(wishes: Wishes) -> str:
    """The run's name: as wished, or the file's."""
    name = wishes.path.name.partition(".")[0] if wishes.name is None else wishes.name
    if not _NAME.fullmatch(name):
        field = "PATH" if wishes.name is None else "--name"
        raise ConfigError(f"{field}={name}: a run's name has letters, digits, dots, dashes, underscores; give --name")
    return name


def scorer_of(wishes: Wishes) -> FirstModel | None:
    """The reward model of one's own; None where the reward is trained, a server's or a function."""
    use = wishes.reward_use
    if use is None:
        return None
    if (kind := kind_of(use)) != "model":
        check_address("--reward-use", use) if kind == "server" else load_scorer(use, wishes.directory)
        return None
    try:
        return first_model(use, wishes.model_size, wishes.directory)
    except ArtifactError as error:
        if Path(use).exists():
            raise
        choices = "a reward model's directory, org/name@COMMIT, http://ADDRESS or package.module:function"
        raise ConfigError(f"--reward-use={use}: is none of {choices}") from error


def made_from_nothing(examples: Examples, machine: Hardware) -> FirstModel:
    """A model made here, whose context takes the examples."""
    model = new_model(ON_A_GPU if machine.gpus else ON_A_PROCESSOR)
    lengths = examples.lengths(model)
    answer = max(lengths.completion, lengths.response, 1)
    longest = min(2 * LONGEST_RESPONSE, max(lengths.prompt_max, lengths.prompt) + answer)
    init = ON_A_GPU if machine.gpus else ON_A_PROCESSOR
    return new_model(init.model_copy(update={"context": -(-longest // 32) * 32}))


def init_of(model: FirstModel) -> InitConfig:
    """The recipe's section of a model made from nothing."""
    shape: Shape = model.shape
    heads = ON_A_GPU.heads if shape.hidden == ON_A_GPU.hidden_size else ON_A_PROCESSOR.heads
    return InitConfig(
        hidden_size=shape.hidden,
        layers=shape.layers,
        heads=heads,
        vocab_size=shape.vocabulary,
        context=shape.context,
    )


def described(source: Source) -> str:
    """A source in a line: format, counts, lengths."""
    found = source.inspection
    lengths = [
        f"{text} {by_unit['characters']['median']:,} ({by_unit['characters']['95 %']:,})"
        for text, by_unit in found.lengths.items()
    ]
    bad = f", {found.bad:,} bad records" if found.bad else ""
    characters = f"; characters, median (95 %): {', '.join(lengths)}" if lengths else ""
    return f"{source.path}: format {found.format}, {found.examples:,} {found.holds}{bad}{characters}"
