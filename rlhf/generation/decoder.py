"""The layers of Llama and its kind as sampling calls them: their weights, and no module in between.

A step of decoding is a few rows through every layer, and much of its time went into modules, into one product after
another of the same rows, and into passes over a few numbers. Here queries, keys and values are one product, and so are
gate and input of an MLP; what is in between is done in as few calls as torch has for it. The arithmetic is that of
transformers, but for the order of its sums (`tests/test_decoder.py`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rlhf import layers
from rlhf.generation.between import PLAIN, Between, Norm, norm_of
from rlhf.generation.slots import Slots
from rlhf.packing import BY_FLASH
from rlhf.products import fillers, product_of
from rlhf.tied import TiedEmbedding

# Families with this layer: norm, attention by rotary positions, norm, gated MLP; each added to what came in.
FAMILIES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
CHANGING = ("dynamic", "longrope")  # rotary positions that depend on how long the longest sequence is
PARTS = ("Model", "DecoderLayer", "Attention", "MLP", "RMSNorm", "RotaryEmbedding")


class Decoder:
    """A causal model that reads and decodes; its weights must not change meanwhile."""

    def __init__(self, policy: Any, bfloat16: bool, between: Between = PLAIN) -> None:
        self.head, self.between = policy.get_output_embeddings(), between
        trunk = policy.model
        self.embedding, self.rotary = trunk.embed_tokens, trunk.rotary_emb
        self.table: Tensor | None = None  # [positions, 2, 1, width] cosine and sine
        self.first = norm_of(trunk.layers[0].input_layernorm)
        following = [norm_of(norm) for norm in (*(layer.input_layernorm for layer in trunk.layers[1:]), trunk.norm)]
        self.layers = [
            _Layer(layer, number, bfloat16, between, behind)
            for number, (layer, behind) in enumerate(zip(trunk.layers, following, strict=True))
        ]

    def __call__(self, tokens: Tensor, positions: Tensor, slots: Slots, last: Tensor) -> Tensor:
        """Logits [sequences, vocabulary] behind the places `last` [sequences] of tokens, positions [tokens]."""
        kept = len(last)
        last = functional.pad(last, (0, fillers(kept, last.device)))
        return self.logits(self.states(tokens, positions, slots)[last], kept)

    def states(self, tokens: Tensor, positions: Tensor, slots: Slots) -> Tensor:
        """Normed states [tokens or more, hidden] behind all layers, of tokens, positions [tokens]."""
        # Rows that are no tokens go through all but attention.
        added = fillers(len(tokens), tokens.device)
        if added:
            tokens, positions = (functional.pad(part, (0, added)) for part in (tokens, positions))
        with torch.inference_mode(), self._plainly(slots):
            states = functional.embedding(tokens, self.embedding.weight)
            turns = self._turns(states, positions, slots.capacity)
            normed = self.between.normed(states, self.first)
            for layer in self.layers:
                states, normed = layer(states, normed, turns, slots, added)
            return normed

    def _plainly(self, slots: Slots) -> AbstractContextManager[object]:
        """Every dtype is chosen here; only attention of prompts on CPUs asks autocast for its own."""
        device = self.embedding.weight.device.type
        asked = device == "cpu" and slots.turn is not None and slots.turn.prompts is not None
        return nullcontext() if asked else torch.autocast(device, enabled=False)

    def _turns(self, states: Tensor, positions: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine [rows, 1, width] of positions [rows] below the capacity; half of the sine is negative."""
        if getattr(self.rotary, "rope_type", "default") in CHANGING:
            found = self._signed(states, positions)
        else:
            if self.table is None or len(self.table) < capacity:
                self.table = self._signed(states, torch.arange(capacity, device=positions.device))
            found = self.table[positions]
        cosine, sine = found.unbind(1)
        return cosine, sine

    def _signed(self, states: Tensor, positions: Tensor) -> Tensor:
        """[positions, 2, 1, width] cosine and sine, of which the first half is negative."""
        with torch.inference_mode(False), torch.no_grad():  # for what it keeps serves training, too
            cosine, sine = (part[0] for part in self.rotary(states[None], positions[None]))
        half = sine.shape[-1] // 2
        return torch.stack([cosine, torch.cat([-sine[:, :half], sine[:, half:]], dim=-1)], dim=1)[:, :, None]

    def logits(self, states: Tensor, kept: int) -> Tensor:
        """[kept, vocabulary] of the first of normed states [kept or more, hidden]."""
        found: Tensor = self.head(states)
        return found[:kept]


class _Layer:
    def __init__(self, layer: Any, number: int, bfloat16: bool, between: Between, following: Norm) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.number, self.width, self.scaling = number, attention.head_dim, attention.scaling
        self.by_flash = attention.config._attn_implementation == BY_FLASH
        self.between, self.inside, self.following = between, norm_of(layer.post_attention_layernorm), following
        of_query, of_key = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
        self.of_heads = None if of_query is None else (norm_of(of_query), norm_of(of_key))
        self.queries = attention.q_proj.out_features // attention.head_dim
        self.read = product_of([attention.q_proj, attention.k_proj, attention.v_proj], bfloat16)
        self.mix = product_of([attention.o_proj], bfloat16)
        self.gate = product_of([mlp.gate_proj, mlp.up_proj], bfloat16)
        self.down = product_of([mlp.down_proj], bfloat16)

    def __call__(
        self, states: Tensor, normed: Tensor, turns: tuple[Tensor, Tensor], slots: Slots, added: int
    ) -> tuple[Tensor, Tensor]:
        """The sum so far [tokens, hidden], and the same normed for the next layer; the last `added` rows are no tokens.

        turns: cosine and sine [tokens, 1, width], signed.
        """
        heads = self.read(normed).view(len(states), -1, self.width)
        heads = self.between.turned(heads, self.queries, self.of_heads, *turns)
        attended = slots.attend(
            self.number, heads[:-added] if added else heads, self.queries, self.scaling, self.by_flash
        ).flatten(1)
        mixed = self.mix(functional.pad(attended, (0, 0, 0, added)) if added else attended)
        states, normed = self.between.summed(states, mixed, self.inside)
        found = self.down(self.between.gated(self.gate(normed)))
        return self.between.summed(states, found, self.following)


def decoder_of(policy: Any, bfloat16: bool, between: Between = PLAIN) -> Decoder | None:
    """The decoder of a policy that packs; None where it is not plain. between: what computes all but products."""
    return Decoder(policy, bfloat16, between) if is_plain(policy) else None


def is_plain(policy: Any) -> bool:
    """Whether a policy is, part by part, what its family has."""
    config = getattr(policy, "config", None)
    family = FAMILIES.get(getattr(config, "model_type", ""))
    if family is None or _name(policy) != f"{family}ForCausalLM" or getattr(config, "hidden_act", "") != "silu":
        return False
    trunk = policy.model
    names = {"Linear", "Embedding", "ModuleList", "SiLUActivation"} | {f"{family}{part}" for part in PARTS}
    own = (layers.Norm, layers.GatedMlp, layers.Down, TiedEmbedding)
    modules = list(trunk.modules())
    return (
        all(_name(module) in names or isinstance(module, own) for module in modules)
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
