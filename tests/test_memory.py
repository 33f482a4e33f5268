"""The estimate of memory against what torch really saves, and against arithmetic by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig

from rlhf import memory
from rlhf.config import GenerationConfig, InitConfig, LoraConfig, ParallelismConfig, Recipe
from rlhf.engine.zero_options import BUCKET_ENTRIES
from rlhf.errors import ArtifactError
from rlhf.generation.together import name_of_cache
from rlhf.layers import keep_less
from rlhf.memory import GIB, Computation, RolloutLoad
from rlhf.memory.forwards import copies
from rlhf.memory.parts import Roles, total_of
from rlhf.models import add_lora
from rlhf.products import own_products
from rlhf.recipe_memory import bucket_of, estimate, shared_out
from rlhf.shapes import Shape, shape_of_config, shape_of_init, shape_of_size
from tests.qwen import QWEN_05B

# peft and we use names that transformers is about to change.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
WIDE = LlamaConfig(
    hidden_size=96,
    intermediate_size=320,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    vocab_size=64,
)


def model_of(config: LlamaConfig, rank: int | None = None) -> torch.nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    own_products(model)
    keep_less(model)
    return add_lora(model, LoraConfig(rank=rank), "policy") if rank else model


def summed(roles: Roles) -> dict[str, float]:
    return {role: sum(parts.values()) for role, parts in roles.items()}


def saved_bytes(model: torch.nn.Module, rows: int, length: int, bfloat16: bool) -> int:
    """What the blocks of a model keep for the backward pass, weights apart."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address is used twice
        return tensor

    tokens = torch.randint(0, 64, (rows, length))
    mask = torch.ones_like(tokens)
    mask[0, :2] = 0
    trunk = next(
        module for name, module in model.named_modules() if name.endswith("model") and hasattr(module, "layers")
    )
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bfloat16),
    ):
        trunk(input_ids=tokens, attention_mask=mask, use_cache=False)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("bfloat16", [True, False])
@pytest.mark.parametrize("rank", [None, 4])
@pytest.mark.parametrize(("rows", "length"), [(2, 128), (3, 256)])
def test_activations_are_what_torch_saves(bfloat16: bool, rank: int | None, rows: int, length: int) -> None:
    shape = shape_of_config(WIDE.to_dict(), "config.json")
    how = Computation(bfloat16=bfloat16, checkpointing=False, lora_rank=rank)
    saved = saved_bytes(model_of(WIDE, rank), rows, length, bfloat16)
    counted = memory.activations(shape, how, rows, length) + copies(shape, how, learning=True)
    assert saved == pytest.approx(counted, rel=0.1)


@pytest.mark.parametrize("bfloat16", [True, False])
def test_checkpointing_keeps_one_block_and_the_inputs_of_all(bfloat16: bool) -> None:
    model = model_of(WIDE)
    model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    model.train()
    shape = shape_of_config(WIDE.to_dict(), "config.json")
    how = Computation(bfloat16=bfloat16, checkpointing=True)
    inputs = 2 * 128 * WIDE.hidden_size * 4 * WIDE.num_hidden_layers
    last_norm = 2 * 128 * WIDE.hidden_size * 4
    assert saved_bytes(model, 2, 128, bfloat16) == pytest.approx(inputs + last_norm, rel=0.02)
    block = 2 * 128 * memory.block_bytes(shape, how, 128)
    assert memory.activations(shape, how, 2, 128) == inputs + block
    assert copies(shape, how, learning=True) == 0


def test_the_cache_keeps_float32_also_under_autocast() -> None:
    model, cache = model_of(WIDE), DynamicCache(config=WIDE)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(input_ids=torch.ones(2, 5, dtype=torch.long), use_cache=True, **{name_of_cache(model): cache})
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)  # type: ignore[union-attr]
    shape = shape_of_config(WIDE.to_dict(), "config.json")
    load = RolloutLoad(prompt=3, response=2, generation_rows=2, micro_batch_tokens=1)
    how = Computation(bfloat16=True, checkpointing=False, lora_rank=1)
    assert memory.sampling(shape, how, load)["KV cache"] == held


def test_weights_and_adapters_are_counted_as_torch_has_them() -> None:
    shape = shape_of_config(WIDE.to_dict(), "config.json")
    assert shape.weights == sum(p.numel() for p in model_of(WIDE).parameters())
    adapted = model_of(WIDE, rank=4)
    assert shape.adapter_weights(4) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_a_known_model_is_counted_right_from_its_config() -> None:
    shape = shape_of_config(QWEN_05B, "config.json")
    assert shape.weights == pytest.approx(494_032_768, rel=1e-4)  # what its files hold; its biases are not counted
    assert (shape.query, shape.key_value, shape.context) == (896, 128, 32_768)
    assert shape_of_config({"text_config": QWEN_05B}, "config.json") == shape


