"""The layers of Llama and its kind as sampling calls them: their weights, and no module in between.

A step of decoding is a few rows through every layer, and much of its time went into modules, into one product after
another of the same rows, and into passes over a few numbers. Here queries, keys and values are one product, and so are
gate and input of an MLP; what is in between is done in as few calls as torch has for it. The arithmetic is that of
transformers, but for the order of its sums (`tests/test_decoder.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rlhf.generation.slots import Slots
from rlhf.packing import BY_FLASH
from rlhf.products import fillers, product_of

# Families with this layer: norm, attention by rotary positions, norm, gated MLP; each added to what came in.
FAMILIES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
PARTS = ("Model", "DecoderLayer", "Attention", "MLP", "RMSNorm", "RotaryEmbedding")


class Decoder:
    """A causal model that reads and decodes; its weights must not change meanwhile."""

    def __init__(self, policy: Any, bfloat16: bool) -> None:
        self.head = policy.get_output_embeddings()
        trunk = policy.model
        self.embedding, self.rotary, self.norm = trunk.embed_tokens, trunk.rotary_emb, trunk.norm
        self.layers = [_Layer(layer, number, bfloat16) for number, layer in enumerate(trunk.layers)]

    def __call__(self, tokens: Tensor, positions: Tensor, slots: Slots, last: Tensor) -> Tensor:
        """Logits [sequences, vocabulary] behind the places `last` [sequences] of tokens, positions [tokens]."""
        # Rows that are no tokens go through all but attention.
        added, kept = fillers(len(tokens), tokens.device), len(last)
        tokens, positions = (functional.pad(part, (0, added)) for part in (tokens, positions))
        last = functional.pad(last, (0, fillers(kept, last.device)))
        states = functional.embedding(tokens, self.embedding.weight)
        cosine, sine = (part[0, :, None] for part in self.rotary(states[None], positions[None]))
        # x cos + turned(x) sin, where turned swaps the halves and negates the first: so does the sign of its sine.
        half = sine.shape[-1] // 2
        sine = torch.cat([-sine[..., :half], sine[..., half:]], dim=-1)
        for layer in self.layers:
            states = layer(states, cosine, sine, slots, added)
        found: Tensor = self.head(_normed(states[last], self.norm))
        return found[:kept]


class _Layer:
    def __init__(self, layer: Any, number: int, bfloat16: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.number, self.width, self.scaling = number, attention.head_dim, attention.scaling
        self.by_flash = attention.config._attn_implementation == BY_FLASH
        self.before, self.behind = layer.input_layernorm, layer.post_attention_layernorm
        self.of_query, self.of_key = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
        self.query, self.key = attention.q_proj.out_features, attention.k_proj.out_features
        self.read = product_of([attention.q_proj, attention.k_proj, attention.v_proj], bfloat16)
        self.mix = product_of([attention.o_proj], bfloat16)
        self.gate = product_of([mlp.gate_proj, mlp.up_proj], bfloat16)
        self.down = product_of([mlp.down_proj], bfloat16)

    def __call__(self, states: Tensor, cosine: Tensor, sine: Tensor, slots: Slots, added: int) -> Tensor:
        """states [tokens, hidden], of which the last `added` are none; cosine and sine [tokens, 1, width], signed."""
        found = self.read(_normed(states, self.before))
        heads = found.view(len(states), -1, self.width)
        count, shared = self.query // self.width, self.key // self.width
        both, value = heads[:, : count + shared], heads[:, count + shared :]
        if self.of_query is not None:
            both = torch.cat([_normed(both[:, :count], self.of_query), _normed(both[:, count:], self.of_key)], dim=1)
        turned = both.roll(self.width // 2, dims=-1)
        both = torch.addcmul(both * cosine, turned, sine)
        parts, tokens = (both[:, :count], both[:, count:], value), len(states) - added
        query, key, value = (part[:tokens].transpose(0, 1)[None] for part in parts)
        attended = slots.attention(self.number, query, key, value, self.scaling, self.by_flash)[0].flatten(1)
        states = states + self.mix(functional.pad(attended, (0, 0, 0, added)) if added else attended)
        gate, up = self.gate(_normed(states, self.behind)).chunk(2, dim=-1)
        return states + self.down(functional.silu(gate).mul_(up))


def _normed(states: Tensor, norm: Any) -> Tensor:
    """RMSNorm (Zhang & Sennrich 2019), rounded to the states' dtype before it is scaled."""
    weight, epsilon = norm.weight, norm.variance_epsilon
    if states.dtype == weight.dtype:
        return functional.rms_norm(states, weight.shape, weight, epsilon)
    found: Tensor = weight * functional.rms_norm(states.float(), weight.shape, eps=epsilon).to(states.dtype)
    return found


def decoder_of(policy: Any, bfloat16: bool) -> Decoder | None:
    """The decoder of a policy that packs; None where it is not, part by part, what its family has."""
    return Decoder(policy, bfloat16) if _is_plain(policy) else None


def _is_plain(policy: Any) -> bool:
    config = getattr(policy, "config", None)
    family = FAMILIES.get(getattr(config, "model_type", ""))
    if family is None or _name(policy) != f"{family}ForCausalLM" or getattr(config, "hidden_act", "") != "silu":
        return False
    trunk = policy.model
    names = {"Linear", "Embedding", "ModuleList", "SiLUActivation", "Norm", "GatedMlp"}
    names |= {f"{family}{part}" for part in PARTS}
    modules = list(trunk.modules())
    return (
        all(_name(module) in names for module in modules)
        and not any(map(_is_changed, [policy, *modules]))
        and all(parameter.dtype == torch.float32 for parameter in trunk.parameters())
    )


def _name(module: nn.Module) -> str:
    """A module's class, whether or not FSDP2 has made one of its own of it."""
    return type(module).__name__.removeprefix("FSDP")


def _is_changed(module: nn.Module) -> bool:
    """Whether somebody has a hand in what a module computes without gradients, while all weights are gathered."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(map(_changes, hooks)) or "forward" in vars(module)


def _changes(hook: object) -> bool:
    """Not FSDP2's, which gather weights, nor transformers', which asks for the gradient of embeddings."""
    of_gradients = getattr(hook, "__name__", "") == "make_inputs_require_grads"
    return not of_gradients and not getattr(hook, "__module__", "").startswith("torch.distributed.")
