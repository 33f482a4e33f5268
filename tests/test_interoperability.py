"""What a run leaves behind opens elsewhere, with no code of ours: plain transformers and PEFT, with equal outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from running import TINY, stage
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from data import toy
from reward_models.scoring import RewardModel
from rlhf.config import GenerationConfig, ModelConfig
from rlhf.generation.native import NativeGenerator
from rlhf.models import load_policy, load_reward_model
from rlhf.tokenization import load_tokenization

LORA = "model.lora={rank: 4, alpha: 8.0}"
NEW_TOKENS = 12
QUESTIONS = [prompt.text for prompt in toy.prompts()[:6]]
ANSWERS = ["Yes.", "It is red, I think.", "", "No, sorry. Thank you for asking!", "Blue", "Two of them."]


def rendered(model: Path, questions: list[str] = QUESTIONS) -> list[list[int]]:
    """Prompts as anybody would render them: the saved tokenizer with its own template."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    return [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)["input_ids"]
        for text in questions
    ]


def logits(model: Any, rows: list[list[int]]) -> list[Tensor]:
    with torch.no_grad():
        return [model(input_ids=torch.tensor([row])).logits[0] for row in rows]


def assert_equal(mine: list[Tensor], theirs: list[Tensor]) -> None:
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["sft", "ppo"])
def test_a_policy_in_plain_transformers(name: str, tiny_run: Path) -> None:
    directory = tiny_run / name / "model"
    tokenization = load_tokenization(directory, ModelConfig())
    own = load_policy(directory, tokenization, ModelConfig()).eval()
    plain = AutoModelForCausalLM.from_pretrained(directory).eval()
    prompts = rendered(directory)
    assert prompts == [tokenization.prompt(prompt) for prompt in toy.prompts()[:6]]
    assert_equal(logits(own, prompts), logits(plain, prompts))
    # So cold that the likeliest token is always drawn.
    cold = GenerationConfig(max_new_tokens=NEW_TOKENS, temperature=1e-5)
    sampled = NativeGenerator(own, tokenization.stop_id, tokenization.pad_id, cold).sample(
        prompts, range(len(prompts)), seed=0, step=1
    )
    for row, prompt in enumerate(prompts):
        with torch.no_grad():
            output = plain.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=NEW_TOKENS)
        assert output[0, len(prompt) :].tolist() == sampled.responses[row][sampled.mask[row]].tolist()


def conversations(model: Path, end: str) -> tuple[dict[str, Tensor], list[list[int]]]:
    """Questions with answers: padded by the saved tokenizer, and as rows of ids."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = [
        prompt + tokenizer(answer + end, add_special_tokens=False)["input_ids"]
        for prompt, answer in zip(rendered(model), ANSWERS, strict=True)
    ]
    return tokenizer.pad({"input_ids": rows}, return_tensors="pt"), rows


def plain_scores(model: Any, padded: Any) -> Tensor:
    """Scores of a whole batch by the classifier's own pooling."""
    with torch.no_grad():
        scores: Tensor = model(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]).logits[:, 0]
    return scores


def test_a_reward_model_in_plain_transformers(tiny_run: Path) -> None:
    """Also of answers that end with the stop token, which its pooling must not take for padding."""
    directory = tiny_run / "reward" / "model"
    tokenization = load_tokenization(directory, ModelConfig())
    own = RewardModel(load_reward_model(directory, tokenization, ModelConfig()).eval(), tokenization, 4096)
    plain = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    found = []
    for end in ("", AutoTokenizer.from_pretrained(directory).eos_token):
        padded, rows = conversations(directory, end)
        assert len({len(row) for row in rows}) > 1
        found.append(plain_scores(plain, padded))
        torch.testing.assert_close(found[-1], own.score_tokens(rows), rtol=1e-5, atol=1e-5)
    assert (found[0] - found[1]).abs().min() > 1e-4


def test_adapters_on_their_base_are_the_merged_models(tiny_run: Path, tmp_path: Path) -> None:
    base = tiny_run / "sft" / "model"
    policy = stage("ppo", TINY, tiny_run, tmp_path / "ppo", [LORA, "ppo.steps=2", "ppo.evaluate_every=0"])
    adapted: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(policy / "adapter"))
    merged = AutoModelForCausalLM.from_pretrained(policy / "model")
    prompts = rendered(base)
    assert_equal(logits(merged.eval(), prompts), logits(adapted.eval(), prompts))
    moved = max(
        float((a - b).abs().max())
        for a, b in zip(
            logits(merged, prompts), logits(AutoModelForCausalLM.from_pretrained(base).eval(), prompts), strict=True
        )
    )
    assert moved > 1e-3

    reward = stage("reward", TINY, tiny_run, tmp_path / "reward", [LORA])
    trunk = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    trunk.config.pad_token_id = AutoTokenizer.from_pretrained(base).pad_token_id
    adapted = PeftModel.from_pretrained(trunk, str(reward / "adapter"))
    merged = AutoModelForSequenceClassification.from_pretrained(reward / "model")
    padded, _ = conversations(base, "")
    torch.testing.assert_close(
        plain_scores(adapted.eval(), padded), plain_scores(merged.eval(), padded), rtol=1e-5, atol=1e-5
    )
