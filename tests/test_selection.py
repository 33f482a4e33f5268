"""What to label next: the pairs that are chosen, and the command."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

from data.selection import Answer, Candidate, Pool, answers_of_run, paired, pool_of_files, pool_of_run, select
from launch.commands.select import select_command
from rlhf.config import ModelConfig
from rlhf.errors import ArtifactError, ConfigError, DataError
from rlhf.store.samples import write_samples
from rlhf.tokenization import load_tokenization
from rlhf.types import Prompt
from stages.opinions import opinions, reward_of

app = typer.Typer()
app.command()(select_command)
# Of three letters each twice, so that no two are nearly the same text.
WORDS = ("alder beech", "cedar dogwood", "elm fir", "ginkgo hazel", "ironwood juniper", "larch maple")


def ask(*arguments: object) -> str:
    """The command in this process: standard output."""
    done = CliRunner().invoke(app, [*map(str, arguments)])
    if done.exception is not None:
        raise done.exception
    return done.stdout


def candidate(prompt: str, gap: float, kind: str | None = None) -> Candidate:
    return Candidate(Prompt(prompt), Answer("a", (gap,)), Answer("b", (0.0,)), kind)


def test_margin_takes_the_least_sure_of_each_prompt_first() -> None:
    pool = Pool([candidate("p", 0.3), candidate("p", 0.1), candidate("q", -2.0), candidate("r", 0.2)])
    chosen = select(pool, 4, "margin")
    assert [(one.prompt.content, one.first.scores[0]) for one in chosen] == [
        ("p", 0.1),
        ("r", 0.2),
        ("q", -2.0),
        ("p", 0.3),
    ]


def test_who_is_quite_sure_is_not_taken_for_unsure() -> None:
    chosen = select(Pool([candidate("p", -1e6), candidate("q", 1.0), candidate("r", 1e6)]), 1, "margin")
    assert chosen[0].prompt.content == "q"


def test_of_several_models_the_mean_probability_counts() -> None:
    """Two that contradict each other are as unsure together as one that cannot tell."""
    split = Candidate(Prompt("p"), Answer("a", (3.0, -3.0)), Answer("b", (0.0, 0.0)))
    sure = Candidate(Prompt("q"), Answer("a", (1.0, 1.0)), Answer("b", (0.0, 0.0)))
    assert split.probability == pytest.approx(0.5)
    assert select(Pool([sure, split]), 1, "margin") == [split]


def test_disagreement_is_what_a_vote_tells_of_which_model_is_right() -> None:
    def of(*gaps: float) -> Candidate:
        return Candidate(Prompt(f"{gaps}"), Answer("a", gaps), Answer("b", (0.0,) * len(gaps)))

    torn, undecided, agreed = of(30.0, -30.0), of(0.0, 0.0), of(2.0, 2.0)
    assert torn.disagreement == pytest.approx(math.log(2)) and undecided.disagreement == agreed.disagreement == 0
    two = of(1.0, -0.5)
    first, second = (1 / (1 + math.exp(-gap)) for gap in (1.0, -0.5))
    joint = [(p / 2, (1 - p) / 2) for p in (first, second)]  # of model and vote
    votes = [sum(column) for column in zip(*joint, strict=True)]
    by_definition = sum(p * math.log(p / (0.5 * vote)) for row in joint for p, vote in zip(row, votes, strict=True))
    assert two.disagreement == pytest.approx(by_definition, rel=1e-9)
    assert select(Pool([undecided, two, agreed, torn]), 2, "disagreement") == [torn, two]
    assert of(1.0).disagreement is None and of().disagreement is None


def test_kinds_have_their_shares_of_any_budget() -> None:
    pool = Pool([candidate(f"{kind} {i}", 0.0, kind) for kind, n in (("code", 60), ("talk", 30)) for i in range(n)])
    for budget in (9, 30):
        kinds = Counter(one.kind for one in select(pool, budget, "random"))
        assert kinds["code"] == pytest.approx(2 * kinds["talk"], abs=2)


def test_random_follows_the_seed_and_diverse_puts_near_repeats_off() -> None:
    prompts = [f"{words}, and what comes after it in the garden" for words in WORDS]
    again = [f"{prompt}?" for prompt in prompts]
    pool = Pool([candidate(prompt, 0.0) for prompt in (*prompts, *again)])
    first, second = ([one.prompt for one in select(pool, 6, "random", seed)] for seed in (1, 2))
    assert first == [one.prompt for one in select(pool, 6, "random", 1)] and first != second
    stems = {str(one.prompt.content).rstrip("?") for one in select(pool, 6, "diverse", 3)}
    assert stems == set(prompts)


def test_pairs_of_nearly_equal_responses_are_left_out() -> None:
    long = " ".join(WORDS)
    answers = [Answer(text, ()) for text in (long, f"{long}!", f"{long} x", "quite another thing", long)]
    pool = paired([(Prompt("p"), answers, None)])
    assert pool.alike == 3 and {one.second.text for one in pool.candidates} == {"quite another thing"}


def samples(run: Path, step: int, score: float) -> None:
    rows = [
        {"step": step, "index": i, "prompt": f"p {i}", "response": f"{WORDS[(i + step) % 6]}", "score": score * i}
        | {"kl": 0.0, "tokens": 3, "finished": i != 2}
        for i in range(4)
    ]
    write_samples(run / "ppo" / "samples" / f"held-out-{step:06d}.parquet", rows)


def test_a_run_gives_pairs_of_its_steps(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no responses of two steps"):
        pool_of_run(tmp_path)
    for step, score in ((0, 0.0), (1, 1.0), (2, 3.0)):
        samples(tmp_path, step, score)
    pool = pool_of_run(tmp_path)
    assert len(pool.candidates) == 12
    two = next(one for one in pool.candidates if one.prompt.content == "p 2")
    assert (two.first.scores, two.second.scores, two.first.finished) == ((0.0,), (2.0,), False)


def test_the_command_writes_what_push_takes(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").touch()
    for step, score in ((0, 0.0), (1, 1.0)):
        samples(tmp_path, step, score)
    output = tmp_path / "next.jsonl"
    told = ask(tmp_path, "--budget", 3, "--output", output)
    assert "3 of 4 pairs chosen by margin" in told and f"rlhf label push {output}" in told
    made = [json.loads(line) for line in output.read_text().splitlines()]
    assert [record["prompt"] for record in made] == ["p 0", "p 1", "p 2"]
    assert made[2]["finished"] == [False, False] and made[0]["probability"] == 0.5
    assert all(len(record["responses"]) == 2 for record in made)
    found = json.loads(ask(output, "--budget", 9, "--by", "random", "--output", tmp_path / "again.jsonl", "--json"))
    assert (found["chosen"], found["prompts"], found["mean_confidence"]) == (3, 3, None)


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"prompt": "p", "responses": ["a"]}, "is not a list of two or more"),
        ({"prompt": "p", "responses": ["a", "b"], "scores": [1]}, "does not hold one for each of 2 responses"),
        ({"prompt": "p", "responses": ["a", "b"], "scores": [[1], [1, 2]]}, "are not of the same models"),
        ({"prompt": "p", "responses": ["a", "b"], "scores": ["x", 1]}, "scores='x' is not a number"),
        ({"responses": ["a", "b"]}, "no field 'prompt'"),
    ],
)
def test_bad_records_are_named(record: dict[str, object], problem: str, tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text(json.dumps(record))
    with pytest.raises(DataError, match=r"r.jsonl:1: .*" + problem):
        pool_of_files([str(tmp_path / "r.jsonl")])


def test_wrong_options_are_told(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text(json.dumps({"prompt": "p", "responses": ["an oak", "the sea"]}))
    read, votes = tmp_path / "r.jsonl", tmp_path / "votes.jsonl"
    (tmp_path / "more").mkdir()
    for copy in (votes, tmp_path / "more" / "m.jsonl"):
        shutil.copy(read, copy)
    for arguments, problem in (
        (["--by", "luck"], "--by=luck: not known; choose from margin, disagreement, random, diverse"),
        (["--output", "n.csv"], "must end in .jsonl"),
        (["--output", "no/n.jsonl"], "no file can be there"),
        (["--output", str(read)], "would replace a file that is read"),
        (["--output", str(votes), "--without", str(votes)], "would replace a file that is read"),
        (["--output", str(votes), "--without", votes.name, "--data-dir", str(tmp_path)], "would replace a file"),
        (["--output", str(tmp_path / "more" / "m.jsonl")], "would replace a file that is read"),  # of a directory
    ):
        with pytest.raises(ConfigError, match=problem):
            ask(read, tmp_path / "more", "--budget", 1, "--output", tmp_path / "n.jsonl", *arguments)
    assert votes.read_text() == (tmp_path / "more" / "m.jsonl").read_text() == read.read_text()
    for by, problem in (
        ("margin", "some pairs have no scores"),
        ("disagreement", "some pairs have no scores of two"),
    ):
        with pytest.raises(DataError, match=f"--by {by}: {problem}"):
            ask(read, "--budget", 1, "--output", tmp_path / "n.jsonl", "--by", by)


def other_run(run: Path, copy: Path, seed: int, **manifest: object) -> Path:
    """A run whose reward model is another: the same weights, moved at random."""
    shutil.copytree(run / "reward", copy / "reward", ignore=shutil.ignore_patterns("checkpoints"))
    shutil.copytree(run / "sft", copy / "sft", ignore=shutil.ignore_patterns("checkpoints"))
    shutil.copy(run / "recipe.yaml", copy)
    weights, generator = load_file(copy / "reward" / "model" / "model.safetensors"), torch.Generator().manual_seed(seed)
    moved = {k: w + 0.05 * torch.randn(w.shape, generator=generator).to(w.dtype) for k, w in weights.items()}
    save_file(moved, copy / "reward" / "model" / "model.safetensors", metadata={"format": "pt"})
    path = copy / "reward" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **manifest}))
    return copy


def test_reward_models_of_several_runs_score_the_responses_of_one(tiny_run: Path, tmp_path: Path) -> None:
    others = [other_run(tiny_run, tmp_path / f"other-{seed}", seed) for seed in (1, 2)]
    output = tmp_path / "next.jsonl"
    named = [word for other in others for word in ("--rewards", other)]
    told = json.loads(ask(tiny_run, *named, "--by", "disagreement", "--budget", 5, "--output", output, "--json"))
    made = [json.loads(line) for line in output.read_text().splitlines()]
    assert told["chosen"] == len(made) == 5 and told["mean_disagreement"] > 0
    assert [each["disagreement"] for each in made] == sorted((each["disagreement"] for each in made), reverse=True)
    scored = tmp_path / "scored.jsonl"
    asked = answers_of_run(tiny_run)
    opinions(asked, [tiny_run, *others], scored)
    records = [json.loads(line) for line in scored.read_text().splitlines()]
    assert [record["responses"] for record in records] == [[one.text for one in answers] for _, answers, _ in asked]
    assert all(len(set(each)) == 3 for record in records for each in record["scores"])
    for number, run in enumerate((tiny_run, *others)):
        model = AutoModelForSequenceClassification.from_pretrained(run / "reward" / "model").eval()
        tokenization = load_tokenization(run / "reward" / "model", ModelConfig())
        for (prompt, _, _), record in zip(asked[:3], records, strict=False):
            answers = zip(record["responses"], record["finished"], record["scores"], strict=True)
            for response, finished, scores in answers:
                tokens = [*tokenization.prompt(prompt), *tokenization.response(response, finished)]
                tokens = tokens[-model.config.max_position_embeddings :]
                with torch.no_grad():
                    raw = float(model(torch.tensor([tokens])).logits[0, 0])
                assert scores[number] == pytest.approx(raw, rel=1e-4, abs=1e-4)


def test_reward_models_of_runs_score_the_responses_of_a_file(tiny_run: Path, tmp_path: Path) -> None:
    other, responses = other_run(tiny_run, tmp_path / "other", 1), tmp_path / "responses.jsonl"
    records = [
        {"prompt": f"{n} ?", "responses": ["yes", "no", "why"], "scores": [1, 2, 3], "kind": "short"} for n in "ab"
    ]
    responses.write_text("".join(json.dumps(each) + "\n" for each in records))
    output = tmp_path / "next.jsonl"
    both = "--rewards", tiny_run, "--rewards", other
    told = json.loads(ask(responses, *both, "--by", "disagreement", "--budget", 2, "--output", output, "--json"))
    assert (told["pairs"], told["chosen"], told["kinds"]) == (6, 2, 1) and told["mean_disagreement"] > 0
    made = [json.loads(line) for line in output.read_text().splitlines()]
    assert {each["kind"] for each in made} == {"short"} and all(each["disagreement"] > 0 for each in made)


def test_what_cannot_be_an_opinion_is_one_line(tiny_run: Path, tmp_path: Path) -> None:
    wanted = "--budget", 1, "--output", tmp_path / "n.jsonl"
    for arguments, problem in (
        ([tiny_run, "--rewards", tmp_path], f"--rewards={tmp_path}: no run"),
        ([tiny_run, tiny_run, "--rewards", tiny_run], "scores the responses of one run, or of files"),
        ([tiny_run, "--rewards", tiny_run], "a run is given twice"),
    ):
        with pytest.raises(ConfigError, match=problem):
            ask(*arguments, *wanted)
    asked = other_run(tiny_run, tmp_path / "asked", 3, use="mine.module:function")
    with pytest.raises(
        ArtifactError, match="asked: its reward is the function mine.module:function, which is not asked"
    ):
        reward_of(asked)
    with pytest.raises(ArtifactError, match="its stage reward is not complete"):
        reward_of(tmp_path)
