"""The work that is measured: models by size, prompts, and how long each response gets. Needs torch and transformers."""

from __future__ import annotations

import copy
import math
import random
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

from stages.bench.sizes import CONTEXT, SIZES

PAD, BOS, STOP = 0, 1, 2
NEVER = -1  # no token's id
PROMPT_TOKENS = (16, 32)  # the shortest and the longest prompt


@dataclass(frozen=True)
class Load:
    """One update's work."""

    size: str = "15M"
    batch: int = 16  # responses an update
    micro: int = 8  # rows of the longest kind that a micro-batch has room for
    response_length: int = 32  # tokens at most
    eos_bias: float = 0.0  # chance that a response ends behind a token; 0: all are of full length
    ppo_epochs: int = 2
    responses_per_prompt: int = 1
    threads: int = 2
    seed: int = 0

    def prompts(self) -> list[list[int]]:
        """Token prompts, one for each response, the same for every update; those of one prompt are neighbours."""
        chance, vocabulary = random.Random(self.seed), SIZES[self.size][-1]
        distinct = [
            [chance.randrange(STOP + 1, vocabulary) for _ in range(chance.randint(*PROMPT_TOKENS))]
            for _ in range(self.batch // self.responses_per_prompt)
        ]
        return [prompt for prompt in distinct for _ in range(self.responses_per_prompt)]

    def lengths(self) -> list[int]:
        """Tokens of the response to each prompt, the stop token among them: geometric, or all the longest."""
        chance = random.Random(self.seed + 1)
        if not self.eos_bias:
            return [self.response_length] * self.batch
        drawn = [1 + math.floor(math.log1p(-chance.random()) / math.log1p(-self.eos_bias)) for _ in range(self.batch)]
        return [min(self.response_length, length) for length in drawn]

    def tokens(self) -> int:
        """Useful tokens of an update: prompts and responses, each once."""
        return sum(map(len, self.prompts())) + sum(self.lengths())


@dataclass(frozen=True)
class Examples:
    """One optimizer step's work of a supervised trainer."""

    size: str = "15M"
    batch: int = 32  # demonstrations, or pairs, a step
    micro: int = 8  # of a forward
    shortest: int = 8  # tokens of a sequence
    longest: int = 256
    threads: int = 2
    seed: int = 0

    def sequences(self, count: int) -> list[list[int]]:
        """Random tokens, as many in each as chance will have it, every number as likely."""
        chance, vocabulary = random.Random(self.seed), SIZES[self.size][-1]
        return [
            [chance.randrange(STOP + 1, vocabulary) for _ in range(chance.randint(self.shortest, self.longest))]
            for _ in range(count)
        ]


class Models(NamedTuple):
    """Four models of one shape: policy and reference the same weights, reward and value others."""

    policy: Any
    reference: Any
    reward: Any
    value: Any


def models(load: Load | Examples) -> Models:
    """The models that all sides start from; value is a sequence classifier, as TRL's trainer takes it."""
    hidden, mlp, layers, heads, groups, vocabulary = SIZES[load.size]
    shape = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=STOP,
    )
    shape.num_labels = 1
    torch.manual_seed(load.seed)
    policy = fresh(AutoModelForCausalLM, shape)
    reward, value = (fresh(AutoModelForSequenceClassification, shape) for _ in range(2))
    return Models(policy, copy.deepcopy(policy), reward, value)


def fresh(kind: Any, shape: Any) -> Any:
    """A random model with a configuration of its own."""
    return kind.from_config(copy.deepcopy(shape), attn_implementation="sdpa")


def checksum(model: nn.Module) -> float:
    """What tells two sets of weights apart."""
    total: Tensor = sum((parameter.double().abs().sum() for parameter in model.parameters()), torch.tensor(0.0))
    return float(total)


def flops(load: Load) -> dict[str, float]:
    """Useful operations of an update by phase: 2 a weight and token read, 6 trained (Kaplan et al. 2020).

    Sampling reads every prompt once and every response; reference, value and reward model every token once; policy and
    value model learn from it in each epoch. The head counts where a response token is chosen, of policy and reference.
    Padding counts nothing, nor does attention, nor what is computed twice.
    """
    body = of_body(load.size) * load.tokens()
    head = of_head(load.size) * sum(load.lengths())
    read = sum(map(len, load.prompts()[:: load.responses_per_prompt])) + sum(load.lengths())
    training = 3 * load.ppo_epochs * (2 * body + head)
    return {"generation": of_body(load.size) * read + head, "scoring": 3 * body + head, "training": training}


def of_body(size: str) -> float:
    """Operations a token read by all layers."""
    hidden, mlp, layers, heads, groups, _ = SIZES[size]
    return 2.0 * layers * (2 * hidden * hidden + 2 * hidden * (hidden // heads) * groups + 3 * hidden * mlp)


def of_head(size: str) -> float:
    """Operations a token chosen from the vocabulary."""
    return 2.0 * SIZES[size][-1] * SIZES[size][0]
