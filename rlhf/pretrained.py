"""Models as other people saved them: directories, hub ids at a commit, adapters on their base.

`org/name@COMMIT` names a model of the hub; its files are taken from the local cache, or downloaded into it. A directory
that holds a PEFT adapter is loaded as the model it adapts, with the adapter merged in.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig

from rlhf.config import ModelConfig
from rlhf.devices import settled
from rlhf.errors import ArtifactError
from rlhf.store.weights import ADAPTER, base_of_adapter, weight_files

REMEDY = "give a directory made by save_pretrained"
FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]  # nothing that could run
UNLIMITED = 2**20  # tokens, of architectures that have no table of positions
ATTENTIONS = ("flash_attention_2", "sdpa", "eager")  # each can stand in for those before it
REFUSED = re.compile(r"does not support (Flash Attention|an attention implementation)")  # by an architecture


def local_model(name: str, config: ModelConfig) -> Path:
    """The directory of a model that a recipe names: itself, or that of a hub id's files, downloaded if need be.

    Raises ArtifactError where the hub has no such model, or cannot be reached and the cache lacks it.
    """
    if Path(name).is_dir():
        return Path(name)
    repository, _, revision = name.partition("@")
    code = ["*.py"] if config.trust_remote_code else []
    try:
        found = snapshot_download(repository, revision=revision or config.revision, allow_patterns=[*FILES, *code])
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        remedy = "give a directory, or org/name@COMMIT of a model that the hub or its local cache has"
        raise ArtifactError(
            f"model {name}: no such directory, and not to be had from the hub ({reason}); {remedy}"
        ) from error
    return Path(found)


def load_pretrained(
    kind: Any, path: str | Path, config: ModelConfig, head: str = "", any_attention: bool = False, **options: Any
) -> Any:
    """A model of an Auto class with all its weights found, an adapter merged, and dropout off before it is built.

    head: prefix of the weights that may be missing, because a fresh head follows. any_attention: an architecture that
    refuses the recipe's attention gets the next that it knows. Weights are float32 unless `options` say otherwise.
    Raises ArtifactError.
    """
    if (base := base_of_adapter(Path(path))) is not None:
        model = load_pretrained(kind, local_model(base, config), config, head, any_attention, **options)
        from peft import PeftModel  # late, as in rlhf.adapters

        try:
            return PeftModel.from_pretrained(model, str(path)).merge_and_unload()
        except (OSError, ValueError, RuntimeError, SafetensorError, KeyError) as error:
            raise ArtifactError(f"adapter {path}: does not fit {base} ({first_line(error)})") from error
    labels = {name: options.pop(name) for name in ("num_labels",) if name in options}
    try:
        shape = AutoConfig.from_pretrained(path, **origin(config), **labels)
        for part in (shape, shape.get_text_config()):
            turn_off_dropout(part)
        given = {"config": shape, "dtype": torch.float32, **options, **origin(config)}
        attention = settled(config).attention
        model, found = _with_attention(kind, path, attention, any_attention, given)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ArtifactError(f"model {path}: cannot be loaded ({first_line(error)}); {REMEDY}") from error
    missing = sorted(name for name in found["missing_keys"] if not (head and name.startswith(head)))
    if missing:
        raise ArtifactError(f"model {path}: lacks {len(missing)} weights, {missing[0]} among them; {REMEDY}")
    return model


def _with_attention(
    kind: Any, path: str | Path, attention: str, any_attention: bool, options: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """A model and what was found of it, with an attention or, if any will do, the first behind it that it knows."""
    following = ATTENTIONS[ATTENTIONS.index(attention) + 1 :] if any_attention else ()
    try:
        model, found = kind.from_pretrained(path, output_loading_info=True, attn_implementation=attention, **options)
    except ValueError as error:
        if not following or not REFUSED.search(str(error)):
            raise
        return _with_attention(kind, path, following[0], True, options)
    return model, found


def declared_stops(path: str | Path, config: ModelConfig) -> list[int]:
    """The ids that end a response according to a directory's generation_config.json, of an adapter its base's.

    None where it has no such file or names none. Raises ArtifactError where the file is no JSON object.
    """
    file = Path(path) / "generation_config.json"
    if not file.is_file():
        base = base_of_adapter(Path(path))
        return [] if base is None else declared_stops(local_model(base, config), config)
    try:
        declared = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{file}: cannot be read ({first_line(error)}); {REMEDY}") from error
    ids = declared if isinstance(declared, list) else [declared]
    return [token for token in ids if isinstance(token, int)]


def origin(config: ModelConfig) -> dict[str, Any]:
    """Which version of a hub id, and whether its own code may run."""
    return {"revision": config.revision, "trust_remote_code": config.trust_remote_code}


def shape_at(path: str | Path, config: ModelConfig) -> PretrainedConfig:
    """The configuration of the model in a directory, without its weights; of an adapter, its base's. ArtifactError."""
    if (base := base_of_adapter(Path(path))) is not None:
        return shape_at(local_model(base, config), config)
    try:
        shape: PretrainedConfig = AutoConfig.from_pretrained(path, **origin(config))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"model {path}: cannot be loaded ({first_line(error)}); {REMEDY}") from error
    return shape


def turn_off_dropout(shape: PretrainedConfig) -> None:
    """All dropout of a configuration to zero."""
    for name in vars(shape):
        if "dropout" in name or name.endswith("_pdrop"):
            setattr(shape, name, 0.0)


def context_of(model: nn.Module) -> int:
    """How many tokens a model can attend to."""
    return context_of_shape(model.config)  # type: ignore[arg-type]


def context_at(path: str | Path, config: ModelConfig) -> int:
    """`context_of` the model in a directory, without loading it."""
    return context_of_shape(shape_at(path, config))


def context_of_shape(shape: PretrainedConfig) -> int:
    """The table of positions of a configuration; architectures without one have no limit of their own."""
    text = shape.get_text_config()
    positions = getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", None) or UNLIMITED
    # RoBERTa's positions start behind its padding id.
    return int(positions) - (text.pad_token_id + 1 if "roberta" in text.model_type else 0)


def vocabulary_at(path: str | Path, config: ModelConfig) -> int:
    """How many embeddings the model in a directory has."""
    return int(shape_at(path, config).get_text_config().vocab_size)


def is_classifier(path: str | Path, config: ModelConfig) -> bool:
    """Whether a directory holds a sequence classifier, or an adapter that makes one."""
    if base_of_adapter(Path(path)) is not None:
        adapter = json.loads((Path(path) / ADAPTER).read_text(encoding="utf-8"))
        if adapter.get("task_type") == "SEQ_CLS":
            return True
    return any("SequenceClassification" in name for name in shape_at(path, config).architectures or [])


def tensor_named(path: Path, pattern: str) -> tuple[str, Tensor] | None:
    """The one tensor in a directory's weights whose name matches, or None."""
    found = [
        (name, tensor)
        for file in weight_files(path)
        for name, tensor in load_file(file).items()
        if re.fullmatch(pattern, name)
    ]
    return found[0] if len(found) == 1 else None


def first_line(error: BaseException) -> str:
    """What a library says, on one line."""
    return str(error).strip().split("\n")[0] or type(error).__name__
