"""What waits in the CPU's memory is away while it is not used, there when it is, and the same as ever."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlhf.engine.learning import MOMENTS
from rlhf.errors import ConfigError
from rlhf.offload import room_for, storage_of
from rlhf.recipe import load_recipe
from tests.cast import CONFIG, PROMPTS, Cast, load_cast, save_cast, step, weights

ALL = CONFIG.model_copy(update={"offload": ["reference", "reward", "optimizer"]})
ROWS = list(range(len(PROMPTS)))


pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_cast(tmp_path_factory.mktemp("cast"))


def held(tensors: Iterable[Tensor]) -> str:
    """Whether some tensors have anything in them."""
    sizes = [storage_of(tensor).nbytes() for tensor in tensors]
    return "none" if not sizes else "here" if all(sizes) else "away" if not any(sizes) else "in part"


def whereabouts(cast: Cast) -> dict[str, str]:
    reward: Any = cast.actors.reward
    moments = [state[name] for state in cast.policy.optimizer.state.values() for name in MOMENTS]  # type: ignore[attr-defined]
    models = {"policy": cast.policy.module, "reference": cast.actors.reference, "reward": reward.model}
    return {name: held(model.parameters()) for name, model in models.items()} | {"optimizer": held(moments)}


def watched(cast: Cast, seen: dict[str, list[dict[str, str]]]) -> None:
    """Notes where everything is whenever somebody is at work."""

    def note(name: str) -> Any:
        return lambda *_, **__: seen.setdefault(name, []).append(whereabouts(cast))

    sample, update = cast.actors.generator.sample, cast.policy.optimizer.step  # type: ignore[attr-defined]
    noted = note("sample")
    vars(cast.actors.generator)["sample"] = lambda *given, **named: (noted(), sample(*given, **named))[1]
    cast.actors.reference.register_forward_hook(note("reference"))
    cast.actors.reward.model.model.register_forward_hook(note("reward"))  # type: ignore[attr-defined]
    stepping = note("update")
    vars(cast.policy.optimizer)["step"] = lambda *given: (stepping(), update(*given))[1]  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:Seems like `optimizer.step")  # for it is watched
def test_each_is_there_while_it_is_used_and_away_otherwise(folder: Path) -> None:
    cast = load_cast(folder, ALL)
    seen: dict[str, list[dict[str, str]]] = {}
    watched(cast, seen)
    for _ in range(2):
        step(cast, PROMPTS, ROWS, ALL)
    away = {"policy": "here", "reference": "away", "reward": "away", "optimizer": "away"}
    for name, of in (("sample", None), ("reference", "reference"), ("reward", "reward"), ("update", "optimizer")):
        expected = away | ({of: "here"} if of else {})
        assert seen[name] and all(found == expected for found in seen[name]), name
    assert whereabouts(cast) == away


def test_nothing_is_away_where_nothing_is_asked_for(folder: Path) -> None:
    cast = load_cast(folder)
    step(cast, PROMPTS, ROWS)
    assert set(whereabouts(cast).values()) == {"here"}


@pytest.mark.parametrize("offload", [["reference"], ["reward"], ["optimizer"], ALL.offload])
def test_steps_are_bit_for_bit_what_they_are_without(folder: Path, offload: list[str]) -> None:
    config = CONFIG.model_copy(update={"offload": offload})
    plain, moved = load_cast(folder), load_cast(folder, config)
    for _ in range(3):
        expected, found = step(plain, PROMPTS, ROWS), step(moved, PROMPTS, ROWS, config)
        assert found.statistics == expected.statistics
        assert torch.equal(found.experience.ref_logprobs, expected.experience.ref_logprobs)
        assert torch.equal(found.experience.scores, expected.experience.scores)
    for one, other in ((plain.policy, moved.policy), (plain.value, moved.value)):
        assert one is not None and other is not None
        assert torch.equal(weights(one.module), weights(other.module))


def test_who_asks_a_model_that_is_away_is_told(folder: Path) -> None:
    cast = load_cast(folder, ALL)
    with pytest.raises(RuntimeError, match="its weights are in the CPU's memory"):
        cast.actors.reference(input_ids=torch.tensor([[1, 2]]))
    reward: Any = cast.actors.reward
    with pytest.raises(RuntimeError, match="its weights are in the CPU's memory"):
        reward.score_tokens([[1, 2]])


def test_a_checkpoint_has_what_is_away(folder: Path, tmp_path: Path) -> None:
    plain, moved = load_cast(folder), load_cast(folder, ALL)
    step(plain, PROMPTS, ROWS)
    step(moved, PROMPTS, ROWS, ALL)
    moved.policy.save(tmp_path / "away")
    again = load_cast(folder)
    again.policy.load(tmp_path / "away")
    state, expected = (each.policy.optimizer.state_dict()["state"] for each in (again, plain))  # type: ignore[attr-defined]
    for number, of in expected.items():
        assert all(torch.equal(state[number][name], of[name]) for name in MOMENTS)
    step(moved, PROMPTS, ROWS, ALL)  # goes on
    step(plain, PROMPTS, ROWS)
    assert torch.equal(weights(moved.policy.module), weights(plain.policy.module))


@pytest.mark.parametrize("way", ["save", "snapshot", "load"])
def test_a_checkpoint_leaves_away_what_was_away(folder: Path, tmp_path: Path, way: str) -> None:
    cast = load_cast(folder, ALL)
    step(cast, PROMPTS, ROWS, ALL)
    engine: Any = cast.policy
    if way == "snapshot":
        engine.snapshot()(tmp_path / "state")
    else:
        engine.save(tmp_path / "state")
    if way == "load":
        cast = load_cast(folder, ALL)
        cast.policy.load(tmp_path / "state")
    assert whereabouts(cast)["optimizer"] == "away"


def test_weights_of_a_file_are_copied_before_they_go(folder: Path) -> None:
    """A file's pages, into which a CPU maps weights, cannot be given back."""
    from safetensors.torch import load_file

    from rlhf.offload import offloaded_models

    linear = nn.Linear(4, 4).requires_grad_(False)
    file = next((folder / "reward").glob("*.safetensors"))
    mapped = next(tensor for tensor in load_file(file).values() if tensor.dim() == 2)
    linear.weight.data = mapped
    expected = mapped.clone()
    away = offloaded_models([linear])
    assert held(linear.parameters()) == "away"
    away.fetch()
    assert torch.equal(linear.weight, expected)


def test_places_stand_side_by_side_in_few_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of its own for each would be rounded up to twice its size where it is pinned."""
    monkeypatch.setattr("rlhf.offload.BLOCK", 4096)
    sizes = [3000, 513, 2048, 9000, 2048]
    places = room_for(sizes, pinned=False)
    assert [place.numel() for place in places] == sizes
    for number, place in enumerate(places):
        place.fill_(number)
    assert all(bool((place == number).all()) for number, place in enumerate(places))
    blocks = {place.untyped_storage().data_ptr(): place.untyped_storage().nbytes() for place in places}
    assert sorted(blocks.values()) == [4096, 4096, 9216]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (["ppo.offload=[reference]", "model.lora.rank=4"], "the policy without its adapters, and stays"),
        (["ppo.offload=[optimizer]", "parallelism.strategy=zero2"], "DeepSpeed's; use cpu_offload=true"),
        (["ppo.offload=[reward]", "parallelism={strategy: fsdp, cpu_offload: true}"], "all of it already"),
        (["ppo.offload=[policy]"], "ppo.offload"),
    ],
)
def test_what_cannot_be_offloaded_is_one_line(changes: list[str], problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_recipe("demo", changes)
    assert problem in str(error.value) and "\n" not in str(error.value)
