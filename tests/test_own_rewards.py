"""Rewards of one's own: functions in files, servers over HTTP, BERT-like classifiers, and what is examined of them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from running import TINY, rlhf
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from data.scorers import load_scorer, scorer_digest
from reward_models.rules import FunctionReward
from reward_models.sanity import Examination
from rlhf.config import ModelConfig, Recipe
from rlhf.errors import ConfigError, RewardError
from rlhf.references import check_address, kind_of
from rlhf.types import Completion, Prompt
from stages.evaluate import judge
from stages.rewards import named_reward


def completion(prompt: str, response: str, finished: bool = True) -> Completion:
    return Completion(Prompt.of_user(prompt), response, (), (), finished)


ANSWERS = [completion(f"question {i} ?", "word " * (i + 1) + f"answer {i}") for i in range(12)]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("./reward", "model"),
        ("org/name@0123", "model"),
        ("runs/a.b/reward/model", "model"),
        ("http://127.0.0.1:80/score", "server"),
        ("https://host/score", "server"),
        ("HTTPS://host/score", "server"),
        ("package.module:function", "function"),
        ("mine.py:score", "function"),
    ],
)
def test_what_a_name_names(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_addresses_hold_no_secrets() -> None:
    check_address("reward.use", "http://127.0.0.1:8000/score")
    with pytest.raises(ConfigError, match="holds a name or password") as raised:
        check_address("reward.use", "http://me:hunter2@host:80/score")
    assert "hunter2" not in str(raised.value)
    with pytest.raises(ConfigError, match="names no host"):
        check_address("reward.use", "http:///score")
    check_address("reward.use", "http://host/score?model=big&monkey=1")
    for key in ("token", "api_key", "ACCESS_TOKEN", "X-Amz-Signature", "apikey", "sig"):
        with pytest.raises(ConfigError, match=f"http://host:80/score.{key}=...: holds a secret in {key}") as raised:
            check_address("reward.use", f"http://host:80/score?model=big&{key}=hunter2")
        assert "hunter2" not in str(raised.value)
    for broken in (
        "http://me:hunter2@host:port/score",
        "http://me:hunter2@[::1/score",
        "http://[::1?key=hunter2",
        "HTTPS://me:hunter2@host/score",
        " \thttp://me:hunter2@host/score",
        "Http://host/score?token=hunter2",
        "http://me:hunter2/w@host:80/score",
        "http://me:hunter2?w@host/score",
        "http://me:w#hunter2@host/score",
        "http://me:w@w/hunter2@host/score",
        "http://host:port/score?token=w@hunter2",
    ):
        with pytest.raises(ConfigError, match="holds a ") as raised:
            check_address("reward.use", broken)
        assert "hunter2" not in str(raised.value)
    with pytest.raises(ConfigError, match="^reward.use=http://...@host:80/score: holds a name or password"):
        check_address("reward.use", "http://me:hunter2/w@host:80/score?user=1")
    for plain in ("http://host:80/models/name@0123", "http://host/score?user=me@host", "https://[::1]:80/a@b"):
        check_address("reward.use", plain)
    with pytest.raises(ConfigError, match="is no address"):
        check_address("reward.use", "http://host:port/score")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("reward.use=http://me:hunter2@host:80/score", "reward.use=http://...@host:80/score: .* RLHF_REWARD_TOKEN in"),
        ("ppo.rewards=[{use: 'https://h/s?api_key=hunter2'}]", "ppo.rewards.0.use=.* set RLHF_REWARD_TOKEN in"),
        ("ppo.held_out.judge=http://me:hunter2@host", "ppo.held_out.judge=.* set RLHF_REWARD_TOKEN in"),
        ("model.path=https://me:hunter2@host/org/name", "model.path=.* set HF_TOKEN in"),
        ("tracking.mlflow={uri: 'http://host?token=hunter2'}", "tracking.mlflow.uri=.* MLFLOW_TRACKING_TOKEN in"),
    ],
)
def test_a_secret_in_a_recipe_is_refused_also_by_a_stage_that_does_not_read_it(
    setting: str, said: str, tmp_path: Path
) -> None:
    """Each stage writes the whole recipe into the run's directory."""
    done = rlhf("sft", str(TINY), setting, folder=tmp_path)
    assert done.returncode == 2 and re.search(said, done.stderr) and len(done.stderr.splitlines()) == 1, done.stderr
    assert "hunter2" not in done.stderr + done.stdout and list(tmp_path.iterdir()) == []


def test_a_function_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def score(prompts, responses):\n    return [len(r) for r in responses]\n")
    (tmp_path / "data.py").write_text("raise RuntimeError('a file must not hide an installed package')\n")
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    for name in ("mine:score", "mine.py:score", f"{tmp_path}/mine.py:score"):
        assert load_scorer(name, None)(["p"], ["four"]) == [4.0]
    assert load_scorer("data.toy:gold", None)
    with pytest.raises(ConfigError, match=r"broken:score: cannot be imported \(ModuleNotFoundError: .*nothing_of_that"):
        load_scorer("broken:score", None)
    before = scorer_digest("mine:score", None)
    (tmp_path / "mine.py").write_text("def score(prompts, responses):\n    return [2 * len(r) for r in responses]\n")
    assert scorer_digest("mine:score", None) != before


