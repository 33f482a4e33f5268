import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rlhf.batching import pad
from rlhf.config import InitConfig, LoraConfig, ModelConfig
from rlhf.errors import ArtifactError
from rlhf.logprobs import response_values
from rlhf.models import (
    add_lora,
    context_of,
    load_policy,
    load_reward_model,
    load_value_model,
    new_policy,
    save_model,
    sequence_scores,
)
from rlhf.tokenization import Tokenization, train_tokenization

TEXTS = ["The cat sat on the mat, and the dog sat on the cat.", "A dog ran; a cat ran after it!"]
INIT = InitConfig(hidden_size=32, layers=2, heads=2, vocab_size=290, context=64)
ROWS = [[5, 9, 200, 31], [7], [100, 101, 102, 103, 104, 105, 1], [44, 3]]
LORA = LoraConfig(rank=4, alpha=8.0)


@functools.cache
def tiny_tokenization() -> Tokenization:
    """Plain text, so that a test decides on a prompt's last token; padding is id 0, the stop token id 1."""
    return Tokenization(train_tokenization(TEXTS, INIT.vocab_size, INIT.context).tokenizer, chat=False)


def widen(model: nn.Module, seed: int) -> None:
    """Weights of deviation 0.2: at the usual 0.02 a tiny model hardly looks at its context, whatever is wrong."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.2, generator=generator) if weight.ndim > 1 else weight.fill_(1.0)


def tiny_policy(seed: int = 0, attention: Literal["eager", "sdpa"] = "sdpa", **options: Any) -> nn.Module:
    """A random Llama of 30,000 parameters."""
    model = new_policy(INIT.model_copy(update=options), tiny_tokenization(), ModelConfig(attention=attention))
    widen(model, seed)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """policy/ and, from it, reward/."""
    folder = tmp_path_factory.mktemp("models")
    save_model(tiny_policy(), tiny_tokenization(), folder / "policy")
    torch.manual_seed(1)
    save_model(load("reward", folder / "policy"), tiny_tokenization(), folder / "reward")
    return folder


LOADERS = {"policy": load_policy, "reward": load_reward_model, "value": load_value_model}


def load(kind: str, path: Path, **options: Any) -> Any:
    return LOADERS[kind](path, tiny_tokenization(), ModelConfig(), **options)


@pytest.fixture(params=["policy", "reward", "value"])
def model(request: pytest.FixtureRequest, folder: Path) -> Iterator[Any]:
    yield load(request.param, folder / ("policy" if request.param == "policy" else "reward"))


def right_padded(rows: list[list[int]], extra: int = 0, fill: int = 0) -> tuple[Tensor, Tensor]:
    tokens, mask = pad([*rows, [fill] * (max(map(len, rows)) + extra)], fill, "right")
    return tokens[:-1], mask[:-1]


def test_new_policy_has_the_shape_asked_for() -> None:
    model = new_policy(INIT, tiny_tokenization(), ModelConfig())
    assert context_of(model) == 64
    assert model.config.pad_token_id == 0 and model.config.eos_token_id == 1
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.shape == (len(tiny_tokenization().tokenizer), 32)


@torch.no_grad()
@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (0.7, 2.5)])
def test_a_fresh_value_at_the_last_token_is_the_normalised_score(folder: Path, mean: float, deviation: float) -> None:
    reward, value = load("reward", folder / "reward"), load("value", folder / "reward", mean=mean, deviation=deviation)
    tokens, mask = right_padded(ROWS)
    scores = (sequence_scores(reward, tokens, mask) - mean) / deviation
    # The state before a token that follows the sequence is the whole sequence.
    for row, score in zip(ROWS, scores, strict=True):
        extended = torch.tensor([[*row, 77]])
        values = response_values(value, extended, torch.ones_like(extended).bool(), 1)
        torch.testing.assert_close(values[0, 0], score, atol=1e-6, rtol=1e-5)
    assert scores.std() > 0.1


@torch.no_grad()
def test_the_stop_token_is_scored(folder: Path) -> None:
    reward, tokenization = load("reward", folder / "reward"), tiny_tokenization()
    rows = [tokenization.response("the cat", finished) for finished in (True, False)]
    with_stop, without = sequence_scores(reward, *right_padded(rows))
    assert abs(float(with_stop - without)) > 0.05


@torch.no_grad()
@pytest.mark.parametrize(("extra", "fill"), [(3, 0), (0, 1), (5, 99)])
def test_scores_do_not_depend_on_right_padding(folder: Path, extra: int, fill: int) -> None:
    reward = load("reward", folder / "reward")
    padded = sequence_scores(reward, *right_padded(ROWS, extra, fill))
    alone = torch.cat([sequence_scores(reward, *pad([row], 0, "right")) for row in ROWS])
    torch.testing.assert_close(padded, alone, atol=1e-6, rtol=1e-5)
    assert alone.unique().numel() == len(ROWS)


@torch.no_grad()
def test_padding_ids_within_a_response_count_like_any_other(folder: Path) -> None:
    """The classifier's own pooling would stop before a padding id at the end."""
    reward = load("reward", folder / "reward")
    rows = [[5, 9, 0, 31], [5, 9, 31, 0], [5, 9, 31]]
    tokens, mask = right_padded(rows)
    hidden = [reward.model(input_ids=torch.tensor([row])).last_hidden_state[0, -1] for row in rows]
    expected = torch.stack([reward.score.weight[0] @ state for state in hidden])
    torch.testing.assert_close(sequence_scores(reward, tokens, mask), expected, atol=1e-6, rtol=1e-5)
    assert abs(float(expected[1] - expected[2])) > 0.01


