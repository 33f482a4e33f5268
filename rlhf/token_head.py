"""The language model head as training asks it: log-probs of chosen tokens and entropies, never all logits at once.

Of a head's logits PPO needs two numbers a token, SFT one. They are computed chunk by chunk, and where there is more
than one chunk the backward pass computes the logits again, so that memory does not grow with the vocabulary: as in
Wijmans et al. 2024, "Cut your losses", with the entropy from the same pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from rlhf.narrow import autocast_dtype
from rlhf.products import GRAIN, Linear, fillers, input_gradient, linear, weight_gradient
from rlhf.shapes import AT_ONCE
from rlhf.tied import Receiver, Tie


@dataclass(frozen=True, eq=False)
class Asked:
    """What is asked of a head."""

    targets: Tensor  # [tokens] ids
    temperature: float
    entropy_gradient: bool  # whether the entropy is to be trained, too


class TokenHead(Linear):
    """A linear head that answers, while it is asked, [..., tokens, 2] log-probs and entropies in place of logits."""

    asked: Asked | None = None
    tie: Tie | None = None  # to the embeddings, where these are the same weights

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocabulary], or what is asked; hidden [..., tokens, width]."""
        if self.asked is None:
            return super().forward(hidden)
        return self.answer(hidden, self.weight, self.bias)

    def answer(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See `forward`."""
        asked = self.asked
        if asked is None:
            return linear(hidden, weight, bias)
        kind = autocast_dtype(hidden.device) or weight.dtype
        rows = hidden.flatten(0, -2).to(kind)
        if added := fillers(len(rows), rows.device):
            rows, asked = pad(rows, (0, 0, 0, added)), replace(asked, targets=pad(asked.targets, (0, added)))
        receiver = self.tie.take(weight) if self.tie and torch.is_grad_enabled() else None
        found: Tensor = _Figures.apply(rows, weight, bias, asked, kind, receiver)  # type: ignore[no-untyped-call]
        # No view, of which FSDP2 warns: its hooks would not see it change in place.
        return found[: len(rows) - added].view(*hidden.shape[:-1], 2).clone()


def head_of_tokens(model: Any) -> TokenHead | None:
    """A causal model's head, able to answer; None where it is no plain linear layer."""
    head = model.get_output_embeddings()
    if type(head) in (nn.Linear, Linear):
        head.__class__ = TokenHead  # in place, so that whoever shares its weights or wraps it goes on to
    return head if isinstance(head, TokenHead) else None


@contextmanager
def asking(head: TokenHead, asked: Asked) -> Iterator[None]:
    """Inside, a head answers a question."""
    head.asked = asked
    try:
        yield
    finally:
        head.asked = None


class _Figures(torch.autograd.Function):
    """See `TokenHead`; hidden [tokens, width], weight [vocabulary, width], result [tokens, 2] in float32 or wider.

    Computed in `kind`, that of hidden. As in `rlhf.narrow`, no copy of the weight is kept for the backward.
    """

    @staticmethod
    def forward(
        context: Any,
        hidden: Tensor,
        own_weight: Tensor,
        own_bias: Tensor | None,
        asked: Asked,
        kind: torch.dtype,
        receiver: Receiver | None,
    ) -> Tensor:
        weight, bias = own_weight.to(kind), None if own_bias is None else own_bias.to(kind)
        size = max(1, AT_ONCE // weight.shape[0])
        size -= size % GRAIN if size > GRAIN else 0
        parts, logits = [], None
        with torch.autocast(hidden.device.type, enabled=False):
            for rows, targets in zip(torch.split(hidden, size), torch.split(asked.targets, size), strict=True):
                logits = None  # or they would stand beside those of the next chunk
                logits = scaled(linear(rows, weight, bias), asked.temperature)
                parts.append(figures(logits, targets))
        found = torch.cat(parts) if parts else hidden.new_zeros(0, 3, dtype=torch.float32)
        # Overwritten by their gradient, so that a second backward has to compute them again.
        context.kept = logits if len(parts) == 1 and any(context.needs_input_grad) else None
        context.save_for_backward(hidden, own_weight, own_bias, asked.targets, found)
        context.asked, context.size, context.kind, context.receiver = asked, size, kind, receiver
        return found[:, :2].contiguous()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, own_weight, own_bias, all_targets, found = context.saved_tensors
        logits, context.kept = context.kept, None
        asked, size, kind = context.asked, context.size, context.kind
        weight, bias = own_weight.to(kind), None if own_bias is None else own_bias.to(kind)
        wanted = context.needs_input_grad
        of_hidden = torch.empty_like(hidden) if wanted[0] else None
        wide = torch.float32 if weight.dtype in (torch.float16, torch.bfloat16) else weight.dtype
        at_once = 0 < len(hidden) <= size
        of_weight = torch.zeros_like(weight, dtype=wide) if wanted[1] and not at_once else None
        of_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and wanted[2] else None
        with torch.autocast(hidden.device.type, enabled=False):
            for begin in range(0, len(hidden), size):
                part = slice(begin, begin + size)
                rows = hidden[part]
                logits = scaled(linear(rows, weight, bias), asked.temperature) if logits is None else logits
                upstream = gradients[0][part] / asked.temperature
                gradient = gradient_of(logits, all_targets[part], found[part], upstream, asked.entropy_gradient)
                logits, gradient = None, gradient.to(weight.dtype)
                if of_hidden is not None:
                    of_hidden[part] = input_gradient(gradient, weight)
                if begin + size >= len(hidden):  # the last, and nothing else reads its rounded copy
                    del weight
                if wanted[1] and at_once:
                    of_weight = weight_gradient(gradient, rows)  # widened below, when its operands have gone
                elif of_weight is not None and of_weight.dtype == gradient.dtype:
                    of_weight.addmm_(gradient.T, rows)
                elif of_weight is not None:
                    of_weight += gradient.T @ rows
                if of_bias is not None:
                    of_bias += gradient.sum(0, dtype=wide)
                del gradient  # or it would stand beside the next chunk's logits
        if of_weight is not None:
            of_weight = of_weight.to(own_weight.dtype)
            if context.receiver is not None and context.receiver.accepts(of_weight):
                of_weight = None
        return of_hidden, of_weight, None if of_bias is None else of_bias.to(own_bias.dtype), None, None, None


def scaled(logits: Tensor, temperature: float) -> Tensor:
    """Logits at a temperature, in float32 or wider; may change them in place."""
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    return logits if temperature == 1.0 else logits.div_(temperature)


def figures(logits: Tensor, targets: Tensor) -> Tensor:
    """[tokens, 3]: log-probs of the targets, entropies, and the log normalisers; all in nats."""
    normaliser = logits.logsumexp(-1)
    probabilities = (logits - normaliser[:, None]).exp_()
    # H = log Z - E[logit]: no second tensor of the vocabulary's size besides the probabilities.
    entropy = normaliser - probabilities.mul_(logits).sum(-1)
    chosen = logits.gather(-1, targets[:, None]).squeeze(-1)
    return torch.stack([chosen - normaliser, entropy, normaliser], dim=-1)


def gradient_of(logits: Tensor, targets: Tensor, found: Tensor, upstream: Tensor, with_entropy: bool) -> Tensor:
    """The gradient [tokens, vocabulary] that reaches the logits: of a log-prob 1[target] - p, of H -p (log p + H).

    In place of the logits.
    """
    of_logprob, of_entropy = upstream[:, :1], upstream[:, 1:2]
    shifted = logits.sub_(found[:, 2:])
    if with_entropy:
        gradient = shifted.exp().mul_(shifted.add_(found[:, 1:2]).mul_(-of_entropy).sub_(of_logprob))
    else:
        gradient = shifted.exp_().mul_(-of_logprob)
    return gradient.scatter_add_(-1, targets[:, None], of_logprob.to(gradient.dtype))
