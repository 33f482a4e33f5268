"""A conversation with one model: its turns, and which of them still fit into the model's context."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlhf.errors import DataError
from rlhf.tokenization import Tokenization
from rlhf.types import Message, Prompt


@dataclass(frozen=True)
class Question:
    """A prompt that fits, and the room behind it."""

    prompt: Prompt
    tokens: list[int]
    room: int  # tokens that a response can have


@dataclass
class Conversation:
    """Turns so far. Without a chat template there are none: each text stands alone, and the response continues it."""

    tokenization: Tokenization
    window: int  # tokens of the model's context
    system: str | None = None
    turns: list[Message] = field(default_factory=list)
    dropped: int = 0  # turns that had to go, so far

    def ask(self, text: str, max_new_tokens: int) -> Question:
        """The prompt with a new turn, as long as the context; the oldest turns are dropped to make room.

        Where the turn alone leaves less room than max_new_tokens, the response gets what is left. Raises DataError
        where nothing is left; the turns then stay as they were.
        """
        kept = list(self.turns)
        question = self._question(kept, text)
        while question.room < max_new_tokens and kept:
            kept = kept[2:]  # a question and its answer
            question = self._question(kept, text)
        if question.room < 1:
            raise DataError(
                f"the text has {len(question.tokens):,} tokens, and the model's context is {self.window:,}; shorten it"
            )
        self.dropped += len(self.turns) - len(kept)
        self.turns = kept
        return Question(question.prompt, question.tokens, min(question.room, max_new_tokens))

    def answer(self, text: str, response: str) -> None:
        """Take a turn and its answer into the conversation."""
        if self.tokenization.chat:
            self.turns += [Message("user", text), Message("assistant", response)]

    def reset(self) -> None:
        """Forget all turns."""
        self.turns, self.dropped = [], 0

    def _question(self, turns: list[Message], text: str) -> Question:
        prompt = Prompt(text)
        if self.tokenization.chat:
            system = [Message("system", self.system)] if self.system else []
            prompt = Prompt((*system, *turns, Message("user", text)))
        tokens = self.tokenization.prompt(prompt)
        return Question(prompt, tokens, self.window - len(tokens))
