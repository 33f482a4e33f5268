"""What others' models do not share with ours: an attention they refuse, a shorter context, more stop tokens."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from test_models import ROWS, right_padded, tiny_policy, tiny_tokenization
from transformers import AutoModelForSequenceClassification

from reward_models.scoring import RewardModel
from rlhf.config import ModelConfig, PpoConfig
from rlhf.errors import ArtifactError
from rlhf.models import load_own_reward_model, load_policy, save_model, sequence_scores
from rlhf.pretrained import declared_stops, load_pretrained
from rlhf.types import Completion, Prompt
from stages.adoption import warn_of_stops
from stages.cast import load_critic

pytestmark = pytest.mark.filterwarnings("ignore")
DEBERTA = transformers.DebertaV2Config(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    vocab_size=300,
    max_position_embeddings=64,
    initializer_range=0.2,
    num_labels=1,
)


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    save_model(tiny_policy(), tiny_tokenization(), tmp_path / "policy")
    return tmp_path / "policy"


class Recorded:
    """As much of a stage's context as two of its helpers read."""

    def __init__(self, policy: Path) -> None:
        self.recipe = SimpleNamespace(model=ModelConfig(), ppo=PpoConfig())
        self.inputs = {"sft": SimpleNamespace(model=policy)}
        self.lines: list[str] = []
        self.say = self.warn = self.lines.append


@torch.no_grad()
@pytest.mark.parametrize("attention", ["auto", "sdpa"])
def test_a_reward_model_that_refuses_an_attention_gets_one_it_knows(attention: Any, tmp_path: Path) -> None:
    torch.manual_seed(3)
    theirs = transformers.DebertaV2ForSequenceClassification(DEBERTA).eval()
    theirs.save_pretrained(tmp_path)
    config = ModelConfig(attention=attention)
    own = load_own_reward_model(tmp_path, config).eval()
    alone = torch.stack([theirs(input_ids=torch.tensor([row])).logits[0, 0] for row in ROWS])
    torch.testing.assert_close(sequence_scores(own, *right_padded(ROWS)), alone, atol=1e-5, rtol=1e-4)
    with pytest.raises(ArtifactError, match="does not support an attention implementation"):
        load_pretrained(AutoModelForSequenceClassification, tmp_path, config)


def test_no_other_failure_is_tried_again(tmp_path: Path) -> None:
    calls = []

    class Failing:
        @staticmethod
        def from_pretrained(*_: object, **options: Any) -> None:
            calls.append(options["attn_implementation"])
            raise ValueError("damaged")

    DEBERTA.save_pretrained(tmp_path)
    with pytest.raises(ArtifactError, match="damaged"):
        load_pretrained(Failing, tmp_path, ModelConfig(), any_attention=True)
    assert calls == ["sdpa"]


def test_a_reward_model_of_a_shorter_context_scores_the_end_and_makes_no_values(policy: Path, tmp_path: Path) -> None:
    shape = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=2, vocab_size=300, n_positions=16, pad_token_id=0, num_labels=1
    )
    torch.manual_seed(3)
    reward = RewardModel(transformers.GPT2ForSequenceClassification(shape).eval(), tiny_tokenization(), 4096)
    row = tuple(torch.randint(2, 290, (40,), generator=torch.Generator().manual_seed(1)).tolist())
    long = Completion(Prompt.of_user("-"), "-", row[:30], row[30:], True)
    short = Completion(Prompt.of_user("-"), "-", row[24:30], row[30:], True)
    other = Completion(Prompt.of_user("-"), "-", row[:6], row[6:16], True)
    scores = reward([long, short, other])
    torch.testing.assert_close(scores[0], scores[1])
    assert abs(scores[0] - scores[2]) > 1e-3
    context = Recorded(policy)
    critic: Any = load_critic(reward, context, tiny_tokenization())  # type: ignore[arg-type]
    assert critic.config.model_type == "llama" and not critic.score.weight.any()
    why = "the reward model's context of 16 tokens is shorter than the policy's of 64"
    assert context.lines == [f"{why}; the value model starts from the policy"]


@pytest.mark.parametrize(
    ("declared", "kept"), [([7, 1, 9], [1, 7, 9]), ([7], [1, 7]), (7, [1, 7]), ([1], 1), (1, 1), (None, 1)]
)
def test_declared_stop_tokens_are_kept_and_named(declared: Any, kept: Any, policy: Path, tmp_path: Path) -> None:
    file = policy / "generation_config.json"
    settings = json.loads(file.read_text())
    assert settings["eos_token_id"] == tiny_tokenization().stop_id == 1
    file.write_text(json.dumps(settings | {"eos_token_id": declared}))
    save_model(load_policy(policy, tiny_tokenization(), ModelConfig()), tiny_tokenization(), tmp_path / "again")
    assert json.loads((tmp_path / "again" / "generation_config.json").read_text())["eos_token_id"] == kept
    context = Recorded(policy)
    warn_of_stops(context, tiny_tokenization(), policy)  # type: ignore[arg-type]
    assert len(context.lines) == (kept != 1)
    if context.lines:
        assert f"eos_token_id={declared_stops(policy, ModelConfig())}" in context.lines[0]
        assert "at the tokenizer's eos_token 1 (<|end|>) alone" in context.lines[0]


def test_stop_tokens_of_an_adapter_are_its_bases_and_damaged_ones_are_one_line(policy: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(policy)}))
    assert declared_stops(adapter, ModelConfig()) == [1]
    (policy / "generation_config.json").write_text("[1]")
    with pytest.raises(ArtifactError, match="generation_config.json: cannot be read"):
        declared_stops(policy, ModelConfig())
    (policy / "generation_config.json").unlink()
    assert declared_stops(policy, ModelConfig()) == []
