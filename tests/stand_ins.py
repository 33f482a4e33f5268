"""What stands in for models and data of the hub in tests: a tiny Qwen2 and records of the right form."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow
import pyarrow.parquet
import torch
from published import DATA
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from data import toy

HH = DATA / "pairs" / "hh_harmless_base_test.jsonl.gz"
END, OPEN, CLOSE = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}" + OPEN + "{{ message['role'] }}\n{{ message['content'] }}" + CLOSE + "\n"
    "{% endfor %}{% if add_generation_prompt %}" + OPEN + "assistant\n{% endif %}"
)


def write_model(directory: Path, vocab_size: int = 400, context: int = 4096, **shape: int) -> None:
    """A randomly initialised Qwen2 with a byte-level tokenizer that ends turns as Qwen2.5's does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, OPEN, CLOSE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [f"{d.prompt.text}\n{d.completion}" for d in toy.demonstrations(500, 0, toy.prompts())]
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=END,
        eos_token=CLOSE,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHATML
    small = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(fast), max_position_embeddings=context, tie_word_embeddings=True, **{**small, **shape}
    )
    Qwen2ForCausalLM(config).save_pretrained(directory)
    fast.save_pretrained(directory)


def write_hh(directory: Path, count: int = 120) -> None:
    """The first dialogues of the real file, in the place of two of the hub's."""
    with gzip.open(HH, "rt", encoding="utf-8") as file:
        lines = [next(file) for _ in range(2 * count)]
    for name, part in (("helpful-base", lines[:count]), ("harmless-base", lines[count:])):
        (directory / name).mkdir(parents=True)
        with gzip.open(directory / name / "train.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(part)


def write_ultrafeedback(directory: Path, count: int = 120) -> None:
    """Records with the columns of ultrafeedback_binarized, in Parquet below `sft` and `prefs`."""
    rows = []
    pairs = [pair for pair in toy.comparisons(2 * count, 0, toy.prompts()).records if not pair.tie]
    for number, pair in enumerate(pairs[:count]):
        question = {"role": "user", "content": pair.prompt.text}
        chosen, rejected = ([question, {"role": "assistant", "content": text}] for text in (pair.chosen, pair.rejected))
        rows.append(
            {
                "prompt": pair.prompt.text,
                "prompt_id": f"{number:064x}",
                "chosen": chosen,
                "rejected": rejected,
                "messages": chosen,
                "score_chosen": 8.0,
                "score_rejected": 5.5,
            }
        )
    for name, split in (("sft", "train_sft"), ("prefs", "train_prefs")):
        folder = directory / name / "data"
        folder.mkdir(parents=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{split}-00000-of-00001.parquet")
