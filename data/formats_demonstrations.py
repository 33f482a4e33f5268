"""Formats that hold prompts and demonstrations: from a record to examples, ValueError for what does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data.fields import answer_of, messages_of, need, prompt_of, text_of
from rlhf.types import Demonstration, Message, Prompt


def parse_prompt(record: Mapping[str, Any]) -> list[Prompt]:
    """{"prompt": text or turns}."""
    return [prompt_of(record)]


def parse_prompt_completion(record: Mapping[str, Any]) -> list[Demonstration] | list[Prompt]:
    """{"prompt": text or turns, "completion": text or turns}; all turns but the last answer join the prompt.

    Of one whose `label` is false, as TRL's unpaired preferences have it, nothing but the prompt is to be learned from.
    """
    prompt, completion = prompt_of(record), need(record, "completion")
    if _was_rejected(record.get("label")):
        return [prompt]
    if not isinstance(completion, list):
        return [Demonstration(prompt, text_of(completion, "completion"))]
    turns = messages_of(completion, "completion")
    if len(turns) > 1:
        before = (Message("user", prompt.content),) if isinstance(prompt.content, str) else prompt.content
        prompt = Prompt((*before, *turns[:-1]))
    return [Demonstration(prompt, text_of(answer_of(turns, "completion"), "completion"))]


def _was_rejected(label: Any) -> bool:
    """Whether a label says so. One that is no truth value is something else's; of some it cannot be told."""
    if isinstance(label, bool):
        return not label
    if (isinstance(label, int | float) and label in (0, 1)) or str(label).lower() in ("true", "false"):
        raise ValueError(f"label={label!r} may say whether the completion was good; write true or false, or rename it")
    return False


def parse_messages(record: Mapping[str, Any]) -> list[Demonstration]:
    """{"messages": turns, the last of them the assistant's}."""
    turns = messages_of(need(record, "messages"), "messages")
    if len(turns) < 2:
        raise ValueError("messages must end with an assistant turn behind at least one other")
    return [Demonstration(Prompt(turns[:-1]), text_of(answer_of(turns, "messages"), "messages"))]


def parse_instruction(record: Mapping[str, Any]) -> list[Demonstration]:
    """{"instruction", "output"}, and "input", "system", "history" (pairs of texts) where a data set has them."""
    prompt = instructed(need(record, "instruction"), record.get("input"))
    before: list[Message] = []
    if record.get("system") not in (None, ""):
        before.append(Message("system", text_of(record["system"], "system")))
    history = record.get("history")
    if history is not None and not isinstance(history, list):
        raise ValueError("history is not a list of pairs")
    for pair in history or []:
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError("history is not a list of pairs")
        before.append(Message("user", text_of(pair[0], "history")))
        before.append(Message("assistant", text_of(pair[1], "history")))
    if before:
        prompt = Prompt((*before, Message("user", prompt.text)))
    return [Demonstration(prompt, text_of(need(record, "output"), "output"))]


def parse_self_instruct(record: Mapping[str, Any]) -> list[Demonstration]:
    """{"instruction", "instances": [{"input", "output"}]}: one demonstration for each instance."""
    instances = need(record, "instances")
    if not isinstance(instances, list) or not instances:
        raise ValueError("instances are not a list with content")
    found = []
    for instance in instances:
        if not isinstance(instance, dict):
            raise ValueError("an instance is an object with input and output")
        prompt = instructed(need(record, "instruction"), instance.get("input"))
        found.append(Demonstration(prompt, text_of(need(instance, "output"), "output")))
    return found


def instructed(instruction: Any, value: Any) -> Prompt:
    """The prompt that an instruction and its input make: the two, with a blank line between."""
    text = text_of(instruction, "instruction", may_be_empty=True)
    if value is not None and value != "":
        text = f"{text}\n\n{text_of(value, 'input', may_be_empty=True)}"
    return Prompt(text_of(text, "instruction"))
