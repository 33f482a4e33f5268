"""The four models of RLHF: policy and reference (causal), reward (one score a sequence), value (one a token).

All dropout is off in every model, in training too: PPO's ratio must come from the weights alone.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, TaskType, get_peft_model
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    LlamaConfig,
)

from rlhf.config import InitConfig, LoraConfig, ModelConfig
from rlhf.devices import settled
from rlhf.errors import ArtifactError
from rlhf.logprobs import position_ids
from rlhf.tokenization import Tokenization

TASKS = {
    "policy": TaskType.CAUSAL_LM,
    "reward": TaskType.SEQ_CLS,
    "value": TaskType.TOKEN_CLS,
}


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


def load_policy(path: str | Path, tokenization: Tokenization, config: ModelConfig) -> nn.Module:
    """A causal language model from a directory or hub id."""
    return _prepare(_load(AutoModelForCausalLM, path, config), tokenization)


def load_reward_model(path: str | Path, tokenization: Tokenization, config: ModelConfig) -> nn.Module:
    """A sequence classifier with one label, from a reward model's directory or on top of a causal model's trunk.

    A fresh head is normal with deviation 1/sqrt(hidden + 1) (Stiennon et al. 2020); seed torch before.
    """
    model = _load(AutoModelForSequenceClassification, path, config, num_labels=1)
    if not _is_classifier(path, config):
        nn.init.normal_(model.score.weight, std=1 / math.sqrt(model.score.in_features + 1))
    return _prepare(model, tokenization)


def load_value_model(
    path: str | Path, tokenization: Tokenization, config: ModelConfig, mean: float = 0.0, deviation: float = 1.0
) -> nn.Module:
    """A value model from a reward model's directory: the same trunk and head, applied at every token.

    A fresh value at a sequence's last token is the reward model's score, (raw - mean) / deviation: values are in units
    of normalised scores from the first step on. On top of a causal model's trunk the head is zero, and so are values.
    """
    model = _load(AutoModelForTokenClassification, path, config, num_labels=1)
    if not isinstance(getattr(model, "score", None), nn.Linear):
        raise ArtifactError(f"model {path}: its token classifier has no head named score; use a Llama-like one")
    with torch.no_grad():
        if _is_classifier(path, config):
            model.score.weight /= deviation
            model.score.bias.fill_(-mean / deviation)
        else:
            model.score.weight.zero_()
            model.score.bias.zero_()
    return _prepare(model, tokenization)


def context_of(model: nn.Module) -> int:
    """How many tokens a model can attend to."""
    return int(model.config.max_position_embeddings)  # type: ignore[union-attr, arg-type]


def context_at(path: str | Path, config: ModelConfig) -> int:
    """`context_of` the model in a directory, without loading it."""
    shape = AutoConfig.from_pretrained(path, revision=config.revision, trust_remote_code=config.trust_remote_code)
    return int(shape.max_position_embeddings)


def sequence_scores(model: nn.Module, tokens: Tensor, attention_mask: Tensor) -> Tensor:
    """Scores [batch] of a sequence classifier at each row's last attended token.

    tokens, attention_mask [batch, length]. The index comes from the mask, not from comparing ids with the padding id
    as the classifier's own pooling does: a sampled response may hold that id.
    """
    if isinstance(model, PeftModel):
        model = model.get_base_model()  # the adapters stay in its layers
    trunk = getattr(model, str(model.base_model_prefix))
    hidden = trunk(
        input_ids=tokens, attention_mask=attention_mask, position_ids=position_ids(attention_mask), use_cache=False
    ).last_hidden_state
    columns = torch.arange(tokens.shape[1], device=tokens.device)
    last = (columns * attention_mask).argmax(-1)
    scores: Tensor = model.score(hidden[torch.arange(len(tokens), device=tokens.device), last])  # type: ignore[operator]
    return scores.squeeze(-1).float()


def add_lora(model: nn.Module, config: LoraConfig, kind: str) -> nn.Module:
    """Fresh adapters on all linear layers; a classifier's head stays fully trainable."""
    heads = [] if kind == "policy" else ["score"]
    adapters = PeftLoraConfig(
        task_type=TASKS[kind],
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # a scale, and peft only divides it
        lora_dropout=0.0,
        target_modules="all-linear",
        modules_to_save=heads or None,
    )
    adapted: nn.Module = get_peft_model(model, adapters)
    return adapted


def save_model(model: nn.Module, tokenization: Tokenization, directory: Path) -> None:
    """Write weights (safetensors), configuration and tokenizer; adapters merged, and beside it in `adapter/`."""
    if isinstance(model, PeftModel):
        for adapter in model.peft_config.values():
            modules = getattr(adapter, "target_modules", None)
            if isinstance(modules, set):  # written in another order each time, and so with another checksum
                setattr(adapter, "target_modules", sorted(modules))  # noqa: B010  # not in the base class
        model.save_pretrained(str(directory.parent / "adapter"))
        model = model.merge_and_unload()
    model.save_pretrained(directory)  # type: ignore[operator]
    tokenization.save(directory)


def _load(kind: Any, path: str | Path, config: ModelConfig, **options: Any) -> Any:
    """A model whose every weight but a fresh head's was found, with dropout off before its modules are built."""
    remedy = "give a directory made by save_pretrained"
    origin = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    try:
        shape = AutoConfig.from_pretrained(path, **origin, **options)
        for name in vars(shape):
            if "dropout" in name or name.endswith("_pdrop"):
                setattr(shape, name, 0.0)
        model, found = kind.from_pretrained(
            path,
            config=shape,
            dtype=torch.float32,
            attn_implementation=settled(config).attention,
            output_loading_info=True,
            **origin,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ArtifactError(f"model {path}: cannot be loaded ({reason}); {remedy}") from error
    missing = sorted(name for name in found["missing_keys"] if not name.startswith("score."))
    if missing:
        raise ArtifactError(f"model {path}: lacks {len(missing)} weights, {missing[0]} among them; {remedy}")
    return model


def _is_classifier(path: str | Path, config: ModelConfig) -> bool:
    shape = AutoConfig.from_pretrained(path, revision=config.revision, trust_remote_code=config.trust_remote_code)
    return any("SequenceClassification" in name for name in shape.architectures or [])


def _prepare(model: Any, tokenization: Tokenization) -> nn.Module:
    model.config.pad_token_id = tokenization.pad_id
    model.config.eos_token_id = tokenization.stop_id
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = tokenization.pad_id
        model.generation_config.eos_token_id = tokenization.stop_id
    for module in model.modules():
        if isinstance(module, nn.Dropout):  # a classifier's, which its configuration cannot always turn off
            module.p = 0.0
    prepared: nn.Module = model
    return prepared
