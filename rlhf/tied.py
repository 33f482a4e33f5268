"""Weights that are a model's embeddings and its head at once: their gradient is made once.

autograd makes one for the head, which waits from the beginning of the backward to its end, one as large for the
embeddings, nearly all of it zeros, and one more for their sum. Here the head hands its own on to the embeddings, which
add their few rows to it: of a vocabulary of 152 k and a width of 896 that is 1.1 GB less at the backward's end, and the
same to the bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

NEVER = -2  # the number of no backward; -1 is the engine's for being in none
PRIVATE = ("_will_engine_execute_node", "_current_graph_task_id")  # of torch, which promises neither


class Handed:
    """A gradient on its way from the head to the embeddings of one forward, within one backward.

    Backwards are told apart by the engine's number: one may end between the two, by an error or because it was asked
    for gradients of something else, and what was on its way then must not reach the next.
    """

    def __init__(self) -> None:
        self.gradient: Tensor | None = None
        self.sent_in = self.taken_in = NEVER

    def send(self, gradient: Tensor) -> bool:
        """Whether it is on its way: not where the embeddings have had this backward's turn."""
        now = torch._C._current_graph_task_id()
        if self.taken_in == now:
            return False
        self.gradient, self.sent_in = gradient, now
        return True

    def take(self) -> Tensor | None:
        """What has arrived, for the embeddings' turn."""
        gradient, self.gradient = self.gradient, None
        self.taken_in = torch._C._current_graph_task_id()
        return gradient if self.sent_in == self.taken_in else None


class Receiver:
    """Who takes a head's gradient: the embeddings of the same forward, by the node of their backward."""

    def __init__(self, weight: Tensor, node: Any, handed: Handed) -> None:
        self.weight, self.node, self.handed = weight, node, handed

    def accepts(self, gradient: Tensor) -> bool:
        """Hand it on, in a backward, if it will be asked for in the same one."""
        return torch._C._will_engine_execute_node(self.node) and self.handed.send(gradient)


class Tie:
    """What embeddings and head of a model share beside the weight."""

    def __init__(self) -> None:
        self.receiver: Receiver | None = None  # from the embeddings' forward to the head's

    def take(self, weight: Tensor) -> Receiver | None:
        """The embeddings of this forward, for a head with this weight; once, for the first that asks."""
        receiver, self.receiver = self.receiver, None
        return receiver if receiver is not None and receiver.weight is weight else None

    def __reduce__(self) -> tuple[type[Tie], tuple[()]]:
        """A copied or pickled model's own: what stands in a graph is not copied."""
        return Tie, ()


class TiedEmbedding(nn.Embedding):
    """Embeddings whose weight is a head's as well."""

    tie: Tie

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., width] of token ids [...]."""
        if not (torch.is_grad_enabled() and self.weight.requires_grad):
            return super().forward(tokens)
        handed = Handed()
        found: Tensor = _Embedding.apply(self.weight, tokens, self.padding_idx, handed)  # type: ignore[no-untyped-call]
        self.tie.receiver = Receiver(self.weight, found.grad_fn, handed)
        return found


def tie(embeddings: nn.Module, head: Any) -> None:
    """Have a head that answers hand its gradient on to embeddings, if these are the same weights; in place."""
    plain = type(embeddings) is nn.Embedding and embeddings.weight is head.weight and embeddings.max_norm is None
    known = all(hasattr(torch._C, name) for name in PRIVATE)
    if known and plain and not embeddings.scale_grad_by_freq and not embeddings.sparse:
        embeddings.__class__ = TiedEmbedding
        embeddings.tie = head.tie = Tie()  # type: ignore[assignment]


class _Embedding(torch.autograd.Function):
    """See `TiedEmbedding`."""

    @staticmethod
    def forward(context: Any, weight: Tensor, tokens: Tensor, padding: int | None, handed: Handed) -> Tensor:
        context.save_for_backward(tokens)
        context.padding, context.handed, context.vocabulary = padding, handed, len(weight)
        return functional.embedding(tokens, weight, padding)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (tokens,) = context.saved_tensors
        padding = -1 if context.padding is None else context.padding
        arrived, size = context.handed.take(), context.vocabulary
        if arrived is None or tokens.numel() >= size:
            found = torch.ops.aten.embedding_dense_backward(gradient, tokens, size, padding, False)
            return found if arrived is None else arrived.add_(found), None, None, None
        ids, rows = summed(tokens.flatten(), gradient.reshape(-1, gradient.shape[-1]), padding)
        return arrived.index_add_(0, ids, rows), None, None, None


def summed(tokens: Tensor, rows: Tensor, padding: int) -> tuple[Tensor, Tensor]:
    """Rows [tokens, width] of the same token added up: ids [tokens], each once, and their rows; then id 0 with zeros.

    In the order in which torch adds them, without a question to the device. padding: the id that learns nothing.
    """
    ordered, order = tokens.sort(stable=True)
    group = torch.zeros_like(tokens)
    torch.cumsum(ordered[1:] != ordered[:-1], 0, out=group[1:])
    of_each = torch.empty_like(tokens).scatter_(0, order, group)
    if padding >= 0:
        rows = rows.masked_fill((tokens == padding)[:, None], 0.0)
    sums: Tensor = torch.ops.aten.embedding_dense_backward(rows, of_each, len(tokens), -1, False)
    return torch.zeros_like(tokens).scatter_(0, group, ordered), sums