def logits(model: Any) -> Tensor:
    tokens = torch.tensor([ROWS[2]])
    result: Tensor = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
    return result.detach()


def test_training_mode_drops_nothing(model: Any) -> None:
    assert torch.equal(logits(model.train()), logits(model.train()))
    assert torch.equal(logits(model.train()), logits(model.eval()))


@pytest.mark.parametrize("kind", ["policy", "reward", "value"])
def test_dropout_that_a_model_brings_along_is_off(kind: str, tmp_path: Path) -> None:
    shape = LlamaConfig(
        vocab_size=290,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        attention_dropout=0.5,
        classifier_dropout=0.5,
    )
    foreign = LlamaForCausalLM(shape)
    widen(foreign, 0)
    save_model(foreign, tiny_tokenization(), tmp_path)
    assert '"attention_dropout": 0.5' in (tmp_path / "config.json").read_text()
    model = load(kind, tmp_path)
    if kind == "value":
        nn.init.ones_(model.score.weight)  # of zeros, which drop nothing
    test_training_mode_drops_nothing(model)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_saved_as_safetensors_alone_and_the_same_when_loaded(folder: Path) -> None:
    assert "model.safetensors" in files(folder / "policy")
    assert not [name for name in files(folder) if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    torch.testing.assert_close(logits(load("policy", folder / "policy")), logits(tiny_policy()), rtol=0, atol=0)
    plain = AutoModelForCausalLM.from_pretrained(folder / "policy")
    assert all(
        torch.equal(one, other) for one, other in zip(plain.parameters(), tiny_policy().parameters(), strict=True)
    )
    torch.testing.assert_close(logits(plain), logits(tiny_policy()), rtol=0, atol=1e-5)  # by another library


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks for it
@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_adapters_are_merged_into_the_saved_model(kind: str, folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    adapted = add_lora(load(kind, folder / kind), LORA, kind)
    trained = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    assert trained and all("lora" in name or "score" in name for name in trained)
    before = logits(adapted)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    after = logits(adapted)
    assert float((after - before).abs().max()) > 0.1
    save_model(adapted, tiny_tokenization(), tmp_path / "model")
    torch.testing.assert_close(logits(load(kind, tmp_path / "model")), after, atol=1e-5, rtol=1e-5)
    assert files(tmp_path / "adapter") >= {"adapter_model.safetensors", "adapter_config.json"}
    assert "model.safetensors" in files(tmp_path / "model")
    assert not [name for name in files(tmp_path) if name.endswith((".bin", ".pt", ".pth", ".pkl"))]


def test_a_classifier_keeps_its_head_and_a_fresh_one_is_normal(folder: Path) -> None:
    again = [load("reward", folder / "reward").score.weight for _ in range(2)]
    assert torch.equal(*again)
    fresh = [load("reward", folder / "policy").score.weight for _ in range(2)]
    assert not torch.equal(*fresh)
    spread = torch.cat([load("reward", folder / "policy").score.weight for _ in range(20)]).detach()
    assert float(spread.std()) == pytest.approx(33**-0.5, rel=0.15)


@pytest.mark.parametrize("kind", ["policy", "reward", "value"])
@pytest.mark.parametrize("damage", ["missing", "empty", "no weights", "cut", "other shapes", "lacks a weight"])
def test_what_cannot_be_loaded_is_one_line(kind: str, damage: str, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "model"
    if damage != "missing":
        path.mkdir()
    if damage not in ("missing", "empty"):
        for name in ("config.json", "model.safetensors"):
            (path / name).write_bytes((folder / "policy" / name).read_bytes())
    if damage == "no weights":
        (path / "model.safetensors").unlink()
    elif damage == "cut":
        (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:1000])
    elif damage == "other shapes":
        shape = (path / "config.json").read_text()
        (path / "config.json").write_text(shape.replace('"intermediate_size": 88', '"intermediate_size": 96'))
    elif damage == "lacks a weight":
        weights = load_file(path / "model.safetensors")
        del weights["model.layers.1.mlp.up_proj.weight"]
        save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ArtifactError) as caught:
        load(kind, path)
    (problem,) = caught.value.problems
    assert str(path) in problem and "\n" not in problem
