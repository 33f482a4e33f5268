"""How a conversation is shown: as it is written on a terminal, in columns where two answer; plain or JSON elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from stages.speakers import Answer


class Display(Protocol):
    """Where questions and answers go."""

    def asked(self, text: str, labels: Sequence[str]) -> None:
        """A question to those named begins."""
        ...

    def written(self, speaker: int, text: str) -> None:
        """What a speaker has said so far."""
        ...

    def noted(self, speaker: int, answer: Answer) -> None:
        """A speaker has ended."""
        ...

    def answered(self, answers: Sequence[Answer]) -> None:
        """All have."""
        ...

    def broken(self) -> None:
        """The question will get no further answer."""
        ...

    def say(self, line: str) -> None:
        """Tell people one thing."""
        ...


class PlainDisplay:
    """Lines without colour or columns."""

    labels: Sequence[str] = ()

    def asked(self, text: str, labels: Sequence[str]) -> None:
        """The question."""
        self.labels = labels
        print(f"> {text}", flush=True)

    def written(self, speaker: int, text: str) -> None:
        """Nothing until the answer is whole."""

    def noted(self, speaker: int, answer: Answer) -> None:
        """The answer and its figures."""
        print(f"[{self.labels[speaker]}] {answer.completion.response}\n  ({answer.note})", flush=True)

    def answered(self, answers: Sequence[Answer]) -> None:
        """An empty line."""
        print(flush=True)

    def broken(self) -> None:
        """Nothing to clear away."""

    def say(self, line: str) -> None:
        """To standard error: standard output has the answers alone."""
        print(line, file=sys.stderr, flush=True)


class JsonDisplay(PlainDisplay):
    """One object for each question."""

    def __init__(self, write: Callable[[dict[str, Any]], None]) -> None:
        self.write = write
        self.text = ""

    def asked(self, text: str, labels: Sequence[str]) -> None:
        """Kept until the answers are there."""
        self.text, self.labels = text, labels

    def noted(self, speaker: int, answer: Answer) -> None:
        """Nothing until all have ended."""

    def answered(self, answers: Sequence[Answer]) -> None:
        """The object."""
        rows = [
            {
                "model": label,
                "response": answer.completion.response,
                "tokens": len(answer.completion.response_tokens),
                "finished": answer.completion.finished,
                "score": answer.score,
                "kl": answer.kl,
                "seconds": round(answer.seconds, 3),
            }
            for label, answer in zip(self.labels, answers, strict=True)
        ]
        self.write({"prompt": self.text, "answers": rows})


class TerminalDisplay:
    """Answers as they are written, side by side."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self.live: Live | None = None
        self.labels: list[str] = []
        self.texts: list[str] = []
        self.notes: list[str] = []

    def asked(self, text: str, labels: Sequence[str]) -> None:
        """Begin to draw."""
        self.labels, self.texts, self.notes = list(labels), [""] * len(labels), [""] * len(labels)
        # Transient: what does not fit on the screen is cut while it is written, and printed whole at the end.
        self.live = Live(
            self, console=self.console, refresh_per_second=12, transient=True, vertical_overflow="ellipsis"
        )
        self.live.start()

    def written(self, speaker: int, text: str) -> None:
        """Seen at the next refresh."""
        self.texts[speaker] = text

    def noted(self, speaker: int, answer: Answer) -> None:
        """The whole answer with its figures."""
        self.texts[speaker], self.notes[speaker] = answer.completion.response, answer.note

    def answered(self, answers: Sequence[Answer]) -> None:
        """Draw it once more, to stay."""
        self.broken()
        self.console.print(self)

    def broken(self) -> None:
        """Draw no more."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def say(self, line: str) -> None:
        """Between the answers."""
        self.console.print(Text(line, style="dim"), soft_wrap=True)

    def __rich__(self) -> Table:
        """The answers so far, a column each."""
        table = Table(box=None, padding=(0, 2, 0, 0), expand=len(self.labels) > 1)
        for label in self.labels:
            table.add_column(Text(label, style="bold cyan"), ratio=1, overflow="fold")
        table.add_row(*(Text(text) for text in self.texts))
        table.add_row(*(Text(note, style="dim") for note in self.notes))
        return table
