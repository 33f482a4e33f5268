"""Who labels besides people: for the commands of `rlhf label`; no stage reads it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from rlhf.config.sections import Address, NonNegativeFloat, PositiveInt, Section


class JudgeConfig(Section):
    """A language model that votes, with `rlhf label judge --recipe`; its token is read from the environment alone."""

    # Of an OpenAI-compatible chat endpoint.
    url: Annotated[str, Address("RLHF_JUDGE_TOKEN")] = "http://127.0.0.1:8000/v1"
    model: str | None = None  # its name there
    rubric: str | None = None  # what makes a response better, such as a constitution; null: help, truth, no harm
    # A file with it instead; relative paths start at data.directory.
    rubric_file: Annotated[str | None, Address()] = None
    max_tokens: PositiveInt = 16  # of one answer; more for a model that thinks first
    request: str = "{}"  # a JSON object with other fields of each request; null in it takes one out
    concurrency: Annotated[int, Field(ge=1, le=256)] = 8  # questions in flight at once
    requests_per_minute: Annotated[float, Field(ge=0.01)] | None = None  # evenly spaced; null: no limit
    budget_tokens: PositiveInt | None = None  # of prompts and answers, over all repeats with an output; null: no limit
    patience: NonNegativeFloat = 600.0  # seconds for which a failing endpoint is asked again
    timeout: Annotated[float, Field(ge=0.1)] = 120.0  # seconds that one answer may take

    @model_validator(mode="after")
    def _one_rubric(self) -> JudgeConfig:
        if self.rubric is not None and self.rubric_file is not None:
            raise ValueError(f"rubric_file={self.rubric_file} beside rubric: there is one; remove one of them")
        if self.rubric is not None and not self.rubric.strip():
            raise ValueError(f"rubric={self.rubric!r} is empty; say in it what makes a response better, or remove it")
        return self


class LabellingConfig(Section):
    """Labels that do not come from people."""

    judge: JudgeConfig = JudgeConfig()