def test_a_shape_from_nothing_and_one_from_a_size() -> None:
    init = InitConfig(hidden_size=128, layers=3, heads=4, vocab_size=640, context=96)
    assert shape_of_init(init).weights == 640 * 128 + 3 * (4 * 128**2 + 3 * 128 * init.mlp_size + 256) + 128
    assert shape_of_size(500_000_000).hidden == 896
    assert shape_of_size(8_000_000_000).hidden == 4096
    assert shape_of_size(7_000_000_000).weights == 7_000_000_000


def test_a_mixture_of_experts_learns_all_and_visits_few() -> None:
    experts = {"num_local_experts": 8, "num_experts_per_tok": 2}
    dense, mixture = (shape_of_config(QWEN_05B | extra, "config.json") for extra in ({}, experts))
    assert mixture.mlp == 2 * dense.mlp
    assert mixture.weights - dense.weights == 7 * 24 * 3 * 896 * 4864


def test_a_config_without_widths_is_an_error_that_names_them() -> None:
    with pytest.raises(ArtifactError, match="x/config.json: has no num_hidden_layers or n_layer"):
        shape_of_config({"hidden_size": 8}, "x/config.json")


def test_four_models_by_hand() -> None:
    """1,000 weights, one block: 16 bytes each that learns, 2 each that answers in bfloat16."""
    shape = Shape(hidden=10, mlp=20, layers=1, query=10, key_value=5, vocabulary=7, context=64, weights=1000)
    load = RolloutLoad(prompt=6, response=2, generation_rows=1, micro_batch_tokens=16)
    full = memory.ppo(shape, shape, Computation(bfloat16=True, checkpointing=False), load)
    assert summed(full.standing) == {
        "policy": 12_000,
        "value model": 12_000,
        "reference": 2000,
        "reward model": 2000,
    }
    tokens, logits, head = 2 * (6 + 2), 2 * 2 * 7, 2 * 7 * 10
    kept = tokens * (12 * 10 + 8 * 10 + 4 * 20 + 2 * 8)
    turning = 2 * tokens * 20 * 2 + 6 * 20 * 10  # of a block's backward, more than these logits
    stepping = {"gradients": 4000, "optimizer": 0}
    # Of one model at a time, the gradients of a micro-batch before and a forward.
    assert turning > logits * 24 + head
    assert total_of(full.passing["update"]) == 4000 + kept + turning
    assert total_of(full.passing["value update"]) == 4000 + kept + turning
    assert full.passing["optimizer"] == {"policy": stepping}
    assert full.passing["value optimizer"] == {"value model": stepping}
    assert full.total == 32_000 + kept + turning
    # What other architectures keep besides: normed states, a copy for each linear layer, silu's result and its product.
    other = memory.ppo(replace(shape, lean=False), None, Computation(bfloat16=True, checkpointing=False), load)
    assert total_of(other.passing["value update"]) == 4000 + kept + turning + tokens * (14 * 10 + 4 * 20) + 2 * 1000
    assert summed(full.during(full.peak))["policy"] == 16_000 + kept + turning
    two = Computation(bfloat16=False, checkpointing=False, processes=2)
    several = memory.ppo(shape, None, two, load)
    assert summed(several.standing) == {"policy": 16_000, "value model": 16_000, "reference": 4000}
    # The buckets of TRL's trainers are copies, beside gradients that come and go.
    assert memory.sft(shape, two, 1, 8).standing["policy"] == {
        "weights": 4000,
        "gradients": 0,
        "optimizer": 8000,
        "buffers": 4000,
    }


