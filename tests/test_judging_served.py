"""`rlhf label judge` against a real server of the protocol: `transformers serve`, with a small model that was trained.

The model knows stories, not questions. Its answers are held to A and B by `logit_bias`, which is OpenAI's, so which of
the two it says is its own; what that must be is computed here from its logits.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from published import DATA, require_data
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from data.judging.questions import RUBRIC, Question, both_orders
from data.labelling.pairs import read_pairs
from data.locations import files_of
from data.reading import Reading
from launch.cli import app
from launch.local import free_port
from rlhf.config import SourceConfig
from rlhf.errors import LabellingError
from rlhf.types import Comparison

pytestmark = [pytest.mark.services, pytest.mark.beside]
STORIES = DATA / "model" / "stories260k"
# It has no template of its own; its 512 tokens have room for the end of a question, where the responses are.
TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'][-600:] }}{% endfor %}"
A, B = 447, 445  # the tokens that are these letters alone
TEXTS = ["The cat ran home.", "Tom was sad and cried.", "They all played in the sun.", "A big dog sat there."]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_data()
    folder = tmp_path_factory.mktemp("judge") / "stories"
    shutil.copytree(STORIES, folder)
    folder.chmod(0o755)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def url(model: Path) -> Iterator[str]:
    """A server while the tests of this module run."""
    port, log = free_port(), model.parent / "log"
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(model), "--port", str(port)]
    with log.open("w") as file:
        child = subprocess.Popen([*command, "--device", "cpu"], stdout=file, stderr=file, env={**os.environ})
    try:
        deadline = time.monotonic() + 240
        while child.poll() is None and time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                if httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200:
                    break
            time.sleep(0.2)
        else:
            pytest.fail(log.read_text()[-2000:])
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        child.terminate()
        child.wait(timeout=60)


def preferences_for_b(model: Path, questions: list[Question]) -> list[float]:
    """How much likelier B is than A, in nats."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    policy = AutoModelForCausalLM.from_pretrained(model)
    found = []
    for question in questions:
        turn = [{"role": "user", "content": question.text(RUBRIC)}]
        ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            logits = policy(ids["input_ids"]).logits[0, -1]
        found.append(float(logits[B] - logits[A]))
    return found


def ask(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["label", "judge", "pairs.jsonl", "--json", "--concurrency", "2", *arguments])
    if isinstance(result.exception, LabellingError):
        raise result.exception
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_a_real_server_s_answers_become_the_votes_that_its_model_casts(
    url: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    records = [{"prompt": f"Tell me story {number}.", "responses": TEXTS} for number in range(2)]
    Path("pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    pairs = read_pairs(["pairs.jsonl"]).found
    questions = list(both_orders(pairs.values()))
    likelier = preferences_for_b(model, questions)
    middle = sorted(likelier)[len(likelier) // 2 - 1 : len(likelier) // 2 + 1]
    threshold = sum(middle) / 2  # so that the model says A to half of all questions
    bias = json.dumps({"max_tokens": 1, "logit_bias": {str(A): 100.0 + threshold, str(B): 100.0}})
    report = ask("--model", str(model), "--url", url, "--request", bias)

    said = {q.key: "B" if lean > threshold else "A" for q, lean in zip(questions, likelier, strict=True)}
    lines = [json.loads(line) for line in Path("judged.jsonl.answers").read_text().splitlines()[1:]]
    assert {(line["pair"], line["swapped"]): line["said"] for line in lines} == said
    assert set(said.values()) == {"A", "B"}
    both = [(said[number, False], said[number, True]) for number in pairs]
    assert report["ties"] == sum(one == other for one, other in both)
    position = report["position"]
    assert (position["to_first"], position["to_second"]) == (both.count(("A", "A")), both.count(("B", "B")))
    assert report["votes"] == len(pairs) == 12
    assert report["tokens"] == sum(line["prompt_tokens"] + 1 for line in lines) > 24 * 100

    votes = list(Reading(SourceConfig(path="judged.jsonl"), files_of("judged.jsonl", None), "comparisons"))
    assert all(isinstance(vote, Comparison) and vote.annotator == f"judge:{model}" for vote in votes)
    assert len(votes) == 12

    with pytest.raises(LabellingError, match="no pair has two answers that are A, B or tie"):
        ask("--model", str(model), "--url", url, "--count", "1", "--output", "stories.jsonl", "--max-tokens", "4")
