"""Whom `rlhf label judge` asks, and how: what a recipe says in labelling.judge, and what the command says instead."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.judging.asking import Settings, answer_limit
from data.judging.endpoint import checked_url, request_of, token_for
from data.judging.questions import read_rubric
from data.records import shown
from launch.commands.run import resolve
from rlhf.config import JudgeConfig
from rlhf.errors import ConfigError

OWN = ("model", "messages", "stream", "n")  # fields of a request that --request may not set


def settings_of(
    recipe: str | None, given: Mapping[str, Any], rubric: Path | None, directory: str | None, allow_http: bool
) -> Settings:
    """A recipe's settings, with those that the command has given in their place, and the environment's token.

    given: fields of JudgeConfig by name, None where the command does not say. Raises ConfigError for what cannot be
    used, DataError for a rubric that cannot be read.
    """
    config = JudgeConfig()
    if recipe is not None:
        resolved = resolve(recipe, None, directory)
        config, directory = resolved.labelling.judge, resolved.data.directory
    config = config.model_copy(update={name: value for name, value in given.items() if value is not None})
    if config.model is None:
        raise ConfigError("--model: is not given; give the model's name at the endpoint, or set labelling.judge.model")
    if not config.model.strip():
        raise ConfigError("--model: is empty; give the model's name at the endpoint")
    settings = Settings(
        url=checked_url(config.url),
        model=config.model,
        rubric=rubric_of(config, rubric, directory),
        max_tokens=config.max_tokens,
        extra=fields_of(config.request),
        token=token_for(config.url, allow_http),
        concurrency=config.concurrency,
        requests_per_minute=config.requests_per_minute,
        budget_tokens=config.budget_tokens,
        patience=config.patience,
        timeout=config.timeout,
    )
    answer_limit(request_of(settings.model, "", settings.max_tokens, settings.extra))
    return settings


def rubric_of(config: JudgeConfig, rubric: Path | None, directory: str | None) -> str:
    """The criteria: those of the command's file, else the recipe's, else ours."""
    if rubric is not None:
        return read_rubric(rubric)
    if config.rubric is not None:
        return config.rubric.strip()
    if config.rubric_file is not None:
        return read_rubric(Path(directory or ".") / config.rubric_file, "labelling.judge.rubric_file")
    return read_rubric(None)


def fields_of(text: str) -> dict[str, Any]:
    """The fields that --request gives. Raises ConfigError for what is no JSON object, or holds what is ours."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f"--request {shown(text)}: is no JSON object; give one such as '{{\"top_p\": 0.9}}'")
    if taken := [name for name in OWN if name in found]:
        raise ConfigError(f"--request: {taken[0]} is not for it to set; leave it out")
    return found
