"""The one gradient of weights that are embeddings and head at once: autograd's to the bit, made once."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.utils._python_dispatch import TorchDispatchMode

from rlhf.logprobs import response_logprobs
from rlhf.packing import accept
from rlhf.sharding import Sharding
from rlhf.tied import NEVER, Handed, Receiver, Tie, TiedEmbedding
from rlhf.token_head import Asked, TokenHead, asking
from rlhf.trunk import PolicyWithValueHead
from tests.test_decoder import alone, causal

__all__ = ["alone"]  # a fixture

VOCABULARY = 97
PADDING = 7


def tied(architecture: str = "llama", **config: Any) -> tuple[Any, Any]:
    """The same model twice: with autograd's gradient, and with ours."""
    own = causal(architecture, tie_word_embeddings=True, pad_token_id=PADDING, **config)
    accept(own)
    plain = copy.deepcopy(own)
    plain.get_input_embeddings().__class__ = nn.Embedding
    plain.get_output_embeddings().tie = None
    assert type(own.get_input_embeddings()) is TiedEmbedding
    return plain, own


def loss_of(model: Any, tokens: Tensor) -> Tensor:
    """Of log-probs and entropies by the head that answers."""
    head: TokenHead = model.get_output_embeddings()
    with asking(head, Asked(tokens.flatten(), 1.0, True)):
        answers: Tensor = model(input_ids=tokens, use_cache=False).logits
    return (answers * torch.tensor([1.0, 0.3], device=answers.device)).sum()


def gradients(model: Any) -> list[Tensor]:
    """All of them."""
    return [parameter.grad for parameter in model.parameters()]


class Sizes(TorchDispatchMode):
    """Rows of what embeddings' backwards have made, and how many sums of whole gradients there were."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []
        self.sums = 0

    def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        found = function(*given, **(named or {}))
        if function is torch.ops.aten.embedding_dense_backward.default:
            self.rows.append(len(found))
        self.sums += function is torch.ops.aten.add.Tensor and found.shape[:1] == (VOCABULARY,)
        return found


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("length", [5, 40, 200])
def test_it_is_autograds_to_the_bit(length: int, bfloat16: bool) -> None:
    """Of two micro-batches, with tokens that come again and one that learns nothing; also of more tokens than ids."""
    plain, own = tied()
    torch.manual_seed(length)
    for width in (length, length // 2 + 1):
        tokens = torch.randint(0, 30, (2, width))
        tokens[0, 0] = PADDING
        for model in (plain, own):
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                loss_of(model, tokens).backward()
    assert all(torch.equal(*pair) for pair in zip(gradients(plain), gradients(own), strict=True))
    assert gradients(own)[0].abs().sum() > 0


def test_it_is_made_once() -> None:
    seen = []
    for model in tied():
        with Sizes() as sizes:
            loss_of(model, torch.randint(0, 30, (2, 9))).backward()
        seen.append((sizes.rows, sizes.sums))
    assert seen == [([VOCABULARY], 1), ([18], 0)]


def test_a_second_backward_gives_it_again() -> None:
    """Of logits that are computed again, for their gradient has taken their place."""
    _, own = tied()
    tokens = torch.randint(0, 30, (1, 9))
    loss = loss_of(own, tokens)
    loss.backward(retain_graph=True)
    once = [gradient.clone() for gradient in gradients(own)]
    loss.backward()
    assert all(torch.equal(twice, 2 * each) for twice, each in zip(gradients(own), once, strict=True))


def test_a_head_without_its_embeddings_keeps_its_gradient() -> None:
    """Where hidden states come from elsewhere, though the embeddings had a forward before that nobody has used."""
    _, own = tied()
    head, weight = own.get_output_embeddings(), own.get_output_embeddings().weight
    tokens = torch.randint(0, 30, (9,))
    own.get_input_embeddings()(tokens)
    hidden = torch.randn(9, weight.shape[1])
    with asking(head, Asked(tokens, 1.0, False)):
        head(hidden)[:, 0].sum().backward()
    wanted = torch.autograd.grad((hidden @ weight.t()).log_softmax(-1)[range(9), tokens].sum(), weight)[0]
    torch.testing.assert_close(weight.grad, wanted, atol=1e-6 * float(wanted.abs().max()), rtol=1e-6)


def test_gradients_of_something_else_alone_lose_nothing() -> None:
    """The embeddings are then not asked in the same backward."""
    _, own = tied()
    tokens = torch.randint(0, 30, (1, 9))
    norm = own.model.norm.weight
    loss = loss_of(own, tokens)
    alone = torch.autograd.grad(loss, [norm], retain_graph=True)[0]
    loss.backward()
    assert torch.equal(alone, norm.grad)
    fresh = copy.deepcopy(own)
    fresh.zero_grad()
    loss_of(fresh, tokens).backward()
    assert torch.equal(fresh.model.embed_tokens.weight.grad, own.model.embed_tokens.weight.grad)


def test_copies_have_a_tie_of_their_own() -> None:
    """Also one that is made between the embeddings' forward and the head's, whose graph cannot be copied."""
    _, own = tied()
    own.get_input_embeddings()(torch.randint(0, 30, (9,)))
    copied = copy.deepcopy(own)
    embeddings, head = copied.get_input_embeddings(), copied.get_output_embeddings()
    assert isinstance(embeddings.tie, Tie) and embeddings.tie is head.tie
    assert embeddings.tie is not own.get_input_embeddings().tie
    assert list(copied.state_dict()) == list(own.state_dict())


def test_weights_that_are_two_stay_as_they_are() -> None:
    model = causal("llama", tie_word_embeddings=False)
    accept(model)
    assert type(model.get_input_embeddings()) is nn.Embedding and model.get_output_embeddings().tie is None


def test_it_hands_nothing_on_behind_the_embeddings_turn() -> None:
    """Which a graph of several devices could have before the head's."""
    handed, gradient = Handed(), torch.zeros(3, 2)
    assert handed.take() is None and not handed.send(gradient) and handed.gradient is None
    handed.taken_in = NEVER
    assert handed.send(gradient) and handed.take() is gradient


