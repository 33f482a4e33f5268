"""Sampling in the training process: log-probs come for free, and no row waits for another where the policy packs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.config import GenerationConfig
from rlhf.generation.between import PLAIN, compiled
from rlhf.generation.continuous import Reads, decode_continuously
from rlhf.generation.decoder import decoder_of
from rlhf.generation.draft import Draft
from rlhf.generation.graphs import CudaRecorder, GraphedDecoder, obstacle
from rlhf.generation.noise import uniforms
from rlhf.generation.together import decode_together
from rlhf.lockstep import in_lockstep
from rlhf.packing import packs
from rlhf.products import packed
from rlhf.sharding import device_of, gathered, is_sharded
from rlhf.types import Ended, Sampled

WORTH_COPIES = 256  # tokens that may be sampled, from which copies of the weights are worth their making


class NativeGenerator:
    """Samples from the policy's own modules, whose weights it shares."""

    def __init__(
        self, policy: nn.Module, stop_id: int, pad_id: int, config: GenerationConfig, bfloat16: bool = False
    ) -> None:
        self.policy = policy
        self.stop_id = stop_id
        self.pad_id = pad_id
        self.config = config
        self.bfloat16 = bfloat16
        self.device = device_of(policy)
        # Below float32 a cached decode and a training forward differ by more than rounding.
        self.exact = not bfloat16
        self.ordered = True
        self.lockstep = is_sharded(policy) and config.weights != "replica"
        # Sees each token as it is sampled: the rows of the call that still decode, and their new tokens.
        self.watch: Callable[[Tensor, Tensor], None] | None = None
        self.limits: Mapping[int, int] = {}  # rows that end after fewer tokens than max_new_tokens

    @property
    def without_graphs(self) -> str | None:
        """Why decoding is no CUDA graph although the configuration has it so; None where it is, or nobody asked."""
        return obstacle(self.policy, self.device, self.lockstep) if self.config.cuda_graphs else None

    def load(self, policy: nn.Module) -> None:
        """The weights are shared, so there is nothing to copy."""
        self.policy = policy

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
        """Answer token prompts; see `rlhf.types.Generator`. Log-probs are of the untruncated distribution."""
        longest = self.config.max_new_tokens
        limits = [min(longest, self.limits.get(row, longest)) for row in rows]
        draft = Draft(
            prompts, uniforms(seed, step, rows, longest), limits, self.stop_id, self.pad_id, self.config, self.device
        )
        draft.watch, draft.ended = self.watch, ended
        training = self.policy.training
        self.policy.eval()
        with (
            nullcontext() if self.lockstep else gathered(self.policy),
            torch.autocast(
                self.device.type, torch.bfloat16, enabled=self.bfloat16, cache_enabled=not self.lockstep
            ),  # see `rlhf.sharding.autocast`; gathered for many tokens, weights are worth a copy
        ):
            self._decode(draft, prompts)
        self.policy.train(training)
        return draft.sampled()

    def _decode(self, draft: Draft, prompts: Sequence[Sequence[int]]) -> None:
        policy: Any = self.policy
        # Copies of all weights take as long as some dozens of steps of a single response gain.
        copied = not self.lockstep and int(draft.limits.sum()) >= WORTH_COPIES
        graphs = copied and self.config.cuda_graphs and self.without_graphs is None
        between = compiled(self.device) if graphs else PLAIN
        decoder = decoder_of(policy, self.bfloat16, between) if packs(policy) and copied else None
        by_modules = policy if decoder is None else policy.get_output_embeddings()
        reads: Reads | None = decoder
        if graphs and decoder is not None:
            reads = GraphedDecoder(decoder, CudaRecorder(self.device))
        with packed(by_modules, self.bfloat16) if copied else nullcontext():
            if packs(policy):
                decode_continuously(policy, draft, self.lockstep, reads)
            else:
                for chunk in self._chunks(prompts):
                    decode_together(policy, draft, chunk, self.lockstep)

    def _chunks(self, prompts: Sequence[Sequence[int]]) -> list[list[int] | None]:
        """Rows that are decoded together, of similar prompts."""
        size = self.config.batch_size
        by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        chunks: list[list[int] | None] = [by_length[i : i + size] for i in range(0, len(by_length), size)]
        return in_lockstep(chunks) if self.lockstep else chunks
