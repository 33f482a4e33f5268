"""Models as other people saved them: heads of other names, other architectures, adapters, more tokens, few bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from test_models import INIT, LORA, ROWS, right_padded, tiny_policy, tiny_tokenization
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf.adapters import is_few_bits, is_quantized, merged
from rlhf.config import ModelConfig
from rlhf.errors import ArtifactError, ContractError
from rlhf.heads import head_of
from rlhf.logprobs import response_values
from rlhf.models import (
    add_lora,
    load_own_reward_model,
    load_policy,
    load_reward_model,
    load_value_model,
    save_model,
    sequence_scores,
)
from rlhf.pretrained import local_model
from rlhf.store.weights import check_model_directory
from rlhf.tokenization import load_tokenization

pytestmark = pytest.mark.filterwarnings("ignore")
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 300}
SHAPES = {
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 300, "n_positions": 64},
    "GPTNeoX": SIZES | {"intermediate_size": 64, "max_position_embeddings": 64},
    "Qwen2": SIZES | {"intermediate_size": 64, "num_key_value_heads": 1, "max_position_embeddings": 64},
    "Olmo2": SIZES | {"intermediate_size": 64, "max_position_embeddings": 64},  # has no token classifier of its own
}


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    save_model(tiny_policy(), tiny_tokenization(), tmp_path / "policy")
    return tmp_path / "policy"


def saved(name: str, kind: Any, path: Path, **options: Any) -> Any:
    """A random model of an architecture, as its own library saves it, with our tiny tokenizer beside it."""
    torch.manual_seed(3)
    shape = getattr(transformers, f"{name}Config")(**SHAPES[name], pad_token_id=0, **options)
    model = kind.from_config(shape)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.2)
    model.save_pretrained(path)
    tiny_tokenization().tokenizer.save_pretrained(path)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("name", SHAPES)
def test_any_causal_architecture_gives_scores_and_values(name: str, tmp_path: Path) -> None:
    theirs = saved(name, AutoModelForSequenceClassification, tmp_path, num_labels=1)
    own = load_own_reward_model(tmp_path, ModelConfig()).eval()
    value = load_value_model(tmp_path, tiny_tokenization(), ModelConfig(), mean=0.4, deviation=2.0).eval()
    scores = sequence_scores(own, *right_padded(ROWS))
    alone = torch.stack([theirs(input_ids=torch.tensor([row])).logits[0, 0] for row in ROWS])
    torch.testing.assert_close(scores, alone, atol=1e-5, rtol=1e-4)
    for row, score in zip(ROWS, scores, strict=True):
        extended = torch.tensor([[*row, 77]])
        values = response_values(value, extended, torch.ones_like(extended).bool(), 1)
        torch.testing.assert_close(values[0, 0], (score - 0.4) / 2.0, atol=1e-5, rtol=1e-4)
    assert scores.std() > 0.05


@torch.no_grad()
@pytest.mark.parametrize("name", ["GPT2", "Olmo2"])
def test_values_on_a_policy_of_any_architecture_start_at_zero(name: str, tmp_path: Path) -> None:
    saved(name, AutoModelForCausalLM, tmp_path)
    value = load_value_model(tmp_path, tiny_tokenization(), ModelConfig()).eval()
    tokens = torch.tensor([ROWS[0]])
    assert not response_values(value, tokens, torch.ones_like(tokens).bool(), 2).any()
    assert any(parameter.requires_grad for parameter in value.parameters())


@torch.no_grad()
@pytest.mark.parametrize(("prefix", "bias"), [("v_head.summary", True), ("v_head", False), ("rm_head", False)])
def test_a_head_of_another_name_is_found(prefix: str, bias: bool, policy: Path) -> None:
    weights, head = load_file(policy / "model.safetensors"), torch.randn(1, 32)
    extra = {f"{prefix}.weight": head} | ({f"{prefix}.bias": torch.tensor([0.7])} if bias else {})
    save_file(weights | extra, policy / "model.safetensors", {"format": "pt"})
    reward = load_own_reward_model(policy, ModelConfig()).eval()
    tokens, mask = right_padded(ROWS)
    hidden = load_policy(policy, tiny_tokenization(), ModelConfig()).model(tokens, mask).last_hidden_state  # type: ignore[union-attr, operator]
    expected = torch.stack([hidden[i, len(row) - 1] @ head[0] for i, row in enumerate(ROWS)]) + (0.7 if bias else 0.0)
    torch.testing.assert_close(sequence_scores(reward, tokens, mask), expected, atol=1e-5, rtol=1e-4)


def test_a_language_model_is_no_reward_model(policy: Path) -> None:
    with pytest.raises(ArtifactError, match="no head that gives one score"):
        load_own_reward_model(policy, ModelConfig())


def test_several_labels_are_no_score(tmp_path: Path) -> None:
    saved("Qwen2", AutoModelForSequenceClassification, tmp_path, num_labels=3)
    with pytest.raises(ArtifactError, match="gives 3 labels where a reward is one score"):
        load_own_reward_model(tmp_path, ModelConfig())


@torch.no_grad()
@pytest.mark.parametrize("beside", [True, False])
def test_an_adapter_is_loaded_onto_its_base(beside: bool, policy: Path, tmp_path: Path) -> None:
    adapted = add_lora(load_policy(policy, tiny_tokenization(), ModelConfig()), LORA, "policy")
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.normal_(std=0.1)
    folder = policy.parent / "adapter"
    adapted.save_pretrained(str(folder))  # type: ignore[operator]
    if beside:  # made elsewhere, and copied here with its base
        text = (folder / "adapter_config.json").read_text()
        (folder / "adapter_config.json").write_text(text.replace(str(policy), "policy"))
    tokens = torch.tensor([ROWS[2]])
    expected = adapted(input_ids=tokens).logits
    assert check_model_directory(folder) == check_model_directory(policy)
    tokenization = load_tokenization(folder, ModelConfig())  # its base's
    found = load_policy(folder, tokenization, ModelConfig())
    torch.testing.assert_close(found(input_ids=tokens).logits, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(tiny_policy()(input_ids=tokens).logits, expected, atol=1e-3)


@torch.no_grad()
def test_a_classifiers_adapter_brings_its_head(policy: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    trunk = AutoModelForSequenceClassification.from_pretrained(policy, num_labels=1)
    adapted = get_peft_model(trunk, PeftLoraConfig(task_type="SEQ_CLS", r=2, target_modules="all-linear"))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.normal_(std=0.1)
    adapted.eval().save_pretrained(str(tmp_path / "adapter"))
    found = load_own_reward_model(tmp_path / "adapter", ModelConfig()).eval()
    expected = torch.stack([adapted(input_ids=torch.tensor([row])).logits[0, 0] for row in ROWS])
    torch.testing.assert_close(sequence_scores(found, *right_padded(ROWS)), expected, atol=1e-5, rtol=1e-4)


def test_an_adapter_without_its_base_is_one_line(policy: Path, tmp_path: Path) -> None:
    add_lora(load_policy(policy, tiny_tokenization(), ModelConfig()), LORA, "policy").save_pretrained(  # type: ignore[operator]
        str(tmp_path / "adapter")
    )
    policy.rename(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="no such directory, and not to be had from the hub"):
        load_policy(tmp_path / "adapter", tiny_tokenization(), ModelConfig())


def test_added_tokens_grow_tokenizer_and_embeddings(policy: Path, tmp_path: Path) -> None:
    config = ModelConfig()
    tokenization = load_tokenization(policy, config, ["<|tool|>", "<|end|>"])  # the second is there already
    before = tiny_policy()
    rows = before.get_input_embeddings().weight  # type: ignore[operator, union-attr]
    model: Any = load_policy(policy, tokenization, config)
    weight = model.get_input_embeddings().weight
    assert len(weight) == len(rows) + 1 == len(tokenization.tokenizer)
    torch.testing.assert_close(weight[-1], rows.mean(0))  # type: ignore[operator]
    assert tokenization.tokenizer.convert_tokens_to_ids("<|tool|>") == len(rows)
    adapted: Any = add_lora(model, LORA, "policy", [len(rows)])
    adapted(input_ids=torch.tensor([[5, len(rows), 7]])).logits.square().sum().backward()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad.sign()
        expected = adapted(input_ids=torch.tensor([[5, len(rows), 7]])).logits
    save_model(adapted, tokenization, tmp_path / "grown")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "grown")
    torch.testing.assert_close(plain(torch.tensor([[5, len(rows), 7]])).logits, expected, atol=1e-5, rtol=1e-4)
    trained = plain.get_input_embeddings().weight
    assert (trained[-1] - rows.mean(0)).abs().min() > 0.05  # type: ignore[operator]
    torch.testing.assert_close(trained[:-1], rows)


def test_a_tokenizer_without_padding_is_told_how_to_get_one(policy: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(policy)
    bare = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|end|>", bos_token="<|end|>", unk_token="<|end|>"
    )
    # As GPT-2's: the only special token there is ends a text.
    bare._tokenizer = transformers.GPT2TokenizerFast(
        vocab={"a": 0, "b": 1, "<|end|>": 2}, merges=[], eos_token="<|end|>", unk_token="<|end|>", bos_token="<|end|>"
    )._tokenizer
    bare.save_pretrained(policy)
    for file in policy.glob("special_tokens_map.json"):
        file.unlink()
    with pytest.raises(ContractError, match=r"model\.added_tokens=\['<\|pad\|>'\]"):
        load_tokenization(policy, ModelConfig())
    tokenization = load_tokenization(policy, ModelConfig(), ["<|tool|>", "<|pad|>", "<|other|>"])
    assert tokenization.tokenizer.pad_token == "<|pad|>"
    assert load_tokenization(policy, ModelConfig(), frozen=True).pad_id == tokenization.stop_id


def spied(adapted: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Records when a model with adapters is moved and when peft merges it; all of few bits is merged before."""
    order: list[str] = []
    to, merge = adapted.to, adapted.merge_and_unload

    def moving(place: str) -> Any:
        assert not any(is_few_bits(module) for module in adapted.modules())
        order.append(f"to {place}")
        return to(place)

    def merging() -> Any:
        order.append("merge")
        return merge()

    monkeypatch.setattr(adapted, "to", moving)
    monkeypatch.setattr(adapted, "merge_and_unload", merging)
    return order


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_merging_needs_no_room_for_the_whole_model_on_the_gpu(tmp_path: Path) -> None:
    save_model(tiny_policy(hidden_size=512, layers=8), tiny_tokenization(), tmp_path)
    config = ModelConfig(lora=LORA.model_copy(update={"quantization": "nf4"}))
    model = load_policy(tmp_path, tiny_tokenization(), config, quantized=True)
    adapted: Any = add_lora(model, LORA, "policy").to("cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    whole = merged(adapted)
    full = sum(weight.nbytes for weight in whole.parameters())
    assert {weight.device.type for weight in [*whole.parameters(), *whole.buffers()]} == {"cpu"}
    assert torch.cuda.max_memory_allocated() - before < full / 4


@pytest.mark.parametrize("bits", ["nf4", "int8"])
def test_weights_of_few_bits_learn_by_adapters_and_are_merged(
    bits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = INIT.model_copy(update={"hidden_size": 64})
    save_model(tiny_policy(hidden_size=64), tiny_tokenization(), tmp_path / "policy")
    assert wide.hidden_size == 64
    config = ModelConfig(lora=LORA.model_copy(update={"quantization": bits}))
    tokens = torch.tensor([ROWS[2]])
    full = load_policy(tmp_path / "policy", tiny_tokenization(), config)
    model = load_policy(tmp_path / "policy", tiny_tokenization(), config, quantized=True)
    assert is_quantized(model) and not is_quantized(full)
    apart = (model(input_ids=tokens).logits - full(input_ids=tokens).logits).std()
    assert 1e-3 < float(apart / full(input_ids=tokens).logits.std()) < 0.5  # few bits, but the same model
    adapted: Any = add_lora(model, LORA, "policy")
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        loss = nn.functional.cross_entropy(adapted(input_ids=tokens).logits[0, :-1], tokens[0, 1:])
        losses.append(float(loss))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.7 * losses[0]
    with torch.no_grad():
        expected = adapted.train()(input_ids=tokens).logits
    order = spied(adapted, monkeypatch)
    save_model(adapted, tiny_tokenization(), tmp_path / "merged")
    assert order == ["to cpu", "merge"]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert {weight.dtype for weight in plain.parameters()} == {torch.float32}
    torch.testing.assert_close(plain(tokens).logits, expected, atol=1e-4, rtol=1e-3)


def test_a_reward_model_and_a_critic_of_few_bits_have_full_heads(policy: Path) -> None:
    config = ModelConfig(lora=LORA.model_copy(update={"quantization": "nf4"}))
    for load in (load_reward_model, load_value_model):
        model = load(policy, tiny_tokenization(), config, quantized=True)
        head = head_of(model)
        assert is_quantized(model) and head is not None and head.weight.dtype == torch.float32


def test_a_hub_id_is_its_snapshot_in_the_cache(policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789" * 4
    snapshots = tmp_path / "hub" / "models--org--name" / "snapshots"
    snapshots.mkdir(parents=True)
    policy.rename(snapshots / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert local_model(f"org/name@{commit}", ModelConfig()) == snapshots / commit
    assert local_model("org/name", ModelConfig(revision=commit)) == snapshots / commit
    with pytest.raises(ArtifactError, match=r"model org/other: no such directory, and not to be had from the hub"):
        local_model("org/other", ModelConfig())
