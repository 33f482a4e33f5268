"""Models that answer: each with its own conversation, a reward's score for each answer, and the KL between two."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rlhf.config import GenerationConfig, Recipe
from rlhf.devices import settled_recipe
from rlhf.generation.native import NativeGenerator
from rlhf.logprobs import response_logprobs
from rlhf.models import context_of, load_policy
from rlhf.pretrained import local_model
from rlhf.store.artifact import Artifact
from rlhf.tokenization import Tokenization, load_tokenization
from rlhf.types import Completion, Reward
from stages.conversation import Conversation
from stages.frozen import freeze
from stages.rewards import load_reward
from stages.targets import Target

COLDEST = 1e-4  # the temperature in place of 0, at which the most probable token is as good as certain


@dataclass
class Settings:
    """How answers are sampled; changed while people talk."""

    seed: int
    temperature: float
    max_new_tokens: int
    top_p: float = 1.0


class Answer(NamedTuple):
    """What a model said."""

    completion: Completion
    logprob: float  # of the response, nats, at the temperature
    seconds: float
    score: float | None = None
    kl: float | None = None  # to the other model, nats: log-prob less the other's

    @property
    def note(self) -> str:
        """Its figures in a line."""
        completion = self.completion
        parts = [] if self.score is None else [f"score {self.score:.2f}"]
        parts += [f"{len(completion.response_tokens)} tokens{'' if completion.finished else ', cut'}"]
        parts += [] if self.kl is None else [f"KL {self.kl:.2f} nats"]
        return ", ".join([*parts, f"{self.seconds:.1f} s"])


class Speaker:
    """A policy that answers."""

    def __init__(self, target: Target, system: str | None) -> None:
        self.label = target.label
        self.recipe: Recipe = settled_recipe(target.recipe, "evaluate")
        path = local_model(target.model, self.recipe.model)
        self.tokenization: Tokenization = load_tokenization(path, self.recipe.model)
        self.policy: nn.Module = freeze(load_policy(path, self.tokenization, self.recipe.model), self.recipe)
        self.conversation = Conversation(self.tokenization, context_of(self.policy), system)

    def answer(self, text: str, settings: Settings, step: int, watch: Callable[[str], None]) -> Answer:
        """Answer a turn, which then belongs to the conversation; watch sees the text so far, token by token.

        The noise follows from the seed and the step, as in training: the same for every model. Raises DataError where
        the turn does not fit.
        """
        started = time.monotonic()
        question = self.conversation.ask(text, settings.max_new_tokens)
        config = GenerationConfig(
            max_new_tokens=question.room, temperature=max(settings.temperature, COLDEST), top_p=settings.top_p
        )
        bfloat16 = self.recipe.model.dtype == "bfloat16"
        stop, pad = self.tokenization.stop_id, self.tokenization.pad_id
        generator = NativeGenerator(self.policy, stop, pad, config, bfloat16)
        so_far: list[int] = []

        def see(_: Tensor, chosen: Tensor) -> None:
            so_far.append(int(chosen[0]))
            shown = self.tokenization.text([token for token in so_far if token != stop])
            watch(shown.rstrip("\ufffd"))  # the bytes of a character that is still being written

        generator.watch = see
        sampled = generator.sample([question.tokens], [0], seed=settings.seed, step=step)
        tokens = sampled.responses[0][sampled.mask[0]].tolist()
        response = self.tokenization.text(tokens)
        completion = Completion(
            question.prompt, response, tuple(question.tokens), tuple(tokens), bool(sampled.finished[0])
        )
        self.conversation.answer(text, response)
        return Answer(completion, float(sampled.logprobs[0].sum()), time.monotonic() - started)

    @torch.no_grad()
    def logprob(self, completion: Completion, temperature: float) -> float:
        """What this model gives another's response, nats at a temperature."""
        device = next(self.policy.parameters()).device
        tokens = torch.tensor([[*completion.prompt_tokens, *completion.response_tokens]])
        with torch.autocast(device.type, torch.bfloat16, enabled=self.recipe.model.dtype == "bfloat16"):
            every = torch.ones_like(tokens, dtype=torch.bool)
            found = response_logprobs(self.policy, tokens, every, len(completion.response_tokens), temperature)
        return float(found.logprobs.sum())

    def understands(self, other: Speaker) -> bool:
        """Whether another's tokens mean the same here."""
        return not self.tokenization.differing(other.tokenization.contract)


class Scoring:
    """The reward of a run, for answers in any tokenizer."""

    def __init__(self, artifact: Artifact, recipe: Recipe) -> None:
        self.artifact = artifact
        self.recipe = settled_recipe(recipe, "evaluate")
        self.loaded: list[tuple[Tokenization, Reward]] = []

    def score(self, speaker: Speaker, completion: Completion) -> float:
        """The score of an answer, normalised as PPO sees it."""
        return self.scores(speaker, [completion])[0]

    def scores(self, speaker: Speaker, completions: Sequence[Completion]) -> list[float]:
        """The scores of many answers of one speaker."""
        found: list[float] = self._reward(speaker.tokenization)(completions).tolist()
        return found

    def _reward(self, tokenization: Tokenization) -> Reward:
        """Loaded once for each tokenizer contract."""
        for known, reward in self.loaded:
            if not known.differing(tokenization.contract):
                return reward
        self.loaded.append((tokenization, load_reward(self.artifact, tokenization, self.recipe)))
        return self.loaded[-1][1]
