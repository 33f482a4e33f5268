import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhf.config import AffectsNothing, Recipe, Section
from rlhf.errors import ArtifactError
from rlhf.recipe import load_recipe
from rlhf.store.artifact import (
    Artifact,
    Lineage,
    checksums,
    file_digest,
    find_artifact,
    load_artifact,
    publish,
    write_json,
)
from rlhf.store.turnover import clear
from stages.lineage import lineage_of

LINEAGE = Lineage("sft", {"seed": 0, "epochs": 3.0}, {"base": "abc"}, {"demonstrations": "def"})


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    """A complete stage with a model of two files, an adapter, and figures."""
    directory = tmp_path / "run" / "sft"
    clear(directory)
    partial = directory / ".partial"
    for name in ("model/weights", "model/deep/config", "adapter/weights"):
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).write_text(f"content of {name}")
    (directory / "metrics.jsonl").write_text("{}\n")
    return publish(directory, LINEAGE, {"results": {"loss": 1.5}, "recipe": {}})


def problem(directory: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        load_artifact(directory)
    (line,) = caught.value.problems
    assert "\n" not in line and line.startswith(str(directory))
    return line


def test_published_is_complete_and_loads(artifact: Artifact) -> None:
    loaded = load_artifact(artifact.directory)
    assert loaded.manifest == artifact.manifest == json.loads((artifact.directory / "manifest.json").read_text())
    assert loaded.fingerprint == LINEAGE.fingerprint and loaded.results == {"loss": 1.5}
    assert (loaded.model / "deep" / "config").read_text() == "content of model/deep/config"
    assert {path.name for path in artifact.directory.iterdir()} == {
        "model",
        "adapter",
        "metrics.jsonl",
        "manifest.json",
    }
    assert set(loaded.manifest["checksums"]) == {"model/weights", "model/deep/config", "adapter/weights"}
    assert loaded.manifest["inputs"] == LINEAGE.inputs and loaded.manifest["data"] == LINEAGE.data
    assert "torch" in loaded.manifest["environment"]["packages"]


def test_without_a_manifest_nothing_is_there(artifact: Artifact) -> None:
    (artifact.directory / "manifest.json").unlink()
    assert find_artifact(artifact.directory) is None
    assert "no complete stage here; run `rlhf sft RECIPE` first" in problem(artifact.directory)


@pytest.mark.parametrize("name", ["model/weights", "model/deep/config", "adapter/weights"])
@pytest.mark.parametrize("position", [0, -1])
def test_a_flipped_bit_is_named(artifact: Artifact, name: str, position: int) -> None:
    path = artifact.directory / name
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    assert problem(artifact.directory).startswith(f"{path}: damaged")


def test_a_missing_or_cut_file_is_named(artifact: Artifact) -> None:
    weights, config = artifact.directory / "adapter/weights", artifact.directory / "model/deep/config"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert problem(artifact.directory).startswith(f"{weights}: damaged")
    config.unlink()
    weights.unlink()
    assert problem(artifact.directory).startswith((f"{config}: missing", f"{weights}: missing"))


MANIFEST = {"format": 1, "stage": "sft", "fingerprint": "x", "checksums": {}, "results": {}}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '"text"',
        "\xff\xfe",
        json.dumps(MANIFEST | {"format": 0}),
        json.dumps(MANIFEST | {"format": "1"}),
        json.dumps({"format": 1}),
        json.dumps(MANIFEST | {"checksums": None}),
        json.dumps(MANIFEST)[:-20],
    ],
)
def test_a_bad_manifest_is_one_line(artifact: Artifact, text: str) -> None:
    (artifact.directory / "manifest.json").write_text(text, encoding="latin-1")
    line = problem(artifact.directory)
    assert line.startswith(f"{artifact.directory / 'manifest.json'}: ") and "run the stage again" in line


def test_checksums_are_of_content_and_relative(artifact: Artifact, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    (artifact.directory / "model").rename(copy)
    assert checksums(tmp_path, ("elsewhere",))["elsewhere/weights"] == file_digest(copy / "weights")
    empty = tmp_path / "empty"
    empty.touch()
    assert file_digest(empty) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_json_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    write_json(path, {"step": 1})
    with pytest.raises(TypeError):
        write_json(path, {"step": 2, "later": object()})
    assert json.loads(path.read_text()) == {"step": 1}

    def fails(_: int) -> None:
        assert json.loads(path.read_text()) == {"step": 1}  # the old one stands until all of the new one is on disk
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="disk full"):
        write_json(path, {"step": 3})
    assert json.loads(path.read_text()) == {"step": 1}
    monkeypatch.undo()
    write_json(path, {"step": 4})
    assert json.loads(path.read_text()) == {"step": 4}
    assert [file.name for file in tmp_path.iterdir()] == ["state.json"]


