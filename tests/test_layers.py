"""Norms, MLPs and linear layers that keep less compute what transformers' and torch's do, forward and backward."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from rlhf.adapters import add_lora
from rlhf.config import LoraConfig
from rlhf.layers import Down, GatedMlp, Norm, keep_less
from rlhf.narrow import narrow_linear
from rlhf.packing import accept
from rlhf.products import Linear, own_products
from rlhf.shapes import ARCHITECTURES, LEAN
from rlhf.token_head import Asked, TokenHead
from tests.test_decoder import causal

SHAPE = LlamaConfig(hidden_size=48, intermediate_size=80, num_attention_heads=4, num_hidden_layers=1, vocab_size=9)


def gradients(function: Callable[[], Tensor], of: list[Tensor], upstream: Tensor) -> list[Tensor]:
    """What a function gives, and the gradients of some tensors."""
    found = function()
    return [found.detach(), *torch.autograd.grad(found, of, upstream.to(found.dtype))]


@pytest.mark.parametrize("narrow", [False, True])
def test_a_norm(narrow: bool) -> None:
    """Beside float64; where only linear layers read it, it gives under autocast what they would make of it."""
    torch.manual_seed(0)
    plain, own = LlamaRMSNorm(48, eps=1e-5), LlamaRMSNorm(48, eps=1e-5)
    for norm in (plain, own):
        nn.init.normal_(norm.weight, mean=1.0, generator=torch.Generator().manual_seed(3))
    own.__class__, own.narrow = Norm, narrow
    states, upstream = torch.randn(2, 5, 48, requires_grad=True), torch.randn(2, 5, 48)
    wide, weight = states.double(), plain.weight.double()
    exact = gradients(
        lambda: weight * wide * (wide.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt(), [wide, weight], upstream.double()
    )
    found = gradients(lambda: own(states), [states, own.weight], upstream)
    for each, wanted in zip(found, exact, strict=True):
        torch.testing.assert_close(each, wanted.float(), atol=2e-6, rtol=2e-6)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, theirs = own(states), plain(states)
    assert rounded.dtype == (torch.bfloat16 if narrow else torch.float32)
    torch.testing.assert_close(rounded.float(), theirs.to(rounded.dtype).float(), atol=1e-6, rtol=8e-3 * narrow)


@pytest.mark.parametrize("given", [torch.bfloat16, torch.float32])
def test_a_norm_in_other_dtypes_is_transformers(given: torch.dtype) -> None:
    """Of frozen models in bfloat16, and of heads under autocast, whose weights stay in float32."""
    plain, own = LlamaRMSNorm(24).to(given), LlamaRMSNorm(24).to(given)
    own.__class__, own.narrow = Norm, True
    states = torch.randn(3, 24).bfloat16()
    assert torch.equal(own(states), plain(states)) and own(states).dtype == plain(states).dtype


def mlps(bias: bool = False, frozen: bool = False) -> tuple[nn.Module, nn.Module]:
    """The same MLP twice: as transformers has it, and ours with the last product that keeps less."""
    torch.manual_seed(0)
    plain = LlamaMLP(LlamaConfig(**SHAPE.to_dict() | {"mlp_bias": bias}))
    if frozen:
        plain.down_proj.requires_grad_(False)
    own_products(plain)  # so that both multiply by the same library
    own = copy.deepcopy(plain)
    own.__class__, own.down_proj.__class__ = GatedMlp, Down  # type: ignore[assignment]
    return plain, own


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_gated_mlp_is_transformers_to_the_bit(bfloat16: bool, bias: bool, frozen: bool) -> None:
    """frozen: the last product does not learn, what is below it does."""
    pair = mlps(bias, frozen)
    states, upstream = torch.randn(7, 48, requires_grad=True), torch.randn(7, 48)
    of = [[states, *(each for each in mlp.parameters() if each.requires_grad)] for mlp in pair]
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        wanted, found = (
            gradients(partial(mlp, states), of_this, upstream) for mlp, of_this in zip(pair, of, strict=True)
        )
    assert len(found) == 2 + (3 - frozen) * (1 + bias)  # the result, of states, of weights, of biases
    assert all(torch.equal(*each) and each[0].dtype == each[1].dtype for each in zip(found, wanted, strict=True))


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_gated_mlp_keeps_what_its_first_products_gave_and_no_more(bfloat16: bool) -> None:
    def kept(mlp: nn.Module) -> int:
        found: list[Tensor] = []
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=bfloat16),
            torch.autograd.graph.saved_tensors_hooks(lambda each: found.append(each) or each, lambda each: each),  # type: ignore[func-returns-value]
        ):
            mlp(torch.randn(7, 48))
        return len({each.data_ptr() for each in found if each.shape == (7, 80)})

    assert [kept(mlp) for mlp in mlps()] == [4, 2]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks
def test_where_nothing_learns_or_adapters_wrap_it_the_last_product_takes_what_it_multiplies() -> None:
    plain, own = mlps()
    states = torch.randn(7, 48)
    with torch.no_grad():
        torch.testing.assert_close(own(states), plain(states))
    inner = torch.randn(7, 80)
    torch.testing.assert_close(own.down_proj(inner), plain.down_proj(inner))
    model = causal("llama")
    accept(model)
    before = [type(module.down_proj) for module in model.modules() if isinstance(module, GatedMlp)]
    assert set(before) == {Down}
    adapted = add_lora(model, LoraConfig(rank=2, alpha=4.0), "policy")
    wrapped = [module.down_proj for module in adapted.modules() if isinstance(module, GatedMlp)]
    assert wrapped and not any(isinstance(each, Down) for each in wrapped)
    tokens = torch.randint(3, 40, (2, 9))
    adapted(input_ids=tokens, use_cache=False).logits.sum().backward()
    assert all(each.lora_B["default"].weight.grad is not None for each in wrapped)


@pytest.mark.parametrize("bias", [False, True])
def test_a_rounded_product_is_autocasts_to_the_bit_and_keeps_no_copy_of_the_weight(bias: bool) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(2, 5, 32, requires_grad=True)
    weight = torch.randn(24, 32, requires_grad=True)
    rest = [torch.randn(24, requires_grad=True)] if bias else [None]
    upstream, learned = torch.randn(2, 5, 24), [hidden, weight, *(rest if bias else [])]
    with torch.autocast("cpu", torch.bfloat16):
        wanted = gradients(lambda: functional.linear(hidden, weight, *rest), learned, upstream)  # type: ignore[arg-type]
    found = gradients(lambda: narrow_linear(hidden, weight, *rest, torch.bfloat16), learned, upstream)  # type: ignore[arg-type]
    assert all(torch.equal(*pair) and pair[0].dtype == pair[1].dtype for pair in zip(found, wanted, strict=True))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        narrow_linear(hidden, weight, rest[0], torch.bfloat16)
    assert sorted(each.dtype == torch.bfloat16 for each in kept) == [False, True]  # of the weight and of hidden
    assert any(each.data_ptr() == weight.data_ptr() for each in kept)


def test_a_head_that_answers_keeps_no_rounded_copy_of_its_weight_either() -> None:
    head, hidden, kept = TokenHead(32, 50, bias=False), torch.randn(5, 32), []
    head.asked = Asked(torch.arange(5), 1.0, False)
    with (
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each),
    ):
        found = head(hidden)
    of_weight = [each for each in kept if each.shape == head.weight.shape]
    assert [each.data_ptr() for each in of_weight] == [head.weight.data_ptr()]
    found.sum().backward()
    assert head.weight.grad is not None and head.weight.grad.dtype == torch.float32


def test_only_the_gradients_that_are_wanted_are_kept_for() -> None:
    """Below adapters the weight does not learn, and what it multiplied is not kept."""
    hidden, weight, kept = torch.randn(5, 32, requires_grad=True), torch.randn(24, 32), []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        found = narrow_linear(hidden, weight, None, torch.bfloat16)
    assert [each.data_ptr() for each in kept] == [weight.data_ptr()]
    found.float().sum().backward()
    expected = weight.bfloat16().sum(0, keepdim=True).float().expand(5, 32)
    torch.testing.assert_close(hidden.grad, expected, atol=0.02 * float(expected.abs().max()), rtol=0)


def test_a_linear_layer_of_ours_rounds_so_only_where_autocast_asks_for_it() -> None:
    layer = nn.Linear(32, 24)
    own_products(nn.Sequential(layer))
    assert isinstance(layer, Linear)
    rows = torch.randn(3, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert "_Linear" in type(layer(rows).grad_fn).__name__ and layer(rows).dtype == torch.bfloat16
        with torch.no_grad():  # as ever, with autocast's own cache for a pass
            assert layer(rows).dtype == torch.bfloat16
    assert layer(rows).dtype == torch.float32


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("architecture", LEAN)
def test_whole_models_and_their_gradients(architecture: str, bfloat16: bool) -> None:
    plain, own = causal(architecture), causal(architecture)
    accept(own)
    kinds = {type(module).__name__ for module in own.modules()}
    assert {"Norm", "GatedMlp"} <= kinds and not any(kind.endswith(("RMSNorm", "MLP")) for kind in kinds)
    assert list(own.state_dict()) == list(plain.state_dict())
    narrow = [name for name, module in own.named_modules() if getattr(module, "narrow", False)]
    assert {name.rpartition(".")[2] for name in narrow} == {"input_layernorm", "post_attention_layernorm"}
    tokens = torch.randint(3, 40, (2, 9))
    found = []
    for model in (plain, own):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = model(input_ids=tokens, use_cache=False).logits
        logits.float().logsumexp(-1).sum().backward()
        found.append([logits.detach().float(), *(parameter.grad for parameter in model.parameters())])
    for wanted, made in zip(*found, strict=True):
        torch.testing.assert_close(made, wanted, atol=float(wanted.abs().max()) * (0.03 if bfloat16 else 3e-6), rtol=0)


@pytest.mark.parametrize("architecture", [each for each in ARCHITECTURES if each not in LEAN])
def test_other_architectures_keep_their_norms_and_mlps(architecture: str) -> None:
    model = causal(architecture)
    before = [type(module) for module in model.modules()]
    keep_less(model)
    assert [type(module) for module in model.modules()] == before


def test_another_activation_keeps_its_mlp() -> None:
    model = causal("llama", hidden_act="gelu")
    keep_less(model)
    assert type(model.model.layers[0].mlp) is LlamaMLP and type(model.model.norm) is Norm


def test_what_is_saved_is_transformers_own_again(tmp_path: Path) -> None:
    model = causal("llama")
    accept(model)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again.model.norm) is LlamaRMSNorm
    assert all(
        torch.equal(*pair) for pair in zip(again.state_dict().values(), model.state_dict().values(), strict=True)
    )
