"""A world small enough to count: six letters and a stop token, responses of at most two tokens, tables as rewards.

Everything that PPO runs here is real but these: the tokenizer is an alphabet, and the reward looks a response up.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForTokenClassification

from rlhf.analysis.optimum import Array, Response
from rlhf.tokenization import Tokenization
from rlhf.types import Completion, Prompt
from stages.variants import LONGEST

STOP = 0
ALPHABET = "abcdef"  # ids 1 to 6
PROMPTS = tuple(map(Prompt, ("ab", "cad")))  # of two lengths, so that there is padding
SPREAD = 0.1  # deviation of fresh weights: large enough for a reference that prefers some responses


class Alphabet(Tokenization):
    """Letters as tokens. The padding is a letter: whoever forgets a mask reads it as one."""

    def __init__(self) -> None:
        self.chat = False
        self.stop_id = STOP
        self.pad_id = 1

    def prompt(self, prompt: Prompt) -> list[int]:
        """Ids of a prompt's letters."""
        # Without a beginning, attention over equal letters gives the same however many they are: "a" and "aa" would
        # be one state. The stop token serves, as in GPT-2.
        return [STOP, *(ALPHABET.index(letter) + 1 for letter in prompt.text)]

    def text(self, tokens: Sequence[int]) -> str:
        """A response's letters, without the stop token."""
        return "".join(ALPHABET[token - 1] for token in tokens if token != STOP)


def all_responses() -> tuple[Response, ...]:
    """Every response: those that end with the stop token, and those that the length cuts."""
    letters = range(1, len(ALPHABET) + 1)
    ended = [(*begun, STOP) for length in range(LONGEST) for begun in itertools.product(letters, repeat=length)]
    return (*ended, *itertools.product(letters, repeat=LONGEST))


@dataclass(frozen=True)
class TableReward:
    """Looks responses up; see `rlhf.types.Reward`."""

    table: Array  # [prompts, responses]
    responses: tuple[Response, ...]

    def __call__(self, completions: Sequence[Completion]) -> Tensor:
        """Scores [batch]."""
        prompts = {prompt: i for i, prompt in enumerate(PROMPTS)}
        places = {response: i for i, response in enumerate(self.responses)}
        found = [self.table[prompts[each.prompt], places[each.response_tokens]] for each in completions]
        return torch.tensor(found, dtype=torch.float32)


class SmallWorld:
    """A random table of rewards in [-1, 1], and a random policy, of a seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.responses = all_responses()
        self.rewards: Array = np.random.default_rng(seed).uniform(-1, 1, (len(PROMPTS), len(self.responses)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.policy: Any = LlamaForCausalLM(_shape())
            shape = _shape(num_labels=1, classifier_dropout=0.0)
            self.value: Any = LlamaForTokenClassification(shape)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            self.value.score.weight.zero_()
        self.reference: nn.Module = copy.deepcopy(self.policy).requires_grad_(False)  # has no dropout to turn off
        self.reward = TableReward(self.rewards, self.responses)
        self.tokenization = Alphabet()

    @torch.no_grad()
    def distribution(self, policy: nn.Module) -> Array:
        """Probabilities [prompts, responses]: plain forwards of unpadded rows, all that may begin a response."""
        letters = range(1, len(ALPHABET) + 1)
        begun = list(itertools.product(letters, repeat=LONGEST - 1))
        rows = torch.tensor([[row[: len(y) - 1] == y[:-1] for row in begun].index(True) for y in self.responses])
        tokens = torch.tensor([[*y, *[STOP] * (LONGEST - len(y))] for y in self.responses])
        counts = torch.tensor([[t < len(y) for t in range(LONGEST)] for y in self.responses])
        found = []
        for prompt in map(self.tokenization.prompt, PROMPTS):
            inputs = torch.tensor([[*prompt, *row] for row in begun])
            logits = policy(input_ids=inputs, use_cache=False).logits[:, len(prompt) - 1 :]
            logprobs = logits.double().log_softmax(-1)[rows].gather(-1, tokens[..., None])[..., 0]
            found.append(logprobs.masked_fill(~counts, 0.0).sum(-1).exp())
        return torch.stack(found).numpy()


def _shape(**more: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(ALPHABET) + 1,
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        initializer_range=SPREAD,
        bos_token_id=None,
        eos_token_id=STOP,
        pad_token_id=None,
        **more,
    )
