"""The user's files of examples: what each holds, which kinds of examples come from it, how long they are."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data import toy
from data.formats import USES, Example, given
from data.inspection import Inspection, inspect_source, texts_of
from data.locations import files_of
from data.reading import Reading
from data.sources import TOY_COMPARISONS, TOY_DEMONSTRATIONS
from launch.proposal.models import FirstModel
from rlhf.config import SourceConfig
from rlhf.errors import ConfigError, DataError

SAMPLE = 200  # examples whose texts say how long a token is
TEMPLATE = 24  # tokens that a chat template puts around a prompt and a response
KINDS = ("demonstrations", "comparisons", "prompts")


@dataclass(frozen=True)
class Source:
    """One file, directory or hub id."""

    path: str
    inspection: Inspection
    texts: tuple[str, ...]  # of the first examples

    @property
    def holds(self) -> str:
        """What its format holds: comparisons, ratings, demonstrations or prompts."""
        return str(self.inspection.holds)

    def gives(self, kind: str) -> bool:
        """Whether examples of a kind come from it."""
        return kind in USES[self.holds]


@dataclass(frozen=True)
class Lengths:
    """Tokens of the examples of a recipe; estimated unless `measured`."""

    prompt: int  # 95 of a hundred have no more; as do those that follow
    prompt_max: int
    prompt_median: int
    completion: int  # of demonstrations
    completion_median: int
    response: int  # of comparisons, the longer of two
    measured: bool


@dataclass(frozen=True)
class Examples:
    """Which sources each kind of examples comes from."""

    sources: Mapping[str, Sequence[Source]]  # kind → sources; a kind that is not needed has none
    notes: Mapping[str, str]  # kind → where its examples come from, if not from sources of their own

    def count(self, kind: str) -> int:
        """How many examples of a kind there are, before any is held out."""
        if kind == "prompts":
            return sum(source.inspection.distinct_prompts for source in self.sources[kind])
        return sum(source.inspection.examples for source in self.sources[kind])

    def lengths(self, model: FirstModel) -> Lengths:
        """How long they are in a model's tokens."""
        every = list({source.path: source for kind in KINDS for source in self.sources[kind]}.values())
        per_token, measured = model.characters_per_token([text for source in every for text in source.texts])

        def tokens(kind: str, names: Sequence[str], figure: str) -> int:
            lengths = [source.inspection.lengths.get(name) for source in self.sources[kind] for name in names]
            longest = max((found["characters"][figure] for found in lengths if found), default=0)
            return -int(-longest // per_token)

        answers = ("completion", "chosen")
        return Lengths(
            prompt=tokens("prompts", ["prompt"], "95 %") + TEMPLATE,
            prompt_max=max(tokens(kind, ["prompt"], "max") for kind in KINDS) + TEMPLATE,
            prompt_median=tokens("prompts", ["prompt"], "median") + TEMPLATE,
            completion=tokens("demonstrations", answers, "95 %"),
            completion_median=tokens("demonstrations", answers, "median"),
            response=tokens("comparisons", ["chosen", "rejected", "text"], "95 %"),
            measured=measured,
        )


def look(path: str, kind: str, directory: str | None = None) -> Source:
    """Read a source and count; DataError where it cannot be used as a kind, or at all."""
    if path == "toy":
        return _toy(kind)
    config = SourceConfig.model_construct(path=path)
    inspection = inspect_source(config, 0, directory)
    if not inspection.format or not inspection.examples:
        raise DataError(*inspection.problems or [f"{path}: holds no record; give another file"])
    given(inspection.format, kind, path)
    sample = itertools.islice(Reading(config, files_of(path, directory), None), SAMPLE)
    return Source(path, inspection, tuple(text for example in sample for text in texts_of(example).values()))


def assign(found: Mapping[str, Sequence[Source]], needed: Sequence[str]) -> Examples:
    """Sources of each kind: its own, or those of a kind that it can be drawn from.

    needed: kinds that stages of the recipe read. Raises ConfigError where a kind has none.
    """
    sources: dict[str, Sequence[Source]] = {}
    notes: dict[str, str] = {}
    for kind, others in (
        ("comparisons", ()),
        ("demonstrations", ("comparisons",)),
        ("prompts", ("comparisons", "demonstrations")),  # a reward model is best where its votes are
    ):
        sources[kind] = list(found.get(kind, ())) if kind in needed else []
        for other in others if kind in needed and not sources[kind] else ():
            drawn = [source for source in found.get(other, ()) if source.gives(kind)]
            if drawn and not sources[kind]:
                sources[kind] = drawn
                what = "prompt and preferred response" if kind == "demonstrations" else "their prompts"
                notes[kind] = f"from the {other}: {what}"
        if kind in needed and not sources[kind]:
            raise ConfigError(f"no {kind}; give {_remedy(kind)}")
    return Examples(sources, notes)


def _remedy(kind: str) -> str:
    if kind == "comparisons":
        return "--comparisons FILE, or a reward of your own with --reward-use"
    if kind == "demonstrations":
        return "--demonstrations FILE or --comparisons FILE, or a model that needs none with --sft-use"
    return "--prompts FILE, or --comparisons or --demonstrations, whose prompts can be used"


def _toy(kind: str) -> Source:
    """The embedded task, as if it were a file."""
    prompts = toy.prompts()
    examples: Sequence[Example] = prompts
    count = len(prompts)
    if kind == "demonstrations":
        examples, count = toy.demonstrations(SAMPLE, 0, prompts), sum(TOY_DEMONSTRATIONS)
    elif kind == "comparisons":
        examples, count = toy.comparisons(SAMPLE, 0, prompts).records, sum(TOY_COMPARISONS)
    lengths: dict[str, dict[str, dict[str, int]]] = {}
    for name in texts_of(examples[0]):
        sizes = sorted(len(texts_of(example)[name]) for example in examples)
        figures = {"median": sizes[len(sizes) // 2], "95 %": sizes[len(sizes) * 95 // 100], "max": sizes[-1]}
        lengths[name] = {"characters": figures}
    inspection = Inspection("toy", 0, "toy", kind, count, count, 0, [], len(prompts), 0, {}, lengths)
    return Source(
        "toy", inspection, tuple(text for example in examples[:SAMPLE] for text in texts_of(example).values())
    )
