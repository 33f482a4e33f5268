"""Words for token ids, for trainers that want a tokenizer."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from stages.bench.load import BOS, PAD, STOP


def tokenizer(vocabulary: int) -> Any:
    """A tokenizer of so many words."""
    words = {"<pad>": PAD, "<bos>": BOS, "<eos>": STOP, **{f"t{i}": i for i in range(STOP + 1, vocabulary)}}
    found = Tokenizer(WordLevel(words, unk_token="<pad>"))
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    made: Any = PreTrainedTokenizerFast
    return made(tokenizer_object=found, padding_side="left", **names)
