"""A model directory seen from outside: whether it can be a model at all, and how many weights it has. Loads no torch.

What costs seconds here would cost the start of a whole stage, or a queue's wait, if it were found by loading.
"""

from __future__ import annotations

import json
import math
import re
import struct
from pathlib import Path
from typing import Any

from rlhf.errors import ArtifactError

REMEDY = "give a directory made by save_pretrained"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
ADAPTER = "adapter_config.json"
# Heads of reward models that are no sequence classifiers: TRL's value head, DeepSpeed-Chat's, and what others chose.
FOREIGN_HEADS = r"(?:.*\.)?(?:v_head(?:\.summary)?|value_head|reward_head|rm_head|rank_head|regression_head|score_head)"
LONGEST_HEADER = 100_000_000  # bytes, the limit of the format


def check_model_directory(directory: Path) -> int | None:
    """How many weights a model directory holds; of an adapter, its base; None where that is on the hub.

    Raises ArtifactError where its configuration, its tokenizer or a file of weights is missing, cut or no such thing.
    """
    if (base := base_of_adapter(directory)) is not None:
        count_weights(directory / "adapter_model.safetensors")
        return check_model_directory(Path(base)) if Path(base).is_dir() else None
    read_json(directory / "config.json")
    if not any((directory / name).is_file() for name in TOKENIZERS):
        raise ArtifactError(f"{directory}: no tokenizer ({', '.join(TOKENIZERS)}); {REMEDY}")
    return sum(count_weights(path) for path in weight_files(directory))


def check_reward_model(field: str, directory: Path) -> None:
    """Raise ArtifactError where a model directory cannot give one score: a language model, or several labels."""
    if base_of_adapter(directory) is not None:
        return  # an adapter brings its own head
    config = read_json(directory / "config.json")
    given = f"{field}={directory}"
    if not any("SequenceClassification" in str(name) for name in config.get("architectures") or []):
        if not any(re.fullmatch(FOREIGN_HEADS + r"\.weight", name) for name in tensor_names(directory)):
            raise ArtifactError(
                f"{given}: no head that gives one score (a language model?); give a reward model, or train one on "
                "data.comparisons by leaving it out"
            )
        return
    labels = config.get("num_labels") or len(config.get("id2label") or (0, 1))  # the library's default is two
    if labels != 1:
        raise ArtifactError(
            f"{given}: gives {labels} labels where a reward is one score; give a reward model, or a function "
            "(package.module:function) that makes one score of them"
        )


def tensor_names(directory: Path) -> list[str]:
    """The names of a model's weights, from the headers of their files."""
    names: list[str] = []
    for path in weight_files(directory):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            names += json.loads(file.read(length))
    return names


def base_of_adapter(directory: Path) -> str | None:
    """The model that a directory's PEFT adapter belongs to, a directory or a hub id; None where no adapter is alone.

    A directory with full weights beside an adapter's configuration is a full model. A base that is named relative to
    where the adapter was made is also looked for beside the adapter. Raises ArtifactError where the base is not named.
    """
    if not (directory / ADAPTER).is_file() or (directory / "config.json").is_file():
        return None
    settings = read_json(directory / ADAPTER)
    base = settings.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ArtifactError(f"{directory / ADAPTER}: base_model_name_or_path is missing; name the adapter's base there")
    beside = [place for place in (Path(base), directory / base, directory.parent / base) if place.is_dir()]
    revision = settings.get("revision")
    return str(beside[0]) if beside else f"{base}@{revision}" if revision else base


def weight_files(directory: Path) -> list[Path]:
    """The files that hold a model's weights."""
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        weights = read_json(index).get("weight_map")
        if isinstance(weights, dict) and weights and all(isinstance(name, str) for name in weights.values()):
            return [directory / name for name in sorted(set(weights.values()))]
        raise ArtifactError(f"{index}: names no files of weights; {REMEDY}")
    other = [path.name for path in sorted(directory.glob("*.bin"))]
    found = f" but {other[0]}, which can run code when it is loaded" if other else ""
    raise ArtifactError(f"{directory}: no model.safetensors{found}; {REMEDY}")


def count_weights(path: Path) -> int:
    """Weights in a safetensors file whose length is what its header says; ArtifactError otherwise."""
    if not path.is_file():
        raise ArtifactError(f"{path}: missing; {REMEDY}")
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if not 0 < length <= min(size, LONGEST_HEADER):
                raise ValueError("its first bytes are no header")
            header = json.loads(file.read(length))
        tensors = [value for name, value in header.items() if name != "__metadata__"]
        end = 8 + length + max(tensor["data_offsets"][1] for tensor in tensors)
        weights = sum(math.prod(tensor["shape"]) for tensor in tensors)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}); {REMEDY}") from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, struct.error, RecursionError) as error:
        raise ArtifactError(f"{path}: no safetensors file, or a damaged one; {REMEDY}") from error
    if size != end:
        raise ArtifactError(f"{path}: has {size:,} bytes where its header says {end:,}; copy it again")
    return int(weights)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; ArtifactError where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: missing; {REMEDY}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: cannot be read ({str(error).splitlines()[0]}); {REMEDY}") from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{path}: holds no JSON object; {REMEDY}")
    return content
