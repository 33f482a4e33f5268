"""What a field of a record may hold. Every function raises ValueError, in one line, for what does not fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from data.records import shown
from rlhf.types import Message, Prompt, Role

# Names of roles, as data sets write them. Open Assistant's people are prompters.
ROLES: Mapping[str, Role] = {"system": "system", "user": "user", "assistant": "assistant", "prompter": "user"}

LATEST = 1e11  # seconds since 1970: the year 5138, and less than any recent moment in milliseconds


class EmptyText(ValueError):
    """A text without content."""

    kind = "empty"


def need(record: Mapping[str, Any], name: str) -> Any:
    """A field that must be there."""
    if name not in record:
        raise ValueError(f"no field {name!r}")
    return record[name]


def text_of(value: Any, name: str, *, may_be_empty: bool = False) -> str:
    """A text, byte for byte."""
    if not isinstance(value, str) or not (may_be_empty or value.strip()):
        error = EmptyText if isinstance(value, str) else ValueError
        raise error(f"{name}={shown(value)} is not a text{'' if may_be_empty else ' with content'}")
    value.encode()  # half of a surrogate pair passes json, but no tokenizer; UnicodeEncodeError is a ValueError
    return value


def messages_of(value: Any, name: str) -> tuple[Message, ...]:
    """Turns of a conversation; one of them at least."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name}={shown(value)} is not a list of messages")
    turns = []
    for turn in value:
        role = turn.get("role") if isinstance(turn, dict) else None
        if not isinstance(role, str) or role not in ROLES:
            raise ValueError(f"{name}: {shown(turn)} has no role that is system, user or assistant")
        turns.append(Message(ROLES[role], text_of(turn.get("content"), f"{name}: content", may_be_empty=True)))
    return tuple(turns)


def prompt_of(record: Mapping[str, Any]) -> Prompt:
    """The field `prompt`: a text, or the turns so far; behind the text of a field `system`, if there is one."""
    value, system = need(record, "prompt"), record.get("system")
    content = messages_of(value, "prompt") if isinstance(value, list) else text_of(value, "prompt")
    if system in (None, ""):
        return Prompt(content)
    turns = (Message("user", content),) if isinstance(content, str) else content
    if turns[0].role == "system":
        raise ValueError("prompt has a system turn beside the field system; remove one of them")
    return Prompt((Message("system", text_of(system, "system")), *turns))


def answer_of(turns: Sequence[Message], name: str) -> str:
    """What the assistant says in the last turn."""
    if turns[-1].role != "assistant":
        raise ValueError(f"{name} must end with an assistant turn")
    return turns[-1].content


def response_of(record: Mapping[str, Any], name: str, prompt: Prompt) -> str:
    """A response to compare: a text, or one assistant turn, which may stand behind the prompt's turns.

    An empty text is a hole in the data. A response of nothing is a turn with empty content.
    """
    value = need(record, name)
    if not isinstance(value, list):
        return text_of(value, name)
    turns = messages_of(value, name)
    before = prompt.content if not isinstance(prompt.content, str) else (Message("user", prompt.content),)
    if len(turns) > 1 and turns[:-1] != before:
        raise ValueError(f"{name} has {len(turns)} turns; give the response alone, or the prompt's turns before it")
    return answer_of(turns, name)


def number_of(value: Any, name: str, least: float = -math.inf) -> float:
    """A finite number, not below the least."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < least:
        raise ValueError(f"{name}={shown(value)} is not a number{'' if least == -math.inf else f' from {least:g} up'}")
    return float(value)


def moment_of(value: Any, name: str) -> float:
    """A moment in seconds since 1970: such a number, or a text in ISO 8601 with its zone."""
    seconds = value
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
            seconds = moment.timestamp() if moment.tzinfo else None
        except ValueError:
            seconds = None
    if not isinstance(seconds, bool) and isinstance(seconds, int | float) and 0 <= seconds < LATEST:
        return float(seconds)
    raise ValueError(f"{name}={shown(value)} is no time: give ISO 8601 with its zone, or seconds since 1970")


def written_moment(seconds: float) -> str:
    """A moment as `moment_of` reads it: ISO 8601 in UTC, to the microsecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def flag_of(value: Any, name: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={shown(value)} is not true or false")
    return value


def name_of(value: Any, name: str) -> str:
    """Who somebody is: a text or a whole number."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"{name}={shown(value)} is not a name")
    return text_of(str(value), name, may_be_empty=True)
