"""Run by the interpreter of vLLM's own environment: greedy responses of a policy, or scores of a reward model.

    python vllm_answers.py REQUEST ANSWER

REQUEST is JSON: {"model": directory, "kind": "policy" | "reward", "rows": token ids, "new_tokens": n, "context": n}.
ANSWER gets a JSON list: of a policy the token ids of each response, and the log-probs of its prompt's tokens from the
second on; of a reward model a raw score of each row.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Load the model once, answer all rows."""
    from vllm import LLM, PoolingParams, SamplingParams

    request: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    options = {"dtype": "float32", "enforce_eager": True, "max_model_len": request["context"]}
    rows = [{"prompt_token_ids": row} for row in request["rows"]]
    if request["kind"] == "policy":
        greedy = SamplingParams(temperature=0.0, max_tokens=request["new_tokens"], prompt_logprobs=0)
        answered = LLM(request["model"], **options).generate(rows, greedy)
        answers = [
            {"response": list(answer.outputs[0].token_ids), "prompt_logprobs": of_prompt(answer)} for answer in answered
        ]
    else:
        raw = PoolingParams(use_activation=False)  # the score itself, not its sigmoid
        pooled = LLM(request["model"], runner="pooling", **options).classify(rows, pooling_params=raw)
        answers = [answer.outputs.probs[0] for answer in pooled]
    Path(sys.argv[2]).write_text(json.dumps(answers))


def of_prompt(answer: Any) -> list[float]:
    """Log-probs of a prompt's tokens, but for the first, before which nothing stands."""
    pairs = zip(answer.prompt_token_ids[1:], answer.prompt_logprobs[1:], strict=True)
    return [known[token].logprob for token, known in pairs]


if __name__ == "__main__":
    main()
