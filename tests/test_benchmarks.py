"""lm-eval before and after PPO: real tasks from local files, by the real command line, against figures of our own."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interruption import manifest, own_copy
from running import TINY, rlhf
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf.errors import ConfigError
from rlhf.recipe import load_recipe
from stages import benchmark_tasks
from stages.benchmarks import compare, standard_errors
from stages.lineage import lineage_of

CHOICE = """
task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/colours.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: !function answers.right
metric_list: [{metric: acc}]
"""
TEXT = """
task: text
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/text.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}]
"""
QUESTIONS = [
    {"question": f"what is the colour of the {thing} ?", "choices": [" red", " green", " a"], "answer": index % 3}
    for index, thing in enumerate(("sky", "grass", "sea", "snow", "sun", "coal", "rose", "leaf", "frog"))
]
TEXTS = [{"text": f"the {thing} is here ."} for thing in ("sky", "grass", "frog", "sea", "moon")]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A directory of two tasks, whose data lie elsewhere."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "colours.yaml").write_text(CHOICE.replace("FOLDER", str(tmp_path)))
    (folder / "text.yaml").write_text(TEXT.replace("FOLDER", str(tmp_path)))
    (folder / "answers.py").write_text("def right(doc):\n    return doc['answer']\n")
    for name, records in (("colours", QUESTIONS), ("text", TEXTS)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    return folder


def loglikelihood(model: Any, tokenizer: Any, context: str, text: str) -> float:
    """Nats of a text behind a context, or behind the token that ends another text, from a forward pass of its own."""
    start = tokenizer(context, add_special_tokens=False)["input_ids"] if context else [tokenizer.eos_token_id]
    end = tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logprobs = model(torch.tensor([start + end])).logits[0].double().log_softmax(-1)
    return sum(logprobs[len(start) - 1 + i, token].item() for i, token in enumerate(end))


def expected(model_directory: Path) -> tuple[list[float], float]:
    """Which questions a model answers right, and its bits per byte of the texts."""
    model = AutoModelForCausalLM.from_pretrained(model_directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_directory)
    right = []
    for record in QUESTIONS:
        nats = [loglikelihood(model, tokenizer, record["question"], choice) for choice in record["choices"]]
        right.append(float(int(np.argmax(nats)) == record["answer"]))
    nats = sum(loglikelihood(model, tokenizer, "", record["text"]) for record in TEXTS)
    return right, -nats / math.log(2) / sum(len(record["text"].encode()) for record in TEXTS)


def test_local_tasks_before_and_after_by_two_processes(
    tasks: Path, tiny_run_of_two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    run = own_copy(tiny_run_of_two, tmp_path, ["sft", "reward", "ppo"])
    asked = f"evaluate.lm_eval={{tasks: [{tasks}/], batch_size: 4}}"
    done = rlhf("evaluate", str(TINY), "parallelism.processes=2", asked, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not any(word in done.stdout + done.stderr for word in ("loglikelihood", "it/s", "git repository"))
    found = manifest(run / "evaluate")["results"]["lm_eval"]
    before, after = (expected(run / stage / "model") for stage in ("sft", "ppo"))
    accuracy, bits = found["colours"]["metrics"]["acc"], found["text"]["metrics"]["bits_per_byte"]
    assert accuracy["before"] == pytest.approx(np.mean(before[0]))
    assert accuracy["after"] == pytest.approx(np.mean(after[0]))
    differences = np.subtract(after[0], before[0])
    assert accuracy["difference"] == pytest.approx(differences.mean())
    assert accuracy["difference_stderr"] == pytest.approx(differences.std(ddof=1) / 3)
    assert accuracy["before_stderr"] == pytest.approx(np.std(before[0], ddof=1) / 3)
    assert (bits["before"], bits["after"]) == (pytest.approx(before[1], rel=1e-4), pytest.approx(after[1], rel=1e-4))
    assert bits["difference"] == pytest.approx(after[1] - before[1], abs=1e-4)
    assert 0 < bits["difference_stderr"] < bits["before_stderr"]  # the same texts, so most of the spread is shared
    assert json.loads((run / "summary.json").read_text())["ppo"]["lm_eval"] == found
    assert "lm-eval colours, acc" in done.stdout
    figures = json.loads((run / "evaluate" / "metrics.jsonl").read_text().splitlines()[0])
    assert figures["lm_eval/text/bits_per_byte_after"] == bits["after"]


def test_a_task_that_breaks_while_it_runs_is_told_and_kept(
    tasks: Path, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tasks / "text.yaml").unlink()
    with (tasks / "answers.py").open("a") as file:
        file.write("def score(doc, results):\n    raise KeyError('no such\\nletter')\n")
    with (tasks / "colours.yaml").open("a") as file:
        file.write("process_results: !function answers.score\n")
    run = own_copy(tiny_run, tmp_path, ["sft", "reward", "ppo"])
    done = rlhf("evaluate", str(TINY), f"evaluate.lm_eval={{tasks: [{tasks}/], batch_size: 4}}", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (warning,) = [line for line in done.stderr.splitlines() if "lm_eval" in line]
    assert warning.startswith("evaluate: warning: evaluate.lm_eval: failed (KeyError: ")
    assert "--force tries again" in warning
    found = manifest(run / "evaluate")["results"]
    assert found["lm_eval"] == {"error": found["lm_eval"]["error"]} and 0 <= found["win_rate"] <= 1
    assert "failed: KeyError: " in done.stdout and "Traceback" not in done.stdout + done.stderr


def aggregate(values: list[tuple[float, int]]) -> float:
    return math.exp(-sum(nats for nats, _ in values) / sum(words for _, words in values))


def test_standard_errors_of_a_difference_are_those_of_pairs() -> None:
    random = np.random.default_rng(1)
    hard = random.normal(size=400)  # what both models find hard
    before, after = hard + random.normal(scale=0.1, size=400), hard + random.normal(scale=0.1, size=400) + 1
    errors = standard_errors(before.tolist(), after.tolist(), lambda values: sum(values) / len(values))
    assert errors is not None
    assert errors[0] == pytest.approx(before.std(ddof=1) / 20)
    assert errors[2] == pytest.approx((after - before).std(ddof=1) / 20)
    assert errors[2] < errors[0] / 4
    words = random.integers(5, 50, size=400)
    pairs = [[(-float(n * w), int(w)) for n, w in zip(3 + rate / 10, words, strict=True)] for rate in (before, after)]
    drawn = standard_errors(pairs[0], pairs[1], aggregate)
    assert drawn is not None
    # The delta method: perplexity times the standard error of the mean rate, weighted by words.
    rate = sum(-nats for nats, _ in pairs[0]) / words.sum()
    residuals = np.array([-nats - rate * count for nats, count in pairs[0]])
    assert drawn[0] == pytest.approx(math.exp(rate) * residuals.std(ddof=1) * 20 / words.sum(), rel=0.2)
    assert drawn[2] < drawn[0]


def test_figures_of_another_kind_have_no_such_errors() -> None:
    assert standard_errors([], [], sum) is None
    assert standard_errors([1.0, 2.0], [1.0], sum) is None
    assert standard_errors([1.0, 2.0], [1.0, 3.0], max) is None  # no mean
    assert standard_errors(["a", "b"], ["a", "c"], lambda _: 0.0) is None


def test_groups_are_compared_as_if_independent() -> None:
    def outcome(value: float) -> dict[str, Any]:
        group = {"alias": "g", "acc,none": value, "acc_stderr,none": 0.3}
        task = {"alias": "t", "exact,strict": value, "exact_stderr,strict": "N/A"}
        samples = [{"filter": "strict", "exact": ["odd"]}, {"filter": "strict", "exact": ["odd"]}]
        higher = {"g": {"acc": True}}
        return {
            "results": {"g": group, "t": task},
            "group_subtasks": {"g": ["t"]},
            "samples": {"t": samples},
            "higher_is_better": higher,
        }

    found = compare(outcome(0.5), outcome(0.4), {})
    assert found["g"]["metrics"]["acc"]["difference_stderr"] == pytest.approx(0.3 * math.sqrt(2))
    assert found["t"]["metrics"]["exact (strict)"]["difference_stderr"] is None
    assert found["t"]["metrics"]["exact (strict)"]["difference"] == pytest.approx(-0.1)
    assert (found["g"]["part_of_a_group"], found["t"]["part_of_a_group"]) == (False, True)


def asking(folder: Path, *names: str) -> list[str]:
    return [f"data.directory={folder}", f"evaluate.lm_eval={{tasks: {json.dumps(names)}}}"]


def test_the_content_of_tasks_in_files_is_part_of_an_evaluation(tasks: Path, tmp_path: Path) -> None:
    def fingerprint(name: str) -> str:
        return lineage_of(load_recipe(TINY, asking(tmp_path, name)), "evaluate", tmp_path).fingerprint

    changes = [tasks / "colours.yaml", tasks / "answers.py", tmp_path / "colours.jsonl"]
    for name in ("tasks/colours.yaml", "tasks/"):
        for path in changes:
            before = fingerprint(name)
            os.utime(path, (1, 1))
            assert fingerprint(name) == before
            path.write_text(path.read_text() + "\n")
            assert fingerprint(name) != before, (name, path)
    alone = fingerprint("tasks/colours.yaml")
    (tasks / "text.yaml").write_text((tasks / "text.yaml").read_text() + "\n")
    assert fingerprint("tasks/colours.yaml") == alone
    (tasks / "included.yaml").write_text("include: colours.yaml\ntask: other\n")
    before = fingerprint("tasks/included.yaml")
    (tmp_path / "colours.jsonl").write_text("{}\n")
    assert fingerprint("tasks/included.yaml") != before


def problems(folder: Path, *names: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        benchmark_tasks.find_tasks(load_recipe(TINY, asking(folder, *names)))
    return caught.value.problems


def test_what_is_no_task_is_one_line(tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.yaml").write_text("task: [")
    (tmp_path / "nameless.yaml").write_text("metric_list: []")
    found = problems(tmp_path, "absent.yaml", "empty/", "broken.yaml", "nameless.yaml")
    assert [line.partition(";")[0].partition(" (")[0] for line in sorted(found)] == [
        f"evaluate.lm_eval.tasks: {tmp_path}/absent.yaml: no such file or directory",
        f"evaluate.lm_eval.tasks: {tmp_path}/broken.yaml: not a task of lm-eval",
        f"evaluate.lm_eval.tasks: {tmp_path}/empty: holds no task",
        f"evaluate.lm_eval.tasks: {tmp_path}/nameless.yaml: not a task of lm-eval",
    ]
    assert not any("\n" in line for line in found)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (line,) = problems(tmp_path, "tasks/")
    assert line.startswith(
        "evaluate.lm_eval: the package lm-eval is not installed; in the clone: pip install -c constraints.txt -e "
        "'.[eval]'"
    )


@pytest.mark.soak  # lm-eval reads some fifteen thousand files to know its own tasks
def test_an_unknown_name_is_known_before_the_first_stage(tmp_path: Path) -> None:
    done = rlhf("run", str(TINY), "evaluate.lm_eval={tasks: [helaswag]}", folder=tmp_path)
    assert done.returncode == 2
    assert "evaluate.lm_eval.tasks: helaswag is no task of lm-eval; did you mean hellaswag?" in done.stderr
    assert not (tmp_path / "runs").exists()
