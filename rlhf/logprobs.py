"""Log-probabilities of chosen tokens and the entropy of their distributions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rlhf.batching import position_ids
from rlhf.packing import packed_inputs, packs
from rlhf.sharding import device_of
from rlhf.token_head import Asked, TokenHead, asking
from rlhf.trunk import PolicyWithValueHead


class TokenLogprobs(NamedTuple):
    """Figures of the response tokens of a batch."""

    logprobs: Tensor  # [batch, response] nats
    entropy: Tensor  # [batch, response] nats
    values: Tensor | None = None  # [batch, response] of the states before, where the model has a value head too


def gather_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """log softmax(logits)[tokens] in float32 or wider.

    logits [..., vocabulary], tokens [...] ids. The target's logit less the log normaliser, so that no second tensor
    of the vocabulary's size is made.
    """
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    chosen = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return chosen - logits.logsumexp(-1)


class Forward(NamedTuple):
    """What a model is called with, and where in its output the states before each response token are."""

    arguments: dict[str, Any]
    targets: Tensor  # the response tokens: [1, real ones] where packed, else [batch, response]
    states: Tensor | None = None  # packed: [real ones], the place of the token before each
    cells: Tensor | None = None  # packed: [real ones], the place of each in [batch * response]
    shape: tuple[int, int] = (0, 0)  # batch, response

    def kept(self) -> Tensor | int:
        """`logits_to_keep`."""
        return self.shape[1] + 1 if self.states is None else self.states

    def of_kept(self, output: Tensor) -> Tensor:
        """[batch, response] of what a head gave for `kept`, or for all tokens: [1 or batch, tokens]; else zeros."""
        if self.states is None or self.cells is None:
            return output[:, -self.shape[1] - 1 : -1]
        row = output[0] if output.shape[1] == len(self.states) else output[0, self.states]
        filled = row.new_zeros(self.shape[0] * self.shape[1], *row.shape[1:])
        return filled.index_copy(0, self.cells, row).view(*self.shape, *row.shape[1:])


def forward_of(model: nn.Module, tokens: Tensor, attention_mask: Tensor, response_length: int) -> Forward:
    """How to call a model for its response positions: packed where its attention can, so that no padding is computed.

    tokens, attention_mask [batch, prompt + response], best on the CPU: a packing is worked out from them.
    """
    bare, shape, attention_mask = bare_of(model), (len(tokens), response_length), attention_mask.bool()
    device, positions = device_of(bare), position_ids(attention_mask)
    if not packs(bare):
        arguments = {"input_ids": tokens, "attention_mask": attention_mask, "position_ids": positions}
        return Forward(
            _moved(arguments, device), tokens[:, -response_length:].to(device, non_blocking=True), shape=shape
        )
    places = attention_mask.flatten().cumsum(0).sub(1).view_as(attention_mask)
    real = attention_mask[:, -response_length:]
    lengths = attention_mask.sum(-1).tolist()
    return Forward(
        packed_inputs(tokens[attention_mask], positions[attention_mask], lengths, device),
        tokens[:, -response_length:][real][None].to(device, non_blocking=True),
        (places[:, -response_length:][real] - 1).to(device, non_blocking=True),
        real.flatten().nonzero().squeeze(-1).to(device, non_blocking=True),
        shape,
    )


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
    the states before each response token, that is from the last prompt token to the last but one of the response.
    entropy_gradient: whether the entropy is to be trained, too. Where a model packs, what is padded counts 0.
    """
    forward = forward_of(model, tokens, attention_mask, response_length)
    with _asked(model, forward, temperature, entropy_gradient) as answers:
        output = model(**forward.arguments, use_cache=False, logits_to_keep=forward.kept())
    values = getattr(output, "state_values", None)
    values = None if values is None else forward.of_kept(values).float()
    if answers:
        logprobs, entropy = forward.of_kept(output.logits).unbind(-1)
        return TokenLogprobs(logprobs, entropy, values)
    logits = (output.logits if forward.states is not None else output.logits[:, :-1]).float() / temperature
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        log_distribution = (logits if entropy_gradient else logits.detach()).log_softmax(-1)
        entropy = -(log_distribution.exp() * log_distribution).sum(-1)
    logprobs = gather_logprobs(logits, forward.targets)
    if forward.states is not None:
        logprobs, entropy = forward.of_kept(logprobs), forward.of_kept(entropy)
    return TokenLogprobs(logprobs, entropy, values)


def row_logprobs(model: nn.Module, row: dict[str, Any], wrapped: nn.Module | None = None) -> Tensor:
    """Log-probs [learned] that a causal model which packs gives some tokens of sequences in one row; differentiable.

    Where adapters have wrapped the head as well, for new tokens of tied embeddings, all its logits stand at once.

    row: input_ids, position_ids [1, tokens], lengths of the sequences, targets [learned] and the place before each,
    states [learned]. wrapped: what is called in place of the model, such as DDP around it.
    """
    device = row["input_ids"].device
    arguments = packed_inputs(row["input_ids"][0], row["position_ids"][0], row["lengths"], device)
    forward = Forward(arguments, row["targets"][None], row["states"])
    with _asked(model, forward, 1.0, False) as answers:
        output = (model if wrapped is None else wrapped)(
            **forward.arguments, use_cache=False, logits_to_keep=forward.states
        )
    found: Tensor = output.logits[0]
    return found[:, 0] if answers else gather_logprobs(found, row["targets"])


def response_values(model: nn.Module, tokens: Tensor, attention_mask: Tensor, response_length: int) -> Tensor:
    """Values [batch, response] of the state before each response token: the head at the token before it.

    model: a value model, or a policy with a value head. Where a model packs, what is padded counts 0.
    """
    on_trunk = isinstance(bare_of(model), PolicyWithValueHead)
    forward = forward_of(model, tokens, attention_mask, response_length)
    kept = {"logits_to_keep": forward.kept()} if on_trunk else {}
    with _asked(model, forward, 1.0, False) if on_trunk else nullcontext():
        output = model(**forward.arguments, use_cache=False, **kept)
    return forward.of_kept(output.state_values if on_trunk else output.logits[..., 0]).float()


def bare_of(model: Any) -> Any:
    """The model behind an engine, or itself."""
    return model if isinstance(model, nn.Module) else model.module


@contextmanager
def _asked(model: Any, forward: Forward, temperature: float, entropy_gradient: bool) -> Iterator[bool]:
    """Inside, a packing model's head answers log-probs and entropies; whether it does."""
    bare = bare_of(model)
    policy = bare.policy if isinstance(bare, PolicyWithValueHead) else bare
    head = policy.get_output_embeddings() if forward.states is not None else None
    if not isinstance(head, TokenHead):
        yield False
        return
    with asking(head, Asked(forward.targets[0], temperature, entropy_gradient)):
        yield True


def _moved(arguments: dict[str, Tensor], device: torch.device) -> dict[str, Any]:
    return {name: part.to(device, non_blocking=True) for name, part in arguments.items()}
