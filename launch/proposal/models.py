"""The models that a recipe starts from, seen from outside: shape, weights, how long its tokens are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data.records import one_line
from rlhf.config import InitConfig
from rlhf.errors import ArtifactError, ConfigError
from rlhf.shapes import Shape, shape_of_config, shape_of_init, shape_of_size
from rlhf.store.weights import base_of_adapter, check_model_directory, read_json

_HUB_ID = re.compile(r"(?P<repository>[\w-][\w.-]*/[\w.-]+)(?:@(?P<revision>[^@:]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SIZE = re.compile(r"(?P<count>\d+(?:\.\d+)?)\s*(?P<unit>[BbMm]?)")
CHARACTERS_PER_TOKEN = 3.5  # of English in a usual vocabulary, on the careful side
OWN_CHARACTERS_PER_TOKEN = 2.5  # in the small vocabulary of a model made from nothing


@dataclass(frozen=True)
class FirstModel:
    """A model that training starts from, or that takes a stage's place."""

    name: str  # as it was given
    path: str | None  # as a recipe names it; None: made from nothing
    revision: str | None  # commit, of a hub id
    shape: Shape
    exact: bool = True  # False: guessed from the size
    tokenizer: Path | None = None  # its tokenizer.json, if there is one

    @property
    def pretrained(self) -> bool:
        """Whether it has learned anything."""
        return self.path is not None

    @property
    def reference(self) -> str:
        """How `use` names it."""
        return f"{self.path}@{self.revision}" if self.revision else str(self.path)

    def characters_per_token(self, texts: Sequence[str]) -> tuple[float, bool]:
        """Of these texts, and whether the model's own tokenizer said so."""
        if not self.pretrained:
            return OWN_CHARACTERS_PER_TOKEN, False
        characters = sum(map(len, texts))
        if self.tokenizer is None or not characters:
            return CHARACTERS_PER_TOKEN, False
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(self.tokenizer))
        except Exception as error:  # the library raises no narrower one
            reason = one_line(error)
            raise ArtifactError(f"{self.tokenizer}: cannot be read ({reason}); give a whole model") from error
        tokens = sum(len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False))
        return characters / max(1, tokens), True


def new_model(init: InitConfig) -> FirstModel:
    """A model made from nothing."""
    return FirstModel("none, made from nothing", None, None, shape_of_init(init))


def first_model(name: str, size: str | None, directory: str | None = None) -> FirstModel:
    """A model's directory (as it is, or below the data directory) or hub id, looked at.

    size: of a hub id whose configuration is out of reach, such as 7B. Raises ArtifactError or ConfigError.
    """
    for path in (Path(name), Path(directory or ".") / name):
        if path.is_dir():
            return _of_directory(name, path, size)
    hub = _HUB_ID.fullmatch(name)
    if hub is None or name.startswith("."):
        raise ArtifactError(
            f"{name}: no such directory; give one made by save_pretrained, or a hub id, org/name@COMMIT"
        )
    return _of_hub(name, hub["repository"], hub["revision"], size)


def _of_directory(name: str, path: Path, size: str | None) -> FirstModel:
    """A model's directory, or an adapter's, which is as large as its base."""
    weights = check_model_directory(path)
    if (base := base_of_adapter(path)) is not None:
        below = first_model(base, size)
        return replace(below, name=name, path=name, revision=None)
    shape = shape_of_config(read_json(path / "config.json"), str(path / "config.json"), weights)
    tokenizer = path / "tokenizer.json"
    return FirstModel(name, name, None, shape, tokenizer=tokenizer if tokenizer.is_file() else None)


def _of_hub(name: str, repository: str, revision: str | None, size: str | None) -> FirstModel:
    """A model on the hub: its configuration and tokenizer are fetched, small files both, or found in the cache."""
    config, reason = _fetched(repository, revision, "config.json")
    commit = config.parent.name if config else revision or ""
    if not _COMMIT.fullmatch(commit):
        raise ConfigError(
            f"{name}: the hub cannot be asked for its newest commit ({reason}); write org/name@COMMIT, with the 40 "
            "hexadecimal digits of one, or a directory"
        )
    if config is not None:
        tokenizer, _ = _fetched(repository, commit, "tokenizer.json")
        shape = shape_of_config(read_json(config), f"{name}: config.json")
        return FirstModel(name, repository, commit, shape, tokenizer=tokenizer)
    if size is None:
        raise ConfigError(
            f"{name}: not in the hub's cache and cannot be fetched ({reason}), so its size is unknown; give it with "
            "--model-size, for example --model-size 7B"
        )
    return FirstModel(name, repository, commit, shape_of_size(weights_of_size(size)), exact=False)


def weights_of_size(size: str) -> int:
    """How many weights 0.5B, 7B or 135M are."""
    found = _SIZE.fullmatch(size.strip())
    if found is None or not float(found["count"]):
        raise ConfigError(f"--model-size={size} is no number of weights; write it like 0.5B or 135M")
    unit = found["unit"].lower() or "b"
    return round(float(found["count"]) * (1e9 if unit == "b" else 1e6))


def _fetched(repository: str, revision: str | None, file: str) -> tuple[Path | None, str]:
    """A file of a model on the hub, or why there is none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    try:
        return Path(hf_hub_download(repository, file, revision=revision)), ""
    except Exception as error:  # the client raises a dozen kinds, over two HTTP libraries
        return None, one_line(error)
