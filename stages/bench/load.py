"""The work that is measured: models by size, prompts, and how long each response gets. Needs torch and transformers."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf.config import ModelConfig
from rlhf.devices import settled
from rlhf.pretrained import turn_off_dropout
from rlhf.shapes import UNGATED, Shape, shape_of_config
from stages.bench.sizes import config_of

PAD, BOS, STOP = 0, 1, 2
NEVER = -1  # no token's id
PROMPT_TOKENS = (16, 32)  # the shortest and the longest prompt


@dataclass(frozen=True, kw_only=True)
class Work:
    """What all that is measured shares: a model, and what it computes with."""

    size: str = "15M"
    config: Mapping[str, Any] | None = None  # what a config.json says, in place of a size
    recipe: Mapping[str, Any] | None = None  # whose settings count, where it is a recipe that is measured
    threads: int = 2
    seed: int = 0

    @property
    def shape(self) -> Shape:
        """Of the model."""
        return shape_of_config(self.config or config_of(self.size), "config.json")

    @property
    def of_body(self) -> float:
        """Operations a token read by all layers."""
        shape, kind = self.shape, (self.config or {}).get("model_type")
        mlp = (2 if kind in UNGATED else 3) * shape.hidden * shape.mlp
        return 2.0 * shape.layers * (2 * shape.hidden * (shape.query + shape.key_value) + mlp)

    @property
    def of_head(self) -> float:
        """Operations a token chosen from the vocabulary."""
        return 2.0 * self.shape.vocabulary * self.shape.hidden

    @property
    def has_adapters(self) -> bool:
        """Whether frozen weights learn by adapters."""
        return self.recipe is not None and self.recipe["model"]["lora"] is not None

    @property
    def trained(self) -> int:
        """Operations of training, in those of reading: forward, gradients of inputs, and of weights that learn."""
        return 2 if self.has_adapters else 3


@dataclass(frozen=True, kw_only=True)
class Load(Work):
    """One update's work."""

    batch: int = 16  # responses an update
    micro: int = 8  # rows of the longest kind that a micro-batch has room for
    response_length: int = 32  # tokens at most
    eos_bias: float = 0.0  # chance that a response ends behind a token; 0: all are of full length
    ppo_epochs: int = 2
    responses_per_prompt: int = 1
    values: str = "model"  # where values come from: a model of their own, the policy's "trunk", or "none"

    @property
    def prompt_tokens(self) -> tuple[int, int]:
        """The shortest and the longest prompt; shorter ones where a response leaves no room for them."""
        longest = max(1, min(PROMPT_TOKENS[1], self.shape.context - self.response_length))
        return min(PROMPT_TOKENS[0], longest), longest

    def prompts(self) -> list[list[int]]:
        """Token prompts, one for each response, the same for every update; those of one prompt are neighbours."""
        chance, vocabulary = random.Random(self.seed), self.shape.vocabulary
        distinct = [
            [chance.randrange(STOP + 1, vocabulary) for _ in range(chance.randint(*self.prompt_tokens))]
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


@dataclass(frozen=True, kw_only=True)
class Examples(Work):
    """One optimizer step's work of a supervised trainer."""

    batch: int = 32  # demonstrations, or pairs, a step
    micro: int = 8  # of a forward
    shortest: int = 8  # tokens of a sequence
    longest: int = 256

    def sequences(self, count: int) -> list[list[int]]:
        """Random tokens, as many in each as chance will have it, every number as likely."""
        chance, vocabulary = random.Random(self.seed), self.shape.vocabulary
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


def models(load: Work) -> Models:
    """The models that all sides start from; value is a sequence classifier, as TRL's trainer takes it.

    Ends the process with a line where transformers knows no such architecture. Raises ConfigError where the recipe's
    settings are not for this device.
    """
    described = dict(load.config or config_of(load.size))
    kind = described["model_type"]
    if kind not in CONFIG_MAPPING:
        raise SystemExit(f"transformers has no architecture {kind!r} of its own; use --size, or another model")
    described.pop("quantization_config", None)
    described |= {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": STOP, "num_labels": 1}
    shape = CONFIG_MAPPING[kind].from_dict(described)
    turn_off_dropout(shape)
    attention = "sdpa"
    if load.recipe:
        attention = settled(ModelConfig.model_validate(load.recipe["model"]), shape=load.shape).attention
    torch.manual_seed(load.seed)
    policy = fresh(AutoModelForCausalLM, shape, attention)
    reward, value = (fresh(AutoModelForSequenceClassification, shape, attention) for _ in range(2))
    return Models(policy, copy.deepcopy(policy), reward, value)


def fresh(kind: Any, shape: Any, attention: str = "sdpa") -> Any:
    """A random model with a configuration of its own."""
    return kind.from_config(copy.deepcopy(shape), attn_implementation=attention, dtype=torch.float32)


def checksum(model: nn.Module) -> float:
    """What tells two sets of weights apart."""
    total: Tensor = sum((parameter.double().abs().sum() for parameter in model.parameters()), torch.tensor(0.0))
    return float(total)


def flops(load: Load) -> dict[str, float]:
    """Useful operations of an update by phase: 2 a weight and token read, 6 trained (Kaplan et al. 2020).

    Sampling reads every prompt once and every response; reference, value and reward model every token once; policy and
    value model learn from it in each epoch. The head counts where a response token is chosen, of policy and reference.
    Frozen weights below adapters are trained with 4, a value head on the policy is read and not trained for itself.
    Padding counts nothing, nor does attention, nor what is computed twice.
    """
    body = load.of_body * load.tokens()
    head = load.of_head * sum(load.lengths())
    read = sum(map(len, load.prompts()[:: load.responses_per_prompt])) + sum(load.lengths())
    scored, learning = 2 + (load.values != "none"), 1 + (load.values == "model")
    training = load.trained * load.ppo_epochs * (learning * body + head)
    return {"generation": load.of_body * read + head, "scoring": scored * body + head, "training": training}
