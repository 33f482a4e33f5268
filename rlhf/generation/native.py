"""Sampling in the training process: a key-value cache, finished rows dropped, log-probs for free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from rlhf.batching import pad
from rlhf.config import GenerationConfig
from rlhf.distributed import global_max
from rlhf.generation.noise import uniforms
from rlhf.lockstep import in_lockstep
from rlhf.logprobs import gather_logprobs, position_ids
from rlhf.sharding import device_of, gathered, is_sharded
from rlhf.types import Sampled


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
        self.lockstep = is_sharded(policy) and config.weights != "replica"
        # Sees each token as it is sampled: the rows of the batch that still decode, and their new tokens.
        self.watch: Callable[[Tensor, Tensor], None] | None = None

    def load(self, policy: nn.Module) -> None:
        """The weights are shared, so there is nothing to copy."""
        self.policy = policy

    @torch.no_grad()
    def sample(self, prompts: Sequence[Sequence[int]], rows: Sequence[int], *, seed: int, step: int) -> Sampled:
        """Answer token prompts; see `rlhf.types.Generator`. Log-probs are of the untruncated distribution."""
        length = self.config.max_new_tokens
        noise = uniforms(seed, step, rows, length)
        responses = torch.full((len(prompts), length), self.pad_id)
        logprobs = torch.zeros(len(prompts), length)
        kept = torch.zeros(len(prompts), length)  # log of the probability that top-p keeps
        lengths = torch.zeros(len(prompts), dtype=torch.long)
        size = self.config.batch_size
        by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        chunks: list[list[int] | None] = [by_length[i : i + size] for i in range(0, len(by_length), size)]
        training = self.policy.training
        self.policy.eval()
        with nullcontext() if self.lockstep else gathered(self.policy):
            for chunk in in_lockstep(chunks) if self.lockstep else chunks:
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
                    decoded = self._decode([prompts[i] for i in chunk or ()], noise[chunk or []])
                if chunk is not None:
                    responses[chunk], logprobs[chunk], kept[chunk], lengths[chunk] = (part.cpu() for part in decoded)
        self.policy.train(training)
        width = int(lengths.max())
        mask = torch.arange(width) < lengths[:, None]
        responses, logprobs = responses[:, :width], logprobs[:, :width]
        finished = ((responses == self.stop_id) & mask).any(-1)
        return Sampled(responses, logprobs, logprobs - kept[:, :width], mask, finished)

    def _decode(self, prompts: list[Sequence[int]], noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Responses, log-probs, what top-p kept, and lengths of one batch; of none, it only makes the others' calls."""
        tokens, attention_mask = (part.to(self.device) for part in pad(prompts or [[self.pad_id]], self.pad_id, "left"))
        noise = noise.to(self.device)
        responses = torch.full((len(prompts), noise.shape[1]), self.pad_id, device=self.device)
        logprobs, log_kept = (torch.zeros(len(prompts), noise.shape[1], device=self.device) for _ in range(2))
        lengths = torch.zeros(len(prompts), dtype=torch.long, device=self.device)
        live = torch.arange(len(prompts), device=self.device)  # rows of the batch that still decode
        cache = DynamicCache(config=self.policy.config)  # type: ignore[arg-type]
        positions = position_ids(attention_mask)
        for t in range(noise.shape[1]):
            if self.lockstep and not global_max(len(live)):
                break
            if not len(live):
                self._accompany()
                continue
            output = self.policy(
                input_ids=tokens,
                attention_mask=attention_mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            logits = output.logits[:, -1].float() / self.config.temperature
            chosen, log_kept[live, t] = choose(logits, noise[live, t], self.config.top_p)
            responses[live, t] = chosen
            logprobs[live, t] = gather_logprobs(logits, chosen)
            lengths[live] = t + 1
            if self.watch is not None:
                self.watch(live, chosen)
            alive = chosen != self.stop_id
            if not alive.all():
                kept = alive.nonzero().squeeze(-1)
                if not len(kept) and not self.lockstep:
                    break
                live, chosen, attention_mask = live[kept], chosen[kept], attention_mask[kept]
                positions = positions[kept]
                cache.batch_select_indices(kept)
            tokens = chosen.unsqueeze(-1)
            attention_mask = torch.cat([attention_mask, attention_mask.new_ones(len(live), 1)], dim=-1)
            positions = positions[:, -1:] + 1
        return responses, logprobs, log_kept, lengths

    def _accompany(self) -> None:
        """A forward of nothing, while other ranks still decode."""
        self.policy(input_ids=torch.tensor([[self.pad_id]], device=self.device), use_cache=False, logits_to_keep=1)


def choose(logits: Tensor, noise: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Tokens [batch] by inversion: the first whose cumulative probability exceeds the noise.

    logits [batch, vocabulary] at the sampling temperature; noise [batch] uniform in [0, 1). One number a token, so that
    the noise can be keyed; top_p < 1 keeps the smallest set of tokens with that much probability (Holtzman et al.
    2020). Also the log of the probability [batch] that was kept, in nats.
    """
    probabilities = logits.double().softmax(-1)
    if top_p < 1.0:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        beyond = ordered.cumsum(-1) - ordered >= top_p
        probabilities = probabilities.masked_fill(beyond.scatter(-1, order, beyond), 0.0)
    cumulative = probabilities.cumsum(-1)
    target = noise.unsqueeze(-1) * cumulative[:, -1:]
    # right=True steps over tokens of no probability, whose cumulative value equals their neighbour's.
    chosen = torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)
    kept = cumulative[:, -1].log() if top_p < 1.0 else torch.zeros_like(noise)
    return chosen, kept.to(torch.float32)