def test_a_function_that_is_not_there_is_named_with_those_that_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "friendly.py").write_text("import math\nfrom json import loads\n\ndef score(p, r):\n    return []\n")
    (tmp_path / "hollow.py").write_text("score = 5\n")
    for name, said in (
        ("friendly.py:scor", "friendly.py:scor: friendly.py has no function scor; it has: score"),
        ("friendly:scor", "friendly:scor: friendly.py has no function scor; it has: score"),
        ("hollow:score", "hollow:score: hollow.py has no function score; it has none"),
    ):
        with pytest.raises(ConfigError) as raised:
            load_scorer(name, None)
        assert str(raised.value) == said
    places = f"{tmp_path} and {tmp_path.parent}"
    absent = f"absent:score: no module absent is installed or on PYTHONPATH, and no absent.py in {places};"
    with pytest.raises(ConfigError, match=re.escape(absent)):
        load_scorer("absent:score", str(tmp_path.parent))
    with pytest.raises(ConfigError, match=re.escape(f"absent.py:score: no file absent.py in {tmp_path};")):
        load_scorer("absent.py:score", None)


def test_what_a_function_raises_is_placed_in_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their file, also where a library raises below it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "strict.py").write_text("import json\n\ndef score(p, r):\n    return [json.loads(x) for x in r]\n")
    with pytest.raises(RewardError, match=r"raised JSONDecodeError: .* at strict\.py:4; mend it"):
        FunctionReward("strict:score", load_scorer("strict:score", None))(ANSWERS)


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (lambda prompts, responses: [1.0], "gave 1 scores for 12 responses"),
        (lambda prompts, responses: [math.nan] * len(responses), "every score must be a finite number"),
        (lambda prompts, responses: 3.0, "gave no list of numbers"),
        (lambda prompts, responses: "123456789012", "gave no list of numbers .a str"),
        (lambda prompts, responses: b"123456789012", "gave no list of numbers .a bytes"),
        (lambda prompts, responses: dict.fromkeys(range(12), 1.0), "gave no list of numbers .a dict"),
        (lambda prompts, responses: ["good"] * len(responses), "gave no list of numbers"),
        (lambda prompts, responses: [1 / 0 for _ in responses], "raised ZeroDivisionError: division by zero"),
    ],
)
def test_a_function_that_gives_no_scores_is_one_line(function: Any, problem: str) -> None:
    with pytest.raises(RewardError, match=problem) as raised:
        FunctionReward("mine:score", function)(ANSWERS)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("given", ["[math.nan] * len(responses)", "[1.0]", "1 / 0"])
def test_a_gold_scorer_is_checked_like_a_reward(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gold.py").write_text(f"import math\ndef score(prompts, responses):\n    return {given}\n")
    with pytest.raises(RewardError, match="^reward gold.py:score: ") as raised:
        judge("gold.py:score", ANSWERS, Recipe())
    assert "\n" not in str(raised.value)


def examined(score: Callable[[Sequence[str]], Sequence[float]]) -> list[str]:
    reward = FunctionReward("mine:score", lambda prompts, responses: list(score(responses)))
    return Examination("mine:score", 1e-3, lambda text: [1] * len(text), 0)(reward, ANSWERS).warnings()


def test_an_examination_tells_what_a_reward_prefers() -> None:
    assert not examined(lambda responses: [float(len(r)) for r in responses])
    assert any("nothing can be learned" in line for line in examined(lambda responses: [1.0] * len(responses)))
    (warning,) = examined(lambda responses: [-float(len(r)) for r in responses])
    assert warning == "prefers an empty response to the answer itself in 100% of 12 probes"


@pytest.mark.parametrize(
    ("score", "how"),
    [
        (lambda responses: [len(r) - sum(map(len, responses)) / len(responses) for r in responses], "alone"),
        (lambda responses: [len(r) + 0.5 * i for i, r in enumerate(responses)], ""),
    ],
)
def test_a_score_that_depends_on_the_batch_is_refused(score: Any, how: str) -> None:
    with pytest.raises(RewardError, match=f"a batch and .* {how}.*must depend on its own prompt and response"):
        examined(score)


def encoder(path: Path) -> BertForSequenceClassification:
    """A random BERT with one label, and a tokenizer that joins a pair as BERT's does."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "word", "answer", "question", "?", *map(str, range(12))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=24, **special).save_pretrained(path)
    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=24, num_labels=1, pad_token_id=0,
    )  # fmt: skip
    model = BertForSequenceClassification(shape)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.3) if weight.ndim > 1 else None
    model.save_pretrained(path)
    return model.eval()


@pytest.mark.filterwarnings("ignore")
def test_a_bert_like_classifier_reads_pairs_of_texts(tmp_path: Path) -> None:
    theirs = encoder(tmp_path)
    recipe = Recipe(model=ModelConfig(dtype="float32", attention="sdpa"))
    reward = named_reward(str(tmp_path), None, recipe)  # type: ignore[arg-type]  # it needs no policy's tokenizer
    scores = reward(ANSWERS)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    with torch.no_grad():
        for answer, score in zip(ANSWERS[:8], scores, strict=False):
            inputs = tokenizer(answer.prompt.text, answer.response, return_tensors="pt")
            torch.testing.assert_close(theirs(**inputs).logits[0, 0], score, atol=1e-5, rtol=1e-4)
    assert scores.isfinite().all()  # also of the longest, which lost their ends
    assert scores.unique().numel() > 8
