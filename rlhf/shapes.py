"""The shape of a model: widths and counts from its config.json, from a recipe, or from its size alone.

Loads no torch, and no model: what a launcher must know before one is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rlhf.config import InitConfig
from rlhf.errors import ArtifactError

# What configurations of different families call the same width.
NAMES: Mapping[str, tuple[str, ...]] = {
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "num_heads"),
    "vocabulary": ("vocab_size",),
    "context": ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"),
    "mlp": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"),
}
UNGATED = {"gpt2", "gpt_neox", "gpt_neo", "gptj", "opt", "bloom", "phi", "falcon", "mpt", "starcoder2"}
UNLIMITED = 2048  # tokens, where a configuration names no longest context
# Of each, tests/test_packing.py compares packed with padded: full attention, and logits that are the head's own.
ARCHITECTURES = ("llama", "qwen2", "qwen3", "mistral", "phi3", "olmo2", "smollm3", "gpt_neox", "gpt2")
LEAN = ("llama", "qwen2", "qwen3", "mistral", "smollm3")  # whose norms and MLPs are those of `rlhf.layers`
AT_ONCE = 2**24  # logits that a head computes at once where a model packs: 64 MiB in float32
PROMPT_TOKENS = 8192  # of prompts that are read in one forward there, beside those that decode


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Widths and counts of a decoder."""

    hidden: int
    mlp: int  # inner width of the MLP; of a mixture, over the experts that a token visits
    layers: int
    query: int  # width of all heads together
    key_value: int  # width of the heads of keys, and of values
    vocabulary: int
    context: int  # tokens
    weights: int  # all of them
    tied: bool = False  # the head is the embedding
    head: int = 64  # width of one attention head
    packs: bool = True  # takes sequences without padding, see `rlhf.packing`
    lean: bool = True  # its norms and MLPs keep little, see `rlhf.layers`

    @property
    def block_weights(self) -> int:
        """Weights of the blocks, embeddings and head left out."""
        return max(0, self.weights - self.vocabulary * self.hidden * (1 if self.tied else 2))

    def adapter_weights(self, rank: int) -> int:
        """Weights of low-rank adapters on all linear layers of the blocks (Hu et al. 2021)."""
        attention = 2 * (self.hidden + self.query) + 2 * (self.hidden + self.key_value)
        return self.layers * rank * (attention + 3 * (self.hidden + self.mlp))


def shape_of_config(config: Mapping[str, Any], name: str, weights: int | None = None) -> Shape:
    """The shape that a config.json describes; ArtifactError where it does not.

    name: the file, for the error. weights: as counted in the model's files; None: computed from the widths.
    """
    inner = config.get("text_config")  # of a model that also sees
    config = inner if isinstance(inner, dict) else config
    hidden, layers, heads, vocabulary = (
        _width(config, key, name) for key in ("hidden", "layers", "heads", "vocabulary")
    )
    head = _optional(config, ("head_dim",)) or hidden // heads
    groups = _optional(config, ("num_key_value_heads",)) or heads
    mlp = _optional(config, NAMES["mlp"]) or 4 * hidden
    experts = _optional(config, ("num_local_experts", "num_experts", "n_routed_experts")) or 1
    visited = (_optional(config, ("num_experts_per_tok",)) or 1) if experts > 1 else 1
    each = (_optional(config, ("moe_intermediate_size",)) or mlp) if experts > 1 else mlp
    shape = Shape(
        hidden=hidden,
        mlp=each * visited,
        layers=layers,
        query=heads * head,
        key_value=groups * head,
        vocabulary=vocabulary,
        context=_optional(config, NAMES["context"]) or UNLIMITED,
        weights=weights or 0,
        tied=bool(config.get("tie_word_embeddings", False)),
        head=head,
        packs=packs(config),
        lean=config.get("model_type") in LEAN,
    )
    gates = 2 if config.get("model_type") in UNGATED else 3
    return shape if weights else replace(shape, weights=_count(shape, gates * experts * each))


def packs(config: Mapping[str, Any]) -> bool:
    """Whether a configuration's architecture takes packed sequences: it is known to, and attends to all before."""
    windowed = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    return config.get("model_type") in ARCHITECTURES and windowed is None


def context_of_config(config: Mapping[str, Any]) -> int | None:
    """The longest context that a config.json names, tokens; None where it names none."""
    inner = config.get("text_config")
    return _optional(inner if isinstance(inner, dict) else config, NAMES["context"])


def shape_of_init(init: InitConfig) -> Shape:
    """The shape of a model that a recipe makes from nothing."""
    shape = Shape(
        hidden=init.hidden_size,
        mlp=init.mlp_size,
        layers=init.layers,
        query=init.hidden_size,
        key_value=init.hidden_size,
        vocabulary=init.vocab_size,
        context=init.context,
        weights=0,
        tied=True,
        head=init.hidden_size // init.heads,
    )
    return replace(shape, weights=_count(shape, 3 * init.mlp_size))


# Shapes in use at their sizes: hidden, mlp, layers, query, key_value, vocabulary.
_TYPICAL = (
    (576, 1536, 30, 576, 192, 49_152),
    (896, 4864, 24, 896, 128, 151_936),
    (1536, 8960, 28, 1536, 256, 151_936),
    (2048, 11_008, 36, 2048, 256, 151_936),
    (4096, 14_336, 32, 4096, 1024, 128_256),
    (5120, 13_824, 48, 5120, 1024, 152_064),
    (5120, 27_648, 64, 5120, 1024, 152_064),
    (8192, 28_672, 80, 8192, 1024, 128_256),
)


def shape_of_size(weights: int, context: int = 4096) -> Shape:
    """A usual shape of about so many weights: for a model of which nothing else is known."""
    shapes = []
    for hidden, mlp, layers, query, key_value, vocabulary in _TYPICAL:
        widths: Any = {"hidden": hidden, "mlp": mlp, "layers": layers, "query": query, "key_value": key_value}
        shape = Shape(**widths, vocabulary=vocabulary, context=context, weights=0, tied=hidden < 2048)
        shapes.append(replace(shape, weights=_count(shape, 3 * mlp)))
    nearest = min(shapes, key=lambda shape: abs(math.log(shape.weights / weights)))
    return replace(nearest, weights=weights)


def _count(shape: Shape, mlp_weights_per_hidden: int) -> int:
    """Weights of embeddings, head, projections, MLPs and norms."""
    attention = 2 * shape.hidden * (shape.query + shape.key_value)
    per_layer = attention + shape.hidden * mlp_weights_per_hidden + 2 * shape.hidden
    embeddings = shape.vocabulary * shape.hidden * (1 if shape.tied else 2)
    return embeddings + shape.layers * per_layer + shape.hidden


def _width(config: Mapping[str, Any], key: str, name: str) -> int:
    found = _optional(config, NAMES[key])
    if found is None:
        raise ArtifactError(f"{name}: has no {' or '.join(NAMES[key])}; give that of a causal language model")
    return found


def _optional(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
