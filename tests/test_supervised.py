"""SFT without padding has TRL's loss and gradients; each sequence in a row is as if it were alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from test_packing import VOCABULARY, gradients, shape_of, two
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast
from trl.trainer.reward_config import RewardConfig
from trl.trainer.sft_config import SFTConfig

from reward_models.trainer import BradleyTerryTrainer
from rlhf.adapters import add_lora
from rlhf.config import LoraConfig
from rlhf.logprobs import row_logprobs
from rlhf.packing import ARCHITECTURES
from stages.supervised import IGNORED, SupervisedTrainer, one_row

CHANCE = torch.Generator().manual_seed(0)
PROMPTS, LENGTHS = [0, 2, 5, 1, 9, 3, 4], [8, 3, 11, 2, 30, 3, 9]  # tokens before what is learned, and of all


def examples() -> list[dict[str, list[int]]]:
    found = []
    for prompt, length in zip(PROMPTS, LENGTHS, strict=True):
        tokens = torch.randint(3, VOCABULARY, (length,), generator=CHANCE).tolist()
        found.append({"input_ids": tokens, "labels": [IGNORED] * prompt + tokens[prompt:]})
    return found


EXAMPLES = examples()


def alone(model: Any, example: dict[str, list[int]]) -> Tensor:
    """Log-probs of what a sequence teaches; nothing stands before its first token."""
    logits = model(input_ids=torch.tensor([example["input_ids"]])).logits[0].log_softmax(-1)
    learned = [i for i, label in enumerate(example["labels"]) if i and label != IGNORED]
    found: Tensor = logits[[i - 1 for i in learned], [example["labels"][i] for i in learned]]
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_sequence_in_a_row_is_as_if_alone(architecture: str) -> None:
    plain, packing = two(architecture, AutoModelForCausalLM)
    by_length = sorted(EXAMPLES, key=lambda example: len(example["input_ids"]))
    found = torch.cat([alone(plain, example) for example in by_length]), row_logprobs(packing, one_row(EXAMPLES))
    for logprobs in found:
        (logprobs @ torch.linspace(-1, 1, len(logprobs))).backward()
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=0)
    for padded, packed in zip(gradients(plain), gradients(packing), strict=True):
        torch.testing.assert_close(packed, padded, atol=5e-6 * float(padded.abs().max().clamp(min=1e-3)), rtol=0)


def test_a_row_splits_what_trl_packed() -> None:
    merged = {key: sum((example[key] for example in EXAMPLES), []) for key in ("input_ids", "labels")}
    together, apart = one_row([{**merged, "seq_lengths": LENGTHS}]), one_row(EXAMPLES)
    assert together.keys() == apart.keys() and together["lengths"] == apart["lengths"] == sorted(LENGTHS)
    assert all(torch.equal(together[key], apart[key]) for key in apart if key != "lengths")
    assert int((apart["labels"] != IGNORED).sum()) == len(apart["targets"]) == sum(LENGTHS) - sum(PROMPTS) - 1


def trainer(model: Any, packing: bool, folder: Path, gpus: int = 0) -> SupervisedTrainer:
    words = {f"t{i}": i for i in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="t0")), pad_token="t0", eos_token="t2"
    )
    arguments = SFTConfig(
        output_dir=str(folder),
        use_cpu=True,
        report_to=[],
        per_device_train_batch_size=4,
        packing=packing,
        max_length=33 if packing else None,
        bf16=False,
        average_tokens_across_devices=True,
        gradient_checkpointing=False,
    )
    arguments._n_gpu = gpus
    dataset = Dataset.from_list(EXAMPLES)
    return SupervisedTrainer(
        model=model, args=arguments, train_dataset=dataset, eval_dataset=dataset, processing_class=tokenizer
    )


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # of TRL and transformers
def test_one_process_takes_one_of_the_gpus_it_sees(tmp_path: Path) -> None:
    """TRL refuses several; to hide them is too late where an import has asked CUDA."""
    own = two("llama", AutoModelForCausalLM)[1]
    made = trainer(own, False, tmp_path, gpus=8)
    assert made.args.n_gpu == 1
    one_label = shape_of("llama")
    one_label.num_labels = 1
    arguments = RewardConfig(output_dir=str(tmp_path), use_cpu=True, report_to=[], bf16=False, max_length=None)
    arguments._n_gpu = 8
    BradleyTerryTrainer(
        model=AutoModelForSequenceClassification.from_config(one_label),
        pad_id=0,
        label_smoothing=0.0,
        center=0.0,
        args=arguments,
        train_dataset=Dataset.from_list([{"chosen_ids": [3], "rejected_ids": [4], "target": 1.0, "weight": 1.0}]),
        processing_class=made.processing_class,
    )
    assert arguments.n_gpu == 1


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # of TRL and transformers
@pytest.mark.parametrize("items", [None, 100])
@pytest.mark.parametrize("packing", [False, True])
def test_the_loss_is_trls(packing: bool, items: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of one of two ranks, whose gradients are averaged, where the trainer counts the tokens of both."""
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    losses = []
    both = two("llama", AutoModelForCausalLM)
    for model in both:
        made = trainer(model, packing, tmp_path)
        batch = made.data_collator([made.train_dataset[i] for i in range(min(4, len(made.train_dataset)))])
        assert made.packs == (model is both[1]) == ("lengths" in batch)
        count = None if items is None else torch.tensor(items)
        loss = made.compute_loss(model, batch, num_items_in_batch=count)
        loss.backward()
        losses.append(loss.detach())
    torch.testing.assert_close(losses[1], losses[0], atol=1e-6, rtol=0)
    for theirs, ours in zip(*map(gradients, both), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5 * float(theirs.abs().max().clamp(min=1e-3)), rtol=0)


def test_nothing_to_learn_is_a_zero_with_a_gradient() -> None:
    """Of other ranks' tokens there may be some, and they wait for this one's backward."""
    packing = two("llama", AutoModelForCausalLM)[1]
    logprobs = row_logprobs(packing, one_row([{"input_ids": [5, 6, 7], "labels": [IGNORED] * 3}]))
    logprobs.sum().backward()
    assert len(logprobs) == 0 and not any(parameter.grad is None for parameter in packing.parameters())


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
def test_recomputed_in_the_backward_pass_it_is_the_same() -> None:
    plain, recomputing = (two("llama", AutoModelForCausalLM)[1].train() for _ in range(2))
    recomputing.gradient_checkpointing_enable({"use_reentrant": False})
    for model in (plain, recomputing):
        row_logprobs(model, one_row(EXAMPLES)).sum().backward()
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*map(gradients, (plain, recomputing)), strict=True))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks
def test_adapters_that_train_new_tokens_of_tied_embeddings() -> None:
    """peft wraps the head then, which TRL's own forward cannot take."""
    plain, packing = (
        add_lora(model, LoraConfig(rank=4), "policy", [5, 6]) for model in two("llama", AutoModelForCausalLM)
    )
    with torch.no_grad():
        for mine, theirs in zip(packing.parameters(), plain.parameters(), strict=True):
            mine.copy_(theirs.add_(0.01))
    by_length = sorted(EXAMPLES, key=lambda example: len(example["input_ids"]))
    wanted, found = torch.cat([alone(plain, each) for each in by_length]), row_logprobs(packing, one_row(EXAMPLES))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    for logprobs in (wanted, found):
        logprobs.sum().backward()
    for padded, packed in zip(gradients(plain), gradients(packing), strict=True):
        torch.testing.assert_close(packed, padded, atol=1e-5 * float(padded.abs().max().clamp(min=1e-2)), rtol=0)
