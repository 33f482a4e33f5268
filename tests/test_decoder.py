"""What samples by weights alone computes what the modules compute, and leaves everything unusual to them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional
from transformers import AutoModelForCausalLM

from rlhf.adapters import add_lora
from rlhf.config import GenerationConfig, LoraConfig
from rlhf.generation import native
from rlhf.generation.between import norm_of, normed
from rlhf.generation.decoder import FAMILIES, Decoder, decoder_of
from rlhf.generation.native import NativeGenerator
from rlhf.generation.slots import Slots, Turn
from rlhf.packing import accept, pack, unmasked
from rlhf.sharding import Sharding
from tests.test_packing import PAD, STOP, VOCABULARY, shape_of

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for it
BIASED: dict[str, Any] = {"attention_bias": True, "mlp_bias": True}
SCALED: dict[str, Any] = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}
# Rotary positions that change with the longest sequence, from 17 tokens on.
DYNAMIC: dict[str, Any] = {
    "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    "max_position_embeddings": 16,
}
CASES = [(family, {}) for family in FAMILIES] + [("llama", BIASED), ("llama", SCALED), ("qwen3", {"head_dim": 24})]
CPU = torch.device("cpu")
PROMPTS = [[3, 4, 5, 6], [7], [3, 4, 5, 6], [8, 9, 10], [11, 12], [13] * 20]


def causal(architecture: str, **options: Any) -> Any:
    """A model as transformers makes it, with norms that are not one."""
    torch.manual_seed(1)
    shape = shape_of(architecture)
    for name, option in options.items():
        setattr(shape, name, option)
    model = AutoModelForCausalLM.from_config(shape, attn_implementation="sdpa").eval()
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=float("norm" in name), std=0.2)
    return model


def policy(architecture: str, **options: Any) -> Any:
    model = causal(architecture, **options)
    accept(model)
    return model


def by_modules(model: nn.Module) -> nn.Module:
    """The same model, with a hook that changes nothing."""
    model.register_forward_hook(lambda *_: None)
    return model


def test_samples_where_rotary_positions_change(monkeypatch: pytest.MonkeyPatch) -> None:
    test_samples_are_those_of_the_modules("llama", DYNAMIC, monkeypatch)


@pytest.mark.parametrize(("architecture", "options"), CASES, ids=str)
def test_samples_are_those_of_the_modules(
    architecture: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Decoder | None] = []
    monkeypatch.setattr(native, "decoder_of", lambda *given: made.append(decoder_of(*given)) or made[-1])
    config = GenerationConfig(max_new_tokens=48, batch_size=3)
    models = policy(architecture, **options), by_modules(policy(architecture, **options))
    with_decoder, without = (
        NativeGenerator(model, STOP, PAD, config).sample(PROMPTS, range(6), seed=1, step=2) for model in models
    )
    assert [each is None for each in made] == [False, True]
    assert torch.equal(with_decoder.responses, without.responses) and int(without.mask.sum()) > 40
    torch.testing.assert_close(with_decoder.logprobs, without.logprobs, atol=2e-5, rtol=0)


def test_what_rotary_positions_keep_is_no_tensor_of_inference() -> None:
    """Buffers are written to in training: ddp broadcasts them."""
    model = policy("llama", **DYNAMIC)
    before = model.model.rotary_emb.inv_freq.clone()
    NativeGenerator(model, STOP, PAD, GenerationConfig(max_new_tokens=60)).sample(PROMPTS, range(6), seed=1, step=2)
    assert not torch.equal(model.model.rotary_emb.inv_freq, before)
    assert not any(buffer.is_inference() for buffer in model.buffers())


def test_one_decoder_serves_longer_memory_after_shorter() -> None:
    model, found = policy("llama"), []
    decoder = decoder_of(model, bfloat16=False)
    assert decoder is not None
    for reads, capacity in ((decoder, 4), (decoder, 40), (decoder_of(model, bfloat16=False), 40)):
        slots, tokens = Slots(1, capacity, torch.float32), torch.arange(3, 3 + capacity)
        slots.turn = Turn(torch.arange(capacity), pack([capacity], CPU), capacity, 0, 0, None)
        with torch.no_grad():
            found.append(reads(tokens, torch.arange(capacity), slots, torch.tensor([capacity - 1])))
    assert torch.equal(found[1], found[2])


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-5, 0.0])
def test_a_norm_by_lengths_is_a_norm(scale: float) -> None:
    """Also where epsilon is what counts."""
    torch.manual_seed(2)
    states, weight = torch.randn(5, 3, 48) * scale, torch.rand(48) + 0.5
    norm = norm_of(SimpleNamespace(weight=weight, variance_epsilon=1e-6))
    expected = functional.rms_norm(states.double(), (48,), weight.double(), 1e-6)
    torch.testing.assert_close(normed(states, norm).double(), expected, atol=0, rtol=1e-6)


def read(model: Any, bfloat16: bool, device: torch.device = CPU) -> tuple[Tensor, Tensor]:
    """Logits behind each of two prompts, by weights alone and by modules."""
    tokens, positions = torch.tensor([3, 4, 5, 6, 7, 8, 9]), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    places, last = torch.tensor([0, 1, 2, 3, 10, 11, 12]), torch.tensor([3, 6])
    tokens, positions, places, last = (part.to(device) for part in (tokens, positions, places, last))
    kind = torch.bfloat16 if bfloat16 and device.type == "cuda" else torch.float32
    found = []
    for by_weights in (True, False):
        slots = Slots(2, 10, kind)
        slots.turn = Turn(places, pack([4, 3], device), 7, 0, 0, None)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            if by_weights:
                decoder = decoder_of(model, bfloat16)
                assert decoder is not None
                found.append(decoder(tokens, positions, slots, last))
                continue
            asked = {"input_ids": tokens[None], "position_ids": positions[None], "attention_mask": unmasked(device)}
            found.append(model(**asked, slots=slots, use_cache=False, logits_to_keep=last).logits[0])
    return found[0], found[1]


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize(("architecture", "options"), CASES, ids=str)
def test_logits_are_those_of_the_modules(architecture: str, options: dict[str, Any], bfloat16: bool) -> None:
    by_weights, modules = read(policy(architecture, **options), bfloat16)
    assert by_weights.dtype == modules.dtype and by_weights.shape == (2, VOCABULARY)
    largest = float(modules.abs().max())
    torch.testing.assert_close(by_weights, modules, atol=largest * (2e-2 if bfloat16 else 2e-6), rtol=0)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_gathered_weights_are_decoded_with(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Decoder | None] = []
    monkeypatch.setattr(native, "decoder_of", lambda *given: made.append(decoder_of(*given)) or made[-1])
    config = GenerationConfig(max_new_tokens=48, weights="replica")
    sharded = Sharding(init_device_mesh("cpu", (1,))).shard(policy("llama"))
    found, wanted = (
        NativeGenerator(model, STOP, PAD, config).sample(PROMPTS, range(6), seed=1, step=2)
        for model in (sharded, policy("llama"))
    )
    assert None not in made and len(made) == 2
    assert torch.equal(found.responses, wanted.responses)
    torch.testing.assert_close(found.logprobs, wanted.logprobs, atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")  # in transformers 5.17, too
def test_checkpointing_leaves_the_decoder_on() -> None:
    model = policy("llama")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()  # a hook, as stages/critic.py has it
    by_weights, modules = read(model, bfloat16=False)
    torch.testing.assert_close(by_weights, modules, atol=2e-6 * float(modules.abs().max()), rtol=0)


@pytest.mark.parametrize(("tokens", "copies"), [(42, False), (43, True)])
def test_a_few_tokens_are_not_worth_copies(tokens: int, copies: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    monkeypatch.setattr(native, "decoder_of", lambda *given: made.append(given))  # which is None
    generator = NativeGenerator(policy("llama"), STOP, PAD, GenerationConfig(max_new_tokens=tokens))
    generator.sample(PROMPTS, range(6), seed=1, step=2)
    assert bool(made) is copies


def adapted() -> nn.Module:
    return add_lora(policy("llama"), LoraConfig(rank=4), "policy")


def of_another_activation() -> nn.Module:
    return policy("llama", hidden_act="gelu")  # read when a layer is made


def with_a_hook_inside() -> nn.Module:
    model = policy("llama")
    model.model.layers[1].mlp.register_forward_pre_hook(lambda *_: None)
    return model


def with_a_forward_of_its_own() -> nn.Module:
    model = policy("llama")
    model.model.layers[0].self_attn.forward = model.model.layers[0].self_attn.forward
    return model


def with_a_layer_of_another_class() -> nn.Module:
    model = policy("llama")
    model.model.norm = nn.LayerNorm(64)
    return model


def in_bfloat16() -> nn.Module:
    model: nn.Module = policy("llama").bfloat16()
    return model


@pytest.mark.parametrize(
    "made",
    [
        adapted,
        of_another_activation,
        with_a_hook_inside,
        with_a_forward_of_its_own,
        with_a_layer_of_another_class,
        in_bfloat16,
        *(lambda name=name: policy(name) for name in ("gpt2", "gpt_neox", "olmo2", "phi3", "smollm3")),
    ],
)
def test_what_is_unusual_is_left_to_its_modules(made: Any) -> None:
    assert decoder_of(made(), bfloat16=False) is None


def test_a_head_is_called_with_its_hooks() -> None:
    model, seen = policy("llama"), []
    model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    read(model, bfloat16=False)
    assert [shape[-1] for shape in seen] == [64, 64]
