"""A reward that breaks where a test wants it to: scores of responses to some prompts are not finite."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

SPOILED, ASKED = "RLHF_TEST_SPOILED", "RLHF_TEST_ASKED"  # for other processes: prompts' scores, a file of who was asked
spoiled: dict[str, float] = {}  # prompts' scores
asked: list[list[str]] = []  # prompts, call by call


def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Longer is better, but for what is spoiled."""
    asked.append(list(prompts))
    if path := os.environ.get(ASKED):
        with open(f"{path}.{os.environ.get('RANK', '0')}", "a", encoding="utf-8") as file:
            file.write(json.dumps(list(prompts)) + "\n")
    broken = {**json.loads(os.environ.get(SPOILED, "{}")), **spoiled}
    return [broken.get(prompt, len(response) / 10) for prompt, response in zip(prompts, responses, strict=True)]
