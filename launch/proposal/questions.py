"""The questions of `rlhf init`: only for what was not given, each answer looked at before the next."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import typer
from rich.console import Console

from launch.proposal.beginning import Wishes, described, scorer_of
from launch.proposal.examples import look
from launch.proposal.hardware import hardware
from launch.proposal.models import first_model
from launch.proposal.writing import counted_weights
from rlhf.errors import ConfigError, RLHFError

T = TypeVar("T")


def may_ask() -> bool:
    """Whether somebody sits in front of us."""
    return sys.stdin.isatty() and sys.stdout.isatty()


class Questions:
    """A conversation that ends in complete wishes; Ctrl-C and Ctrl-D end it without a file."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def complete(self, wishes: Wishes) -> Wishes:
        """Ask for what is missing."""
        self.say("A few questions; an empty answer takes what stands in brackets.\n")
        wishes = self.models(wishes)
        if "comparisons" in wishes.needed and not wishes.comparisons:
            self.say("Votes, two responses and which is better: a file, a directory or org/name@COMMIT; toy: a game.")
            wishes = replace(wishes, comparisons=self.files(wishes, "comparisons", None))
        if "demonstrations" in wishes.needed and not wishes.demonstrations:
            self.say("Demonstrations, responses to imitate.")
            default = "those that the votes prefer" if wishes.comparisons else None
            wishes = replace(wishes, demonstrations=self.files(wishes, "demonstrations", default))
        if not wishes.prompts:
            self.say("Prompts for PPO to answer.")
            default = "those of the files above" if wishes.comparisons or wishes.demonstrations else None
            wishes = replace(wishes, prompts=self.files(wishes, "prompts", default))
        if wishes.gpus is None and wishes.gpu_memory is None:
            wishes = self.machine(wishes)
        return wishes

    def models(self, wishes: Wishes) -> Wishes:
        """The first model, and what takes the place of a stage."""
        if wishes.model is None and wishes.sft_use is None:
            self.say("The model: a directory, or org/name@COMMIT of the hub; none makes a small one from nothing.")
            model = self.ask("Model", "none", lambda text: self.model(text, wishes))
            if model:
                own = typer.confirm(
                    "Fine-tune it first, on demonstrations or what votes prefer (no: it follows instructions already)?",
                    default=True,
                )
                wishes = replace(wishes, model=model) if own else replace(wishes, sft_use=model)
        if wishes.reward_use is None:
            self.say("The reward: trained on votes, or yours: a model, http://ADDRESS or package.module:function.")
            reward = self.ask("Reward", "trained", lambda text: self.reward(text, wishes))
            wishes = replace(wishes, reward_use=reward)
        return wishes

    def model(self, text: str, wishes: Wishes) -> str | None:
        """A model that is there, or None."""
        if text == "none":
            return None
        found = first_model(text, wishes.model_size, wishes.directory)
        self.say(f"  {counted_weights(found.shape.weights)}, context of {found.shape.context:,} tokens")
        return text

    def reward(self, text: str, wishes: Wishes) -> str | None:
        """A reward that is there, or None."""
        if text == "trained":
            return None
        scorer_of(replace(wishes, reward_use=text))
        return text

    def files(self, wishes: Wishes, kind: str, empty: str | None) -> tuple[str, ...]:
        """One file after another, until an empty answer; empty: what none at all means, None: one is needed."""
        found: tuple[str, ...] = ()

        def one(text: str) -> str:
            if text and text != empty:
                self.say(f"  {described(look(text, kind, wishes.directory))}")
                return text
            if not text and not found and empty is None:
                raise ConfigError(f"no {kind}; give a file")
            return ""

        while answer := self.ask(
            kind.capitalize() if not found else "  another", "" if found or not empty else empty, one
        ):
            found = (*found, answer)
        return found

    def machine(self, wishes: Wishes) -> Wishes:
        """The devices: those of this machine, or others."""
        here = hardware(None, None)
        if typer.confirm(f"Write it for this machine, {here}?", default=True):
            return wishes
        gpus = typer.prompt("GPUs (0: the processor)", default=1, type=int)
        memory = typer.prompt("GiB of each", default=24.0, type=float) if gpus else 0.0
        return replace(wishes, gpus=gpus, gpu_memory=memory)

    def ask(self, question: str, default: str, read: Callable[[str], T]) -> T:
        """An answer that can be used; what is wrong with one is said, and the question comes again."""
        while True:
            text = str(typer.prompt(question, default=default, show_default=bool(default))).strip()
            try:
                return read(text)
            except RLHFError as error:
                for problem in error.problems:
                    self.say(f"  {problem}")

    def say(self, line: str) -> None:
        """Tell one thing."""
        self.console.print(line, markup=False, soft_wrap=True)
