"""The four models of RLHF: policy and reference (causal), reward (one score a sequence), value (one a token).

All dropout is off in every model, in training too: PPO's ratio must come from the weights alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

from rlhf.adapters import add_lora, is_adapted, is_quantized, keep_canonical, merged, quantization_options
from rlhf.config import InitConfig, ModelConfig
from rlhf.devices import settled
from rlhf.distributed import device
from rlhf.errors import ArtifactError
from rlhf.heads import borrow_head, fresh_head, head_of, sequence_scores, token_classifier
from rlhf.packing import accept
from rlhf.pretrained import context_at, context_of, declared_stops, is_classifier, load_pretrained, shape_at
from rlhf.products import own_products
from rlhf.store.artifact import remove
from rlhf.store.weights import base_of_adapter
from rlhf.tokenization import Tokenization


def new_policy(init: InitConfig, tokenization: Tokenization, config: ModelConfig) -> nn.Module:
    """A randomly initialised Llama; seed torch before."""
    shape = LlamaConfig(
        vocab_size=len(tokenization.tokenizer),
        hidden_size=init.hidden_size,
        intermediate_size=init.mlp_size,
        num_hidden_layers=init.layers,
        num_attention_heads=init.heads,
        num_key_value_heads=init.heads,
        max_position_embeddings=init.context,
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        shape, attn_implementation=settled(config).attention
    )
    return _prepare(model, tokenization)


def load_policy(
    path: str | Path, tokenization: Tokenization, config: ModelConfig, quantized: bool = False
) -> nn.Module:
    """A causal language model from a directory or hub id, or an adapter's directory.

    quantized: in few bits where the recipe has adapters over such weights. A tokenizer with more tokens than the model
    has embeddings makes these grow; each new row is the mean of the others. Ids that its generation_config.json stops
    at are kept there behind the tokenizer's stop token; here a response ends at that one alone.
    """
    model = load_pretrained(AutoModelForCausalLM, path, config, **_bits(config, quantized))
    grow_embeddings(model, len(tokenization.tokenizer))
    return _prepare(model, tokenization, declared_stops(path, config))


def load_reward_model(
    path: str | Path, tokenization: Tokenization, config: ModelConfig, quantized: bool = False
) -> nn.Module:
    """A sequence classifier with one label, from a reward model's directory or on top of a causal model's trunk.

    A fresh head is that of `rlhf.heads.fresh_head`; seed torch before.
    """
    model = load_pretrained(
        AutoModelForSequenceClassification, path, config, "score.", num_labels=1, **_bits(config, quantized)
    )
    if not is_classifier(path, config):
        fresh_head(_require_head(model, path))
    return _prepare(model, tokenization)


def load_own_reward_model(path: Path, config: ModelConfig) -> nn.Module:
    """Somebody's reward model: any sequence classifier with one label, or a causal trunk with a head of another name.

    To be frozen: its configuration is left as it is, and any attention will do (DeBERTa knows eager alone). Raises
    ArtifactError where it gives several labels, or has no head at all.
    """
    kind = AutoModelForSequenceClassification
    if is_classifier(path, config):
        head = "score." if base_of_adapter(path) else ""
        labels = 1 if base_of_adapter(path) else shape_at(path, config).num_labels  # an adapter brings its own head
        if labels != 1:
            raise ArtifactError(
                f"model {path}: gives {labels} labels where a reward is one score; give a reward model, or a function "
                "(package.module:function) that makes one score of them"
            )
        model: nn.Module = load_pretrained(kind, path, config, head, any_attention=True, num_labels=1)
    else:
        model = load_pretrained(kind, path, config, "score.", any_attention=True, num_labels=1)
        borrow_head(model, path)
    own_products(model)
    return model


def load_value_model(
    path: str | Path,
    tokenization: Tokenization,
    config: ModelConfig,
    mean: float = 0.0,
    deviation: float = 1.0,
    quantized: bool = False,
) -> nn.Module:
    """A value model from a reward model's directory: the same trunk and head, applied at every token.

    A fresh value at a sequence's last token is the reward model's score, (raw - mean) / deviation: values are in units
    of normalised scores from the first step on. On top of a causal model's trunk the head is zero, and so are values.
    """
    kind = token_classifier(shape_at(path, config))
    model = load_pretrained(kind, path, config, "score.", num_labels=1, **_bits(config, quantized))
    head = _require_head(model, path)
    with torch.no_grad():
        if is_classifier(path, config):
            head.weight /= deviation
            head.bias.fill_(-mean / deviation)
        else:
            head.weight.zero_()
            head.bias.zero_()
    return _prepare(model, tokenization)


def grow_embeddings(model: Any, tokens: int) -> None:
    """Give a model's embeddings as many rows as a tokenizer has tokens, if it has fewer."""
    rows = model.get_input_embeddings().weight.shape[0]
    if tokens <= rows:
        return
    model.resize_token_embeddings(tokens, mean_resizing=False)
    parts = [model.get_input_embeddings(), model.get_output_embeddings()]
    with torch.no_grad():
        for part in filter(None, parts):
            part.weight[rows:] = part.weight[:rows].mean(0)


def save_model(model: nn.Module, tokenization: Tokenization, directory: Path) -> None:
    """Write weights (safetensors), configuration and tokenizer; adapters merged, and beside it in `adapter/`."""
    if is_adapted(model):
        for adapter in model.peft_config.values():
            modules = getattr(adapter, "target_modules", None)
            if isinstance(modules, set):  # written in another order each time, and so with another checksum
                setattr(adapter, "target_modules", sorted(modules))  # noqa: B010  # not in the base class
        model.save_pretrained(str(directory.parent / "adapter"))
        model = merged(model)
    model.save_pretrained(directory)  # type: ignore[operator]
    tokenization.save(directory)


def save_alone(model: nn.Module, tokenization: Tokenization, directory: Path) -> None:
    """`save_model` without the adapter, so that beside it another model's can lie."""
    apart = directory.with_name(f".{directory.name}.partial")
    remove(apart)
    save_model(model, tokenization, apart / "model")
    (apart / "model").replace(directory)
    remove(apart)


def _bits(config: ModelConfig, quantized: bool) -> dict[str, Any]:
    """How a model below adapters is loaded; in few bits it goes to its device at once."""
    options = quantization_options(config.lora if quantized else None, getattr(torch, settled(config).dtype))
    return {**options, "device_map": {"": device()}} if options else {}


def _require_head(model: nn.Module, path: str | Path) -> nn.Linear:
    head = head_of(model)
    if head is None:
        raise ArtifactError(f"model {path}: its architecture has no causal classifier; use a decoder such as Llama's")
    return head


def _prepare(model: Any, tokenization: Tokenization, declared: Sequence[int] = ()) -> nn.Module:
    stop = tokenization.stop_id
    others = [token for token in dict.fromkeys(declared) if token != stop]
    model.config.pad_token_id = tokenization.pad_id
    model.config.eos_token_id = stop
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = tokenization.pad_id
        model.generation_config.eos_token_id = [stop, *others] if others else stop
    keep_canonical(model)
    accept(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):  # a classifier's, which its configuration cannot always turn off
            module.p = 0.0
    prepared: nn.Module = model
    return prepared


__all__ = [
    "add_lora",
    "context_at",
    "context_of",
    "grow_embeddings",
    "is_quantized",
    "load_own_reward_model",
    "load_policy",
    "load_reward_model",
    "load_value_model",
    "new_policy",
    "save_model",
    "sequence_scores",
]