@pytest.mark.parametrize("ended_by", ["what was asked for", "an error"])
def test_what_was_on_its_way_reaches_no_other_backward(ended_by: str) -> None:
    """Of one that has ended between the head and the embeddings."""
    _, own = tied()
    tokens, kept = torch.randint(0, 30, (1, 9)), list[Tensor]()
    embeddings = own.get_input_embeddings()
    with_hook = embeddings.register_forward_hook(lambda _, __, output: kept.append(output))
    loss = loss_of(own, tokens)
    with_hook.remove()
    if ended_by == "an error":

        def fails(_: Tensor) -> None:
            raise ZeroDivisionError

        hook = kept[0].register_hook(fails)
        with pytest.raises(ZeroDivisionError):
            loss.backward(retain_graph=True)
        hook.remove()
        own.zero_grad()
    else:
        torch.autograd.grad(loss, kept, retain_graph=True)
    kept[0].sum().backward()
    counts = torch.bincount(tokens.flatten(), minlength=VOCABULARY).float()
    counts[PADDING] = 0
    assert torch.equal(embeddings.weight.grad, counts[:, None].expand_as(embeddings.weight))


def test_a_model_is_pickled_with_a_forward_behind_it(tmp_path: Path) -> None:
    _, own = tied()
    own.get_input_embeddings()(torch.randint(0, 30, (9,)))
    torch.save(own, tmp_path / "model")
    again = torch.load(tmp_path / "model", weights_only=False)  # our own, of a moment ago
    assert again.get_input_embeddings().tie is again.get_output_embeddings().tie


def test_where_torch_has_lost_the_private_functions_nothing_is_tied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf.tied.PRIVATE", ("_no_such_function",))
    model = causal("llama", tie_word_embeddings=True)
    accept(model)
    assert type(model.get_input_embeddings()) is nn.Embedding


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .FSDPLinear.:UserWarning")  # of torch's own, a value head
@pytest.mark.parametrize("trunk", [False, True])
def test_under_fsdp2_it_is_handed_on_and_the_same(trunk: bool, monkeypatch: pytest.MonkeyPatch, alone: None) -> None:
    """Embeddings and head in the root's unit, one process; with a value head beside, too."""
    plain, own = (PolicyWithValueHead(model) if trunk else model for model in tied("qwen2"))
    said: list[bool] = []
    accepts = Receiver.accepts
    monkeypatch.setattr(
        Receiver, "accepts", lambda receiver, gradient: said.append(accepts(receiver, gradient)) or said[-1]
    )
    Sharding(init_device_mesh("cpu", (1,))).shard(own)
    tokens = torch.randint(8, 30, (3, 12))
    for model in (plain, own):
        found = response_logprobs(model, tokens, torch.ones_like(tokens), 6, 1.0, True)
        loss = (found.logprobs + 0.2 * found.entropy).sum()
        (loss + found.values.sum() if found.values is not None else loss).backward()
    assert said == [True]
    shared = dict(own.named_parameters())
    assert all(torch.equal(each.grad, shared[name].grad.full_tensor()) for name, each in plain.named_parameters())
