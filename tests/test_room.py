"""What is known of a disk and of a model before a stage starts."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import pytest

from rlhf.config import InitConfig, ModelConfig
from rlhf.errors import ArtifactError
from rlhf.models import new_policy
from rlhf.recipe import load_recipe
from rlhf.store.weights import count_weights
from stages import room
from tests.test_models import tiny_tokenization

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(
    "shape",
    [
        {"hidden_size": 32, "layers": 2, "heads": 2},
        {"hidden_size": 40, "layers": 3, "heads": 4},
        {"hidden_size": 24, "layers": 1, "heads": 2, "intermediate_size": 50},
    ],
)
def test_arithmetic_counts_the_weights_of_a_fresh_model(shape: dict[str, int], tmp_path: Path) -> None:
    tokenization = tiny_tokenization()
    init = InitConfig(vocab_size=max(260, len(tokenization.tokenizer)), **shape)
    model = new_policy(init, tokenization, ModelConfig())
    spared = (init.vocab_size - len(tokenization.tokenizer)) * init.hidden_size
    assert room.weights_of_init(init) - spared == sum(parameter.numel() for parameter in model.parameters())
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    assert count_weights(tmp_path / "model.safetensors") == room.weights_of_init(init) - spared


def test_room_is_asked_for_models_and_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("demo")
    weights = room.weights_of_init(recipe.model.init)
    needed = {"sft": 4 * weights * 7, "reward": 4 * weights * 7, "ppo": 4 * weights * 20, "evaluate": 0}
    for stage, size in needed.items():
        monkeypatch.setattr(room.shutil, "disk_usage", lambda _, size=size: Usage(0, 0, size))
        room.require_room(recipe, stage, tmp_path / "runs" / "demo")
        if size:
            monkeypatch.setattr(room.shutil, "disk_usage", lambda _, size=size: Usage(0, 0, size - 1))
            with pytest.raises(ArtifactError, match=f"free on its disk, but the {stage} stage of a model of"):
                room.require_room(recipe, stage, tmp_path / "runs" / "demo")
