"""Sampling by vLLM in the training process, which has a copy of the policy's weights of its own.

For one process, in an environment that has vLLM and our dependencies. As on servers (`rlhf.generation.vllm`) the
log-probs are those of another implementation, so PPO computes them again and logs how far apart the two are. vLLM takes
a process for its own: what it changes in ours is put back.
"""

from __future__ import annotations

import copy
import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlhf.adapters import is_adapted
from rlhf.config import GenerationConfig
from rlhf.distributed import join_process_group
from rlhf.errors import GenerationError
from rlhf.generation.answers import as_sampled, seeds_of
from rlhf.generation.inside_vllm.rlhf_weights import keep_weights_in_place
from rlhf.generation.weights import weights_of
from rlhf.memory.beside import longest_sequence, room
from rlhf.shapes import shape_of_config
from rlhf.types import Ended, Sampled

SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # cores are ours to give
    "VLLM_NO_USAGE_STATS": "1",
}
TRIED = "vllm 0.32"
# What it raises here where it cannot start, and what we meet in a version that names things otherwise.
UNLIKE = (ImportError, ValueError, RuntimeError, AssertionError, TypeError, AttributeError, OSError)
INSTEAD = "use ppo.generation.weights=server, or engine=native with weights=shared"


class VllmHere:
    """See `rlhf.types.Generator`."""

    exact = False
    ordered = False  # they end as vLLM schedules them

    def __init__(
        self, policy: nn.Module, stop_id: int, pad_id: int, config: GenerationConfig, bfloat16: bool = False
    ) -> None:
        self.policy = policy
        self.stop_id = stop_id
        self.pad_id = pad_id
        self.config = config
        self.engine, self.context = start(policy, config, bfloat16)
        self.current = False  # whether vLLM has the policy's present weights

    def load(self, policy: nn.Module) -> None:
        """The policy's weights have changed: vLLM gets them before it samples again."""
        self.policy = policy
        self.current = False

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        rows: Sequence[int],
        *,
        seed: int,
        step: int,
        ended: Ended | None = None,
    ) -> Sampled:
        """Answer token prompts; see `rlhf.types.Generator`. Raises GenerationError.

        `logprobs` are vLLM's, of what top-p leaves; they are for comparison, see `exact`.
        """
        longest = max((len(prompt) for prompt in prompts), default=0)
        if longest + self.config.max_new_tokens > self.context:
            raise GenerationError(
                f"vllm: has room for {self.context:,} tokens where a prompt of {longest:,} and max_new_tokens="
                f"{self.config.max_new_tokens} want more; lower it, or leave such prompts out"
            )
        if not self.current:
            self._give_weights()
        for place, (prompt, own) in enumerate(zip(prompts, seeds_of(seed, step, rows), strict=True)):
            self.engine.add_request(str(place), {"prompt_token_ids": list(prompt)}, self._question(own))
        found: dict[int, tuple[list[int], list[float]]] = {}
        while self.engine.has_unfinished_requests():
            with unchanged():
                answers = self.engine.step()
            for answer in answers:
                if answer.finished:
                    place, (tokens, logprobs) = int(answer.request_id), _read(answer)
                    found[place] = tokens, logprobs
                    if ended is not None:
                        ended(place, tokens)
        return as_sampled([found[place] for place in range(len(prompts))], self.stop_id, self.pad_id)

    def _question(self, seed: int) -> Any:
        vllm = import_module("vllm.sampling_params")
        return vllm.SamplingParams(
            max_tokens=self.config.max_new_tokens,
            temperature=self.config.temperature,
            top_p=self.config.top_p,
            seed=seed,
            stop_token_ids=[self.stop_id],
            ignore_eos=True,  # a response ends at one token alone
            logprobs=0,  # of the sampled tokens
            detokenize=False,
            output_kind=vllm.RequestOutputKind.FINAL_ONLY,
        )

    def _give_weights(self) -> None:
        weights: list[tuple[str, Tensor]] = [(weight.name, weight.make()) for weight in weights_of(self.policy)]
        self.engine.collective_rpc(lambda worker: worker.reload_weights(weights_iterator=iter(weights)))
        self.engine.reset_prefix_cache()  # keys and values of the old weights
        self.current = True


def start(policy: nn.Module, config: GenerationConfig, bfloat16: bool) -> tuple[Any, int]:
    """vLLM's engine over a model of the policy's shape, with weights still to come, and its context in tokens.

    Room for keys and values is for `batch_size` rows, as `rlhf.memory.beside` says and counts. Raises GenerationError
    where it does not start.
    """
    bare: Any = policy.get_base_model() if is_adapted(policy) else policy
    described = copy.deepcopy(bare.config)
    described.architectures = described.architectures or [type(bare).__name__]
    shape = shape_of_config(described.to_dict(), "policy")
    context = longest_sequence(config.max_new_tokens, shape.context)
    tokens = room(config.batch_size, config.max_new_tokens, shape.context)
    of_token = 2 * shape.layers * shape.key_value * (2 if bfloat16 else 4)
    for name, value in SETTINGS.items():
        os.environ[name] = value
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    with tempfile.TemporaryDirectory() as folder, unchanged():
        described.save_pretrained(folder)
        try:
            arguments = import_module("vllm.engine.arg_utils").EngineArgs
            engine = import_module("vllm.v1.engine.llm_engine").LLMEngine
            # vLLM takes a group that is there; its own would know no tensors of the CPU where there is a GPU.
            join_process_group(alone=True)
            keep_weights_in_place()
            options = arguments(
                model=folder,
                skip_tokenizer_init=True,
                load_format="dummy",
                dtype="bfloat16" if bfloat16 else "float32",
                max_model_len=context,
                max_num_seqs=config.batch_size,
                kv_cache_memory_bytes=tokens * of_token,
                gpu_memory_utilization=0.01,  # asked for beside what is there; the line above says how much is taken
                logprobs_mode="processed_logprobs",
                enforce_eager=not torch.cuda.is_available(),  # compiling for a CPU takes minutes
                disable_log_stats=True,
            )
            return engine.from_engine_args(options), context
        except UNLIKE as error:
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise GenerationError(f"vllm: does not start here ({said}); {TRIED} was tried; {INSTEAD}") from error


@contextmanager
def unchanged() -> Iterator[None]:
    """Inside, vLLM may do to the process what it does; random states and the way to set threads are put back.

    It seeds all random states when it starts, and draws from torch's while it samples, also where rows have seeds.
    """
    threads, count, states = torch.set_num_threads, torch.get_num_threads(), (random.getstate(), np.random.get_state())
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            yield
    finally:
        torch.set_num_threads = threads
        threads(count)
        random.setstate(states[0])
        np.random.set_state(states[1])


def _read(answer: Any) -> tuple[list[int], list[float]]:
    """Tokens of a response, and their log-probs."""
    output = answer.outputs[0]
    tokens = [int(token) for token in output.token_ids]
    return tokens, [float(of[token].logprob) for token, of in zip(tokens, output.logprobs, strict=True)]