@pytest.mark.parametrize(
    ("strategy", "policy", "reference"),
    [
        ("ddp", 16_000, 2000),
        ("zero1", 8000 + 12_000 / 4, 2000),  # and a float32 share of DeepSpeed's own
        ("zero2", 4000 + 16_000 / 4, 2000),
        ("zero3", 20_000 / 4 + 4 * BUCKET_ENTRIES, 500),
        ("fsdp", 16_000 / 4, 500),
        ("fsdp in pairs", 16_000 / 2, 1000),
        ("zero1 offloaded", 8000, 2000),
        ("zero2 offloaded", 4000, 2000),
        ("fsdp offloaded", 0, 0),
    ],
)
def test_what_four_processes_share_out(strategy: str, policy: float, reference: float) -> None:
    """1,000 weights of which 860 stand in one block; each process its share, and a model's parts while it computes."""
    shape = Shape(hidden=10, mlp=20, layers=1, query=10, key_value=5, vocabulary=7, context=64, weights=1000)
    name, _, how = strategy.partition(" ")
    options = {"in pairs": {"shard_over": 2}, "offloaded": {"cpu_offload": True}, "": {}}[how]
    shared = ParallelismConfig.model_validate({"strategy": name, **options})
    load = RolloutLoad(prompt=6, response=2, generation_rows=1, micro_batch_tokens=16)
    computation = Computation(bfloat16=True, checkpointing=True, processes=4, **shared_out(shared, 4))
    found = memory.ppo(shape, shape, computation, load)
    for role, phase in (("policy", "optimizer"), ("value model", "value optimizer")):
        held = summed(found.during(phase))
        assert held[role] - found.passing[phase][role]["optimizer"] == policy
        assert held["reference"] == held["reward model"] == reference
    alone = memory.ppo(shape, shape, Computation(bfloat16=True, checkpointing=True), load)
    whole = alone.passing["update"]["policy"]
    own = found.passing["update"]["policy"]
    assert (own["activations"], own["logits"]) == (whole["activations"], whole["logits"])
    sent = {"zero1": 4 * BUCKET_ENTRIES, "zero2": 4 * BUCKET_ENTRIES}
    parts = {"fsdp": (1000 - 860 + 2 * 860) * (4 + 2), "zero3": (1000 - 860 + 2 * 860) * 4}
    assert own["buffers"] == parts.get(name, 0) + sent.get(name, 0)


def test_what_is_offloaded_counts_only_while_it_is_used() -> None:
    shape = Shape(hidden=10, mlp=20, layers=1, query=10, key_value=5, vocabulary=7, context=64, weights=1000)
    load = RolloutLoad(prompt=6, response=2, generation_rows=1, micro_batch_tokens=16)
    how = Computation(bfloat16=True, checkpointing=False)
    plain = memory.ppo(shape, shape, how, load)
    away = memory.ppo(shape, shape, how, load, offload=["reference", "reward", "optimizer"])
    assert summed(away.standing) == {"policy": 4000, "value model": 4000}
    less = {"sampling": 4000 + 16_000, "log-probs": 2000 + 16_000, "optimizer": 4000, "value optimizer": 4000}
    less |= {"update": 4000, "value update": 4000}
    for phase, bytes_ in less.items():
        assert total_of(plain.during(phase)) - total_of(away.during(phase)) == bytes_, phase
    assert away.during("scores")["reward model"]["weights"] == 2000
    assert "reference" not in away.during("scores")


def test_a_bucket_may_be_written_as_a_float(tmp_path: Path) -> None:
    """As DeepSpeed's own examples have it."""
    (tmp_path / "zero.json").write_text('{"zero_optimization": {"reduce_bucket_size": 5e8}}')
    assert bucket_of(ParallelismConfig(strategy="zero2", deepspeed=str(tmp_path / "zero.json"))) == 500_000_000


def test_a_server_s_sampling_takes_nothing_here_and_a_replica_all_weights() -> None:
    shape = shape_of_size(8_000_000_000)
    recipe = Recipe.model_validate(
        {
            "model": {"dtype": "bfloat16", "activation_checkpointing": True},
            "ppo": {"parallelism": {"strategy": "fsdp"}, "prompts_per_step": 256},
        }
    )

    def sampling(**generation: object) -> float:
        changed = recipe.ppo.model_copy(update={"generation": GenerationConfig.model_validate(generation)})
        found = estimate(recipe.model_copy(update={"ppo": changed}), "ppo", shape, 32)
        return total_of(found.passing["sampling"])

    shared, replica = sampling(), sampling(weights="replica")
    assert replica > shared + (4 + 2) * (shape.weights - 2 * shape.vocabulary * shape.hidden) * 0.9
    there = {"engine": "vllm", "weights": "server", "server": {"addresses": ["http://127.0.0.1:1"]}}
    assert sampling(**there) == 0


def test_adapters_and_quantised_weights_take_less() -> None:
    shape = shape_of_size(8_000_000_000)
    load = RolloutLoad(prompt=512, response=256, generation_rows=32, micro_batch_tokens=2048)

    def total(**options: object) -> float:
        how = Computation(bfloat16=True, checkpointing=True, **options)  # type: ignore[arg-type]
        return memory.ppo(shape, shape, how, load).total / GIB

    full, lora, int8 = total(), total(lora_rank=16), total(lora_rank=16, quantization="int8")
    nf4 = total(lora_rank=16, quantization="nf4")
    assert full > 238 > lora > int8 > nf4 > 32  # GiB: 2 x 12 + 2 x 2 + 4 bytes of 8 billion weights at least


def test_not_all_of_a_device_can_be_filled() -> None:
    assert 0.85 * 24 * GIB < memory.usable(24 * GIB) < 0.9 * 24 * GIB
