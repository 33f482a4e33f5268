"""Offensive responses by a list of words and by a classifier, both of the user's own: what is flagged and counted."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from planted import sound, write
from running import TINY
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
)
from typer.testing import CliRunner

from data.quality.check import check_votes
from data.quality.classifier import Classifier
from data.quality.flags import WordList, flagging_of
from data.quality.survey import Tokens
from data.quality.votes import votes_of_files
from launch.cli import app
from rlhf.config import CheckConfig, ClassifierConfig, DataConfig, LimitsConfig, SourceConfig
from rlhf.errors import ArtifactError, RLHFError
from rlhf.recipe import load_recipe
from stages import gate

WORDS = "# what this group does not want to read\nzog\n\nBlue  cheese\n坏话\n:-(\n"


def word_list(folder: Path, text: str = WORDS) -> Path:
    path = folder / "words.txt"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a ZOG!", "'zog'"),
        ("zogging and wizzog", None),
        ("ｚｏｇ", "'zog'"),  # full width
        ("it is blue,\ncheese and all", "'blue cheese'"),
        ("blue and cheese", None),
        ("他说坏话了", "'坏话'"),  # no spaces between words
        ("so :-( then", "':-('"),
        ("# what", None),
        ("", None),
    ],
)
def test_words_are_found_whole(tmp_path: Path, text: str, found: str | None) -> None:
    assert WordList(word_list(tmp_path))(["sound", text]) == [None, found]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a nice day", None),
        ("what an A$$!", "'a$$'"),
        ("a$$hole, la$$ and vitamin C", None),
        ("la$$, a$$", "'a$$'"),  # the first is a part of a word
        ("in c++, not C", "'c++'"),
        ("the  Son of a\nb*tch", "'son of a b*tch'"),
        ("राम की किताब", None),  # holds the entry's first letter, and within a word all of it
        ("घर का पता", "'का'"),
        ("tiếng Việt", None),
        ("so ❤️ then", "'❤️'"),
        ("می‌خواهم", None),  # a joiner ends no word
    ],
)
def test_entries_of_more_than_letters_are_found_as_they_stand(tmp_path: Path, text: str, found: str | None) -> None:
    words = word_list(tmp_path, "a$$\nC++\nson of a  b*tch\nका\n❤️\nمی\nvie\n")
    assert WordList(words)([text]) == [found]


def flagged(votes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Chosen flagged in three votes, rejected in five, both in one more, and chosen in one that is a tie."""
    for number, sides in enumerate([["chosen"]] * 3 + [["rejected"]] * 5 + [["chosen", "rejected"], ["chosen"]]):
        votes[number] |= {side: f"Zog, {votes[number][side]}" for side in sides}
    votes[9] |= {"tie": True}
    return votes


def ask(*arguments: object) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["data", "check", *map(str, arguments), "--json"])
    if isinstance(done.exception, RLHFError):
        raise done.exception
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_sides_and_wins_are_counted(tmp_path: Path) -> None:
    path, words = write(tmp_path / "votes.jsonl", flagged(sound(100))), word_list(tmp_path)
    verdict = ask(path, "--words", words)
    counts = verdict["summary"]["offensive"]
    assert [counts[name] for name in ("chosen", "rejected", "both")] == [5, 6, 1]
    assert (counts["flagged_wins"]["wins"], counts["flagged_wins"]["votes"]) == (3, 8)
    (found,) = (finding for finding in verdict["findings"] if finding["kind"] == "offensive")
    assert (found["severity"], found["count"], verdict["verdict"]) == ("info", 10, "pass")
    assert "5 times the chosen one, 6 times the rejected one" in found["message"] and "37.5% of 8" in found["message"]
    assert found["examples"][0]["what"] == "chosen: 'zog'"
    bare = ask(path)
    assert bare["summary"]["offensive"] is None and "offensive" not in {each["kind"] for each in bare["findings"]}


