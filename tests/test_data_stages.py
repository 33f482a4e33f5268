"""From sources to what trainers read: token rows on disk, too long examples, stages and ranks that share a scratch."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from pydantic import ValidationError
from running import TINY, stage
from torch import multiprocessing

from data import sources
from data.formats import write_jsonl
from rlhf.config import DataConfig, SourceConfig
from rlhf.distributed import gather_objects, is_main, main_first, process_group, rank
from rlhf.errors import DataError
from rlhf.types import Comparison, Demonstration, Prompt
from stages.reward import encode as encode_comparisons
from stages.rows import Keeping, lengths
from stages.sft import encode
from tests.test_models import tiny_tokenization

DEMONSTRATIONS = [Demonstration(Prompt(f"the cat {i}"), "ran " * (i % 7 + 1)) for i in range(600)]


def keep(path: Path | None = None, longest: int = 999, too_long: Literal["fail", "drop"] = "fail") -> Keeping:
    return Keeping(longest, "sft.max_length", too_long, path)


def rows(demonstrations: list[Demonstration], keeping: Keeping) -> list[dict[str, Any]]:
    return list(encode(demonstrations, tiny_tokenization(), keeping).dataset)


def test_rows_are_the_same_on_disk_and_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "training.arrow"
    expected = []
    for demonstration in DEMONSTRATIONS:
        tokens, learned = tiny_tokenization().demonstration(demonstration)
        expected.append({"input_ids": tokens, "labels": np.where(learned, tokens, -100).tolist()})
    assert rows(DEMONSTRATIONS, keep()) == rows(DEMONSTRATIONS, keep(path)) == expected
    assert {file.name for file in path.parent.iterdir()} == {"training.arrow", "training.json"}
    written = path.stat().st_mtime_ns
    assert rows(DEMONSTRATIONS, keep(path)) == expected and path.stat().st_mtime_ns == written
    dataset = encode(DEMONSTRATIONS, tiny_tokenization(), keep(path)).dataset
    assert lengths(dataset, "input_ids").tolist() == [len(row["input_ids"]) for row in expected]


def test_what_is_too_long_is_an_error_or_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = [len(row["input_ids"]) for row in rows(DEMONSTRATIONS, keep())]
    limit = int(np.median(tokens))
    fitting = [i for i, length in enumerate(tokens) if length <= limit]
    path = tmp_path / "x.arrow"
    with pytest.raises(DataError, match=r"demonstration \d+ .* raise sft.max_length or set data.too_long=drop"):
        encode(DEMONSTRATIONS, tiny_tokenization(), keep(path, limit))
    assert list(tmp_path.iterdir()) == []
    capsys.readouterr()
    for _ in range(2):  # written, and found again
        kept = encode(DEMONSTRATIONS, tiny_tokenization(), keep(path, limit, "drop"))
        assert kept.kept.tolist() == fitting
        assert list(kept.dataset) == rows([DEMONSTRATIONS[i] for i in fitting], keep())
        said = capsys.readouterr().out
        assert said == f"left out {600 - len(fitting)} of 600 examples: more than {limit} tokens\n"
    with pytest.raises(DataError, match="every example has more than 2 tokens; raise sft.max_length"):
        encode(DEMONSTRATIONS, tiny_tokenization(), keep(None, 2, "drop"))


def test_a_pair_is_as_long_as_its_longer_response() -> None:
    pairs = [Comparison(Prompt("a"), "b", "c"), Comparison(Prompt("a"), "b", "c" * 50)]
    kept = encode_comparisons(pairs, tiny_tokenization(), keep(None, 40, "drop"))
    assert kept.kept.tolist() == [0]
    assert set(kept.dataset.column_names) == {"chosen_ids", "rejected_ids", "target", "weight"}
    with pytest.raises(DataError, match="comparison 1 "):
        encode_comparisons(pairs, tiny_tokenization(), keep(None, 40))


@pytest.mark.filterwarnings("ignore")  # whole stages run here: what their libraries warn of is not ours
def test_stages_train_on_formats_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Instructions and chat transcripts, dropped records, a mixture and rated sentences, through SFT and reward."""
    instructions = [{"instruction": f"say {i}", "input": "", "output": f"{i} is said"} for i in range(120)]
    (tmp_path / "i.json").write_text(json.dumps([*instructions, {"instruction": 3}]))
    turns = [{"prompt": f"p {i}", "completion": str(7919**99) if i < 9 else "ran"} for i in range(60)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, turns)))
    (tmp_path / "r.jsonl").write_text("\n".join(json.dumps({"text": f"text {i}", "mean": i}) for i in range(300)))
    data = (
        f"data={{directory: {tmp_path}, test_fraction: 0.2, too_long: drop, "
        "demonstrations: [{path: i.json, bad_records: drop, weight: 2.0}, {path: t.jsonl}], "
        "comparisons: [{path: r.jsonl, prompt: say}]}"
    )
    stage("sft", TINY, tmp_path, tmp_path / "sft", [data, "sft.packing=false"])
    told = capsys.readouterr().out
    assert "i.json: format instruction (detected), 121 records, 120 demonstrations" in told
    assert "i.json: dropped 1 bad records: " in told and "record 121: instruction=3 is not a text" in told
    assert "examples: more than 112 tokens" in told
    stage("reward", TINY, tmp_path, tmp_path / "reward", [data])
    told = capsys.readouterr().out
    assert "r.jsonl: format rating (detected), 300 records, 300 ratings" in told
    for name in ("sft", "reward"):
        assert not list((tmp_path / name).rglob("*.arrow"))


def share_work(index: int, folder: Path, port: int) -> None:
    os.environ.update(WORLD_SIZE="2", RANK=str(index), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with process_group():
        config = DataConfig(directory=str(folder), prompts=[SourceConfig(path="p.jsonl", weight=1.0)])
        with main_first():
            made = (folder / "made").exists()
            assert made != is_main()
            (folder / "made").touch()
            split = sources.prompts(config, 0, folder / "scratch")
        kept = encode(DEMONSTRATIONS, tiny_tokenization(), keep(folder / "rows.arrow"))
        seen = gather_objects(([p.text for p in split.train], kept.dataset[17], len(kept.dataset)))
        assert seen[0] == seen[1]
        with pytest.raises(DataError), main_first():  # the others do not wait for ever
            raise DataError(f"rank {rank()}")
        with pytest.raises(DataError):
            encode(DEMONSTRATIONS, tiny_tokenization(), keep(folder / "short.arrow", 3))
    (folder / f"done-{index}").touch()


def test_the_main_process_writes_and_the_others_map(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "p.jsonl", [Prompt(f"{i}") for i in range(300)])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(share_work, args=(tmp_path, port), nprocs=2)
    assert (tmp_path / "done-0").exists() and (tmp_path / "done-1").exists()
    assert len(list((tmp_path / "scratch").glob("*.arrow"))) == 1


@pytest.mark.parametrize("path", ["toy", "stories", "on-policy"])
@pytest.mark.parametrize("idle", [{"format": "hh"}, {"bad_records": "drop"}, {"prompt": "q"}])
def test_a_source_that_reads_no_records_takes_nothing_for_them(path: str, idle: dict[str, str]) -> None:
    labeller = {"labeller": "data.lexicons:vader"} if path == "on-policy" else {}
    SourceConfig(path=path, weight=2.0, **labeller)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match=f"remove {next(iter(idle))}"):
        SourceConfig(path=path, **labeller, **idle)  # type: ignore[arg-type]
