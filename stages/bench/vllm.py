"""One side of `rlhf bench generate --against vllm`, run by the interpreter of vLLM's own environment.

python -m stages.bench.vllm '{"size": "15M", ...}' [float32 | bfloat16] [cpu | cuda]
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from importlib import import_module
from typing import Any

from rlhf.memory.beside import BLOCK
from stages.bench.load import Load, checksum, flops, models
from stages.bench.turns import Turns


def main(load: Load, dtype: str, device: str) -> None:
    """Take turns until told to end. Log-probs are asked for, as PPO needs them; nothing becomes text."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    vllm = import_module("vllm")
    turns = Turns()
    policy = models(load).policy
    facts = {"checksum": checksum(policy), "tokens": sum(load.lengths()), "version": vllm.__version__}
    longest, shape = load.prompt_tokens[1] + load.response_length, load.shape
    blocks = -(-longest // BLOCK) + 1  # of keys and values, one more than a sequence fills
    of_token = 2 * shape.layers * shape.key_value * (2 if dtype == "bfloat16" else 4)  # bytes
    with tempfile.TemporaryDirectory() as folder:
        policy.save_pretrained(folder)
        del policy
        engine = vllm.LLM(
            folder,
            dtype=dtype,
            skip_tokenizer_init=True,
            max_model_len=longest,
            seed=load.seed,
            kv_cache_memory_bytes=load.batch * blocks * BLOCK * of_token,
            gpu_memory_utilization=0.01,  # asked for beside our side; the line above says how much is taken
        )
    prompts: list[Any] = [{"prompt_token_ids": prompt} for prompt in load.prompts()]
    turns.ready(**facts, flops={"generation": flops(load)["generation"]})
    going_on, number = True, 0
    while going_on:
        number += 1
        started = time.perf_counter()
        with turns.phase("generation"):
            answers = engine.generate(prompts, asked(vllm, load, number), use_tqdm=False)
        sampled = sum(len(answer.outputs[0].token_ids) for answer in answers)
        going_on = turns.done(time.perf_counter() - started, response_tokens=sampled)


def asked(vllm: Any, load: Load, number: int) -> list[Any]:
    """How each response is sampled: its length ends it, as on the other side."""
    common = {"temperature": 1.0, "seed": number, "ignore_eos": True, "detokenize": False, "logprobs": 0}
    return [vllm.SamplingParams(max_tokens=length, **common) for length in load.lengths()]


if __name__ == "__main__":
    main(Load(**json.loads(sys.argv[1])), sys.argv[2], sys.argv[3])