def test_limits_make_it_a_warning_and_a_cleaned_file_may_leave_them_out(tmp_path: Path) -> None:
    path, words = write(tmp_path / "votes.jsonl", flagged(sound(100))), word_list(tmp_path)
    config = CheckConfig(words=words.name, offensive=LimitsConfig(warn=0.05, fail=0.2))
    votes = votes_of_files([path], SourceConfig(path="x", bad_records="drop"), DataConfig())
    verdict = check_votes(votes, config, flagging=flagging_of(config, str(tmp_path), models=True)).verdict
    assert [finding.kind for finding in verdict.of("warn")] == ["offensive"]
    ask(path, "--words", words, "--clean", tmp_path / "clean.jsonl", "--drop", "offensive")
    assert len((tmp_path / "clean.jsonl").read_text().splitlines()) == 90
    dropped = [json.loads(line) for line in (tmp_path / "clean.dropped.jsonl").read_text().splitlines()]
    assert {(each["kind"], each["why"]) for each in dropped} == {("offensive", "a response is flagged")}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of one layer that has learned to tell texts with `zog` in them, and reads 12 tokens at once."""
    path = tmp_path_factory.mktemp("classifier")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "zog", *(f"w{n}" for n in range(20))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=12, **special)
    tokenizer.save_pretrained(path)
    shape = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=12, pad_token_id=0, id2label={0: "fine", 1: "rude"}, label2id={"fine": 0, "rude": 1},
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    generator, model = random.Random(0), BertForSequenceClassification(shape)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        rows = [[2, *(generator.randrange(5, len(words)) for _ in range(9)), 3] for _ in range(32)]
        for row in rows[:16]:
            row[generator.randrange(1, 10)] = 4
        loss = model(torch.tensor(rows), labels=torch.tensor([1] * 16 + [0] * 16)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(path)
    return path


def test_a_classifier_reads_all_of_a_text(classifier: Path) -> None:
    """In pieces of its context: the word that it knows stands behind the first of them."""
    long = " ".join(f"w{n % 20}" for n in range(70))
    texts = [long, f"{long} zog", "zog", "w1 w2 w3", f"w3 zog {long}", ""]
    judge = Classifier(ClassifierConfig(path=str(classifier), labels=["rude"]), None)
    found = judge(texts)
    assert [bool(told) for told in found] == [False, True, True, False, True, False]
    assert found[1] is not None and found[1].startswith("rude (")
    assert judge(texts[::-1]) == found[::-1]  # whoever stands beside it
    fine = Classifier(ClassifierConfig(path=str(classifier), labels=["fine"]), None)(texts)
    assert [bool(told) for told in fine] == [True, True, False, True, True, True]  # some piece of each is
    both = Classifier(ClassifierConfig(path=str(classifier), labels=["rude", "fine"]), None)
    assert all(both(texts))  # their probabilities add up


@pytest.fixture(scope="module")
def last_token(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2, which judges by the last token that is no padding, and declares none; its tokenizer adds nothing."""
    path = tmp_path_factory.mktemp("last-token")
    words = ["[PAD]", "[UNK]", *(f"w{n}" for n in range(20))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(path)
    shape = GPT2Config(
        vocab_size=len(words), n_embd=16, n_layer=1, n_head=2, n_positions=32, pad_token_id=None,
        bos_token_id=None, eos_token_id=None, id2label={0: "fine", 1: "rude"}, label2id={"fine": 0, "rude": 1},
    )  # fmt: skip
    torch.manual_seed(0)
    GPT2ForSequenceClassification(shape).save_pretrained(path)
    return path


def test_a_classifier_without_padding_of_its_own_and_texts_without_tokens(last_token: Path) -> None:
    texts = ["w1 w2 w3", "", "w5", "w1 " * 100]
    judge = Classifier(ClassifierConfig(path=str(last_token), labels=["rude"], threshold=1e-6), None)
    found = judge(texts)
    assert [told is not None for told in found] == [True, False, True, True]
    assert found == [judge([text])[0] for text in texts]  # padded or not
    assert judge([""]) == [None]


def test_what_a_classifier_raises_is_one_line(last_token: Path, tmp_path: Path) -> None:
    shutil.copytree(last_token, tmp_path, dirs_exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.add_tokens(["zog"])  # the model has no embedding for it
    tokenizer.save_pretrained(tmp_path)
    judge = Classifier(ClassifierConfig(path=str(tmp_path), labels=["rude"]), None)
    with pytest.raises(ArtifactError, match=r"classifier .*: cannot read a text \(index out of range") as told:
        judge(["zog"])
    assert len(told.value.problems) == 1 and "\n" not in told.value.problems[0]


def test_scores_that_are_not_finite_flag_nothing_and_are_one_line(last_token: Path) -> None:
    judge = Classifier(ClassifierConfig(path=str(last_token), labels=["rude"]), None)
    judge.model.score.weight.data.fill_(float("nan"))
    with pytest.raises(ArtifactError, match="its scores are not finite"):
        judge(["w1 w2"])


def test_the_command_takes_both(classifier: Path, tmp_path: Path) -> None:
    votes = sound(60)
    votes[3]["chosen"] += " zog"
    votes[4]["rejected"] += " sic"
    path, words = write(tmp_path / "votes.jsonl", votes), word_list(tmp_path, "sic")
    found = ask(path, "--words", words, "--classifier", classifier, "--label", "rude")["summary"]["offensive"]
    assert (found["chosen"], found["rejected"]) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--words", "none.txt"], "words .*none.txt: cannot be read"),
        (["--words", "empty.txt"], "words .*empty.txt: holds no word; give one a line"),
        (["--classifier", "none"], "classifier .*none: no such directory"),
        (["--classifier", "."], "config.json: missing"),
        (["--classifier", "CLASSIFIER"], "has labels fine, rude; say which are of offensive texts"),
        (["--classifier", "CLASSIFIER", "--label", "bad"], "has no label bad; choose from fine, rude"),
        (["--label", "rude"], "--label=rude: is of a classifier"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    arguments: list[str], problem: str, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("# nothing\n")
    write(tmp_path / "votes.jsonl", sound(20))
    with pytest.raises(RLHFError, match=problem) as told:
        ask("votes.jsonl", *(str(classifier) if word == "CLASSIFIER" else word for word in arguments))
    assert len(told.value.problems) == 1


def test_pickled_weights_are_not_loaded(classifier: Path, tmp_path: Path) -> None:
    for file in classifier.iterdir():
        name = "pytorch_model.bin" if file.name == "model.safetensors" else file.name
        (tmp_path / name).write_bytes(file.read_bytes())
    with pytest.raises(RLHFError, match="which can run code when it is loaded"):
        Classifier(ClassifierConfig(path=str(tmp_path), labels=["rude"]), None)


def test_the_launcher_looks_for_words_and_the_stage_for_both(classifier: Path, tmp_path: Path) -> None:
    votes = sound(60)
    votes[3]["chosen"] += " zog"
    votes[4]["rejected"] += " sic"
    write(tmp_path / "votes.jsonl", votes)
    word_list(tmp_path, "sic")
    given = f"{{words: words.txt, classifier: {{path: {classifier}, labels: [rude]}}}}"
    overrides = [f"data.directory={tmp_path}", "data.comparisons=[{path: votes.jsonl}]", f"data.check={given}"]
    recipe = load_recipe(TINY, overrides)
    gate.check_files(recipe, None)
    gate.keep(recipe, tmp_path)
    before = json.loads((tmp_path / "check.json").read_text())["summary"]["offensive"]
    assert (before["chosen"], before["rejected"]) == (0, 1)
    tokens = Tokens(lambda vote: 1, 2, frozenset())
    (tmp_path / "reward").mkdir()
    gate.pass_through(recipe, tmp_path, tmp_path / "reward", {}, tokens, print)
    after = json.loads((tmp_path / "reward" / "check.json").read_text())["summary"]["offensive"]
    assert (after["chosen"], after["rejected"]) == (1, 1)
    word_list(tmp_path, "nothing of it")  # another list: checked anew
    assert gate.found(recipe, tmp_path) is None
    with pytest.raises(RLHFError, match="has no label worse"):
        gate.check_files(load_recipe(TINY, [*overrides, "data.check.classifier.labels=[worse]"]), None)
