"""Log-probabilities of chosen tokens and the entropy of their distributions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rlhf.trunk import PolicyWithValueHead


class TokenLogprobs(NamedTuple):
    """Figures of the response tokens of a batch."""

    logprobs: Tensor  # [batch, response] nats
    entropy: Tensor  # [batch, response] nats
    values: Tensor | None = None  # [batch, response] of the states before, where the model has a value head too


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions [batch, length] that count attended tokens from 0, so that left padding shifts nothing."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def gather_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """log softmax(logits)[tokens] in float32 or wider.

    logits [..., vocabulary], tokens [...] ids. The target's logit less the log normaliser, so that no second tensor
    of the vocabulary's size is made.
    """
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    chosen = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return chosen - logits.logsumexp(-1)


def response_logprobs(
    model: nn.Module,
    tokens: Tensor,
    attention_mask: Tensor,
    response_length: int,
    temperature: float,
    entropy_gradient: bool = False,
) -> TokenLogprobs:
    """Log-probs that a causal model gives the last `response_length` tokens of each row, at a temperature.

    tokens, attention_mask [batch, prompt + response]. The language model head runs on the response positions alone:
    the logits before each response token, that is from the last prompt token to the last but one of the response.
    entropy_gradient: whether the entropy is to be trained, too.
    """
    output = model(
        input_ids=tokens,
        attention_mask=attention_mask,
        position_ids=position_ids(attention_mask),
        use_cache=False,
        logits_to_keep=response_length + 1,
    )
    logits = output.logits[:, :-1].float() / temperature
    responses = tokens[:, -response_length:]
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        log_distribution = (logits if entropy_gradient else logits.detach()).log_softmax(-1)
        entropy = -(log_distribution.exp() * log_distribution).sum(-1)
    values = getattr(output, "state_values", None)
    values = None if values is None else values[:, :-1].float()
    return TokenLogprobs(gather_logprobs(logits, responses), entropy, values)


def response_values(model: nn.Module, tokens: Tensor, attention_mask: Tensor, response_length: int) -> Tensor:
    """Values [batch, response] of the state before each response token: the head at the token before it.

    model: a value model, or a policy with a value head.
    """
    on_trunk = isinstance(model, PolicyWithValueHead)
    output = model(
        input_ids=tokens,
        attention_mask=attention_mask,
        position_ids=position_ids(attention_mask),
        use_cache=False,
        **{"logits_to_keep": response_length + 1} if on_trunk else {},
    )
    values: Tensor = output.state_values if on_trunk else output.logits[..., 0]
    return values[:, -response_length - 1 : -1].float()