def test_a_fingerprint_changes_with_everything_that_determines_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    variants = [
        LINEAGE,
        Lineage("reward", LINEAGE.fields, LINEAGE.inputs, LINEAGE.data),
        Lineage("sft", {"seed": 1, "epochs": 3.0}, LINEAGE.inputs, LINEAGE.data),
        Lineage("sft", LINEAGE.fields, {"base": "abd"}, LINEAGE.data),
        Lineage("sft", LINEAGE.fields, LINEAGE.inputs, {"demonstrations": "deg"}),
    ]
    fingerprints = [variant.fingerprint for variant in variants]
    assert len(set(fingerprints)) == len(variants)
    reordered = Lineage("sft", {"epochs": 3.0, "seed": 0}, {"base": "abc"}, {"demonstrations": "def"})
    assert reordered.fingerprint == LINEAGE.fingerprint
    monkeypatch.setattr("rlhf.store.artifact.FORMAT", 10**6)
    assert LINEAGE.fingerprint not in fingerprints


NOTHING = [
    "name=other",
    "tracking.wandb.mode=disabled",
    "tracking.wandb.project=x",
    "parallelism.processes=2",
    "sft.parallelism={processes: 2}",
    "sft.micro_batch_size=8",
    "reward.micro_batch_size=8",
    "ppo.parallelism={processes: 2}",
    "ppo.micro_batch_tokens=77",
    "ppo.generation.batch_size=3",
    "ppo.generation.weights=replica",
    "ppo.generation.server={timeout_seconds: 5.0}",
    "ppo.generation.cuda_graphs=true",
    "ppo.faults={limit: 5}",
    "ppo.offload=[reward]",
    "ppo.overlap_scoring=off",
    "sft.evaluate_every=1",
    "reward.evaluate_every=1",
    "reward.server={batch_size: 3}",
    "checkpoint.every_steps=1",
    "data.directory=/tmp",
    "data.check={gate: off, duplicate: {warn: 0.5}}",
    "model.activation_checkpointing=true",
    "evaluate.parallelism={processes: 2}",
    "watchdog=null",
    "labelling={judge: {model: m}}",
]
SOMETHING = {
    "sft": ["seed=1", "sft.learning_rate=1e-5", "sft.packing=false", "model.init.layers=3", "data.test_fraction=0.2"],
    "reward": ["seed=1", "reward.center=0.5", "reward.label_smoothing=0.1", "model.dtype=bfloat16"],
    "ppo": ["seed=1", "ppo.clip=0.3", "ppo.kl.coef=0.5", "ppo.generation.temperature=0.5", "ppo.minibatches=4"],
    "evaluate": ["seed=1", "evaluate.prompts=7", "ppo.generation.temperature=0.5"],
}


def fingerprint(stage: str, folder: Path, *overrides: str) -> str:
    recipe = folder / "recipe.yaml"
    recipe.write_text("seed: 0\n")
    return lineage_of(load_recipe(recipe, overrides), stage, folder).fingerprint


@pytest.mark.parametrize("stage", SOMETHING)
def test_where_and_how_fast_stays_out_of_a_fingerprint(stage: str, tmp_path: Path) -> None:
    before = fingerprint(stage, tmp_path)
    changed = [override for override in NOTHING if fingerprint(stage, tmp_path, override) != before]
    assert not changed


@pytest.mark.parametrize("stage", SOMETHING)
def test_what_affects_the_result_is_in_the_fingerprint(stage: str, tmp_path: Path) -> None:
    before = fingerprint(stage, tmp_path)
    same = [override for override in SOMETHING[stage] if fingerprint(stage, tmp_path, override) == before]
    assert not same


def marked(section: type[Section], path: str = "") -> Iterator[str]:
    for name, info in section.model_fields.items():
        if any(mark is AffectsNothing for mark in info.metadata):
            yield f"{path}{name}"
        elif isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            yield from marked(info.annotation, f"{path}{name}.")


def test_every_mark_that_there_is_was_tried() -> None:
    tried = [override.partition("=")[0] for override in NOTHING]
    missing = [mark for mark in marked(Recipe) if not any(f"{key}.".startswith(f"{mark}.") for key in tried)]
    below = {"model.path", "sft.use", "reward.use", "reward.start"}  # or in test_continued.py
    assert set(missing) <= {"reward.parallelism", *below}


def test_files_count_by_content_not_by_name(tmp_path: Path) -> None:
    for folder in ("one", "two", "changed"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "weights").write_text("changed" if folder == "changed" else "same")
        (tmp_path / f"{folder}.jsonl").write_text('{"prompt": "p", "completion": "%s"}' % (folder == "changed"))
    for key in ("model.path={}", "data.demonstrations=[{{path: {}.jsonl}}]"):
        overrides = [key.format(tmp_path / folder) for folder in ("one", "two", "changed")]
        one, two, changed = (fingerprint("sft", tmp_path, override) for override in overrides)
        assert one == two != changed
        assert fingerprint("sft", tmp_path) not in (one, changed)


def test_marked_fields_are_left_out_and_nested_ones_kept() -> None:
    fields: dict[str, Any] = Recipe().fingerprint_fields()
    assert not {"name", "tracking", "parallelism"} & fields.keys()
    source = Recipe().data.demonstrations[0].model_dump()
    without = {"path", "replay"}  # the latter counts where it is set
    assert "directory" not in fields["data"] and fields["data"]["demonstrations"] == [
        {key: value for key, value in source.items() if key not in without}
    ]
    assert fields["ppo"]["kl"]["coef"] == 0.05 and "micro_batch_tokens" not in fields["ppo"]
