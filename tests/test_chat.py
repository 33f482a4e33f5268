"""`rlhf chat` on a real run: as a program uses it, and as somebody at a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from running import ROOT, rlhf

from rlhf.config import ModelConfig
from rlhf.errors import ArtifactError, ConfigError, DataError
from rlhf.tokenization import load_tokenization
from rlhf.types import Message
from stages.chat import Chat, scoring_of
from stages.conversation import Conversation
from stages.dialogue import PlainDisplay
from stages.rewards import load_reward
from stages.speakers import Answer, Settings, Speaker
from stages.targets import find_target

PROMPT = "what color is the sky ?"


@pytest.fixture
def folder(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder whose runs/ has the tiny run, with a best policy."""
    shutil.copytree(tiny_run, tmp_path / "runs" / "tiny")
    shutil.copytree(tiny_run / "sft" / "model", tmp_path / "runs" / "tiny" / "ppo" / "best", dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "stage", "label", "model"),
    [
        ("tiny", None, "tiny/ppo", "runs/tiny/ppo/model"),
        ("runs/tiny", None, "runs/tiny/ppo", "runs/tiny/ppo/model"),
        ("tiny", "sft", "tiny/sft", "runs/tiny/sft/model"),
        ("tiny/sft", None, "tiny/sft", "runs/tiny/sft/model"),
        ("tiny:best", None, "tiny/ppo:best", "runs/tiny/ppo/best"),
        ("tiny/ppo:best", None, "tiny/ppo:best", "runs/tiny/ppo/best"),
        ("tiny/ppo/best", None, "tiny/ppo/best", "runs/tiny/ppo/best"),
        ("runs/tiny/sft/model", None, "runs/tiny/sft/model", "runs/tiny/sft/model"),
    ],
)
def test_names_of_a_run(folder: Path, name: str, stage: str | None, label: str, model: str) -> None:
    found = find_target(name, stage)
    assert (found.label, found.model) == (label, model)
    assert found.run is not None and found.run.resolve() == (folder / "runs" / "tiny").resolve()
    assert found.reward is not None and found.recipe.ppo.generation.max_new_tokens == 16


def test_a_run_without_ppo_answers_with_its_sft_model(folder: Path) -> None:
    shutil.rmtree("runs/tiny/ppo")
    assert find_target("tiny").label == "tiny/sft"
    with pytest.raises(ArtifactError, match="no complete policy of stage ppo .complete: sft"):
        find_target("tiny", "ppo")


def test_models_of_no_run(folder: Path) -> None:
    shutil.copytree("runs/tiny/sft/model", "own")
    own, hub = find_target("./own"), find_target("org/name@0123")
    assert (own.model, own.run, own.reward, own.recipe.name) == ("own", None, None, "run")
    assert (hub.model, hub.recipe.model.revision) == ("org/name", "0123")


@pytest.mark.parametrize(
    ("name", "stage", "problem"),
    [
        ("tinny", None, r"tinny: no run, stage or model; .*runs/ has: tiny"),
        ("tiny/reward", None, "reward makes no policy; choose its run's ppo or sft"),
        ("runs/tiny/sft:best", None, "runs/tiny/sft/best: not there; .*ppo.evaluate_every"),
        ("tiny/sft", "ppo", "is no run, so it has no --stage ppo"),
        ("org/name:best", None, "has no best"),
    ],
)
def test_names_of_nothing(folder: Path, name: str, stage: str | None, problem: str) -> None:
    with pytest.raises(ArtifactError, match=problem):
        find_target(name, stage)


def test_a_recipe_of_another_version_is_said(folder: Path) -> None:
    path = folder / "runs" / "tiny" / "sft" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["recipe"]["sft"]["unheard_of"] = 1
    path.write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="its recipe is of another version .sft.unheard_of"):
        find_target("tiny/sft")


def test_a_manifest_runs_no_code_and_sends_nothing(folder: Path) -> None:
    """Of a directory that came from elsewhere, unless the flags say so."""
    for stage in ("ppo", "reward"):
        path = folder / "runs" / "tiny" / stage / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["recipe"]["model"]["trust_remote_code"] = True
        manifest["recipe"]["data"]["directory"] = str(folder)
        manifest["use"] = "theirs.py:score" if stage == "reward" else None
        path.write_text(json.dumps(manifest))
    (folder / "theirs.py").write_text("raise RuntimeError('their code runs')\n")
    for name in ("tiny", "tiny:best", "runs/tiny/ppo/model"):
        assert not find_target(name).recipe.model.trust_remote_code
        assert find_target(name, trust_remote_code=True).recipe.model.trust_remote_code
    said: list[str] = []
    assert scoring_of([find_target("tiny")], False, said.append) is None
    assert said == ["no scores: the reward of tiny/ppo is the function theirs.py:score; --reward asks it"]
    asked = scoring_of([find_target("tiny")], True, said.append)
    assert asked is not None
    with pytest.raises(ConfigError, match="theirs.py:score: cannot be imported .RuntimeError: their code runs"):
        load_reward(asked.artifact, load_tokenization(folder / "runs/tiny/sft/model", ModelConfig()), asked.recipe)


def test_a_full_context_drops_the_oldest_turns(tiny_run: Path) -> None:
    tokenization = load_tokenization(tiny_run / "sft" / "model", ModelConfig())
    talk = Conversation(tokenization, window=60, system="be kind")
    talk.answer("one", "first answer")
    talk.answer("two", "second answer")
    everything = talk.ask("three", 4)
    assert len(everything.prompt.content) == 6 and not talk.dropped
    assert len(everything.tokens) + everything.room <= 60
    room = 60 - len(everything.tokens) + 1  # one more than is left
    less = talk.ask("three", room)
    assert talk.dropped == 2 and less.room == room
    assert [turn.role for turn in less.prompt.content] == ["system", "user", "assistant", "user"]  # type: ignore[union-attr]
    assert talk.turns == [Message("user", "two"), Message("assistant", "second answer")]
    alone = talk.ask("three", 1000)
    assert talk.turns == [] and alone.room == 60 - len(alone.tokens)
    talk.answer("three", "third answer")
    with pytest.raises(DataError, match="the model's context is 60; shorten it"):
        talk.ask("a " * 60, 4)
    assert len(talk.turns) == 2  # of a text that does not fit, nothing happens


def chatted(*options: str, folder: Path, text: str = "") -> list[dict[str, Any]]:
    """What `rlhf chat tiny --against tiny/sft --json` says, its standard input being some text."""
    command = [sys.executable, "-P", "-m", "launch.cli", "chat", "tiny", "--against", "tiny/sft", "--json", *options]
    done = subprocess.run(command, cwd=folder, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_against_with_scores_and_without_a_terminal(tiny_run: Path) -> None:
    first, second = chatted("--conversation", folder=tiny_run.parents[1], text=f"{PROMPT}\n\nwhere is it ?\n")
    assert (first["prompt"], second["prompt"]) == (PROMPT, "where is it ?")
    assert [answer["model"] for answer in first["answers"]] == ["tiny/ppo", "tiny/sft"]
    for answer in (*first["answers"], *second["answers"]):
        assert answer["response"] and 0 < answer["tokens"] <= 16
        assert isinstance(answer["score"], float) and isinstance(answer["kl"], float) and answer["kl"] != 0


@pytest.mark.services
@pytest.mark.beside
def test_the_same_seed_gives_the_same_answers(tiny_run: Path) -> None:
    folder = tiny_run.parents[1]
    (whole,) = chatted("--seed", "3", "--prompt", PROMPT, folder=folder)
    options = ("--seed", "3", "--no-scores", "--max-new-tokens", "5")
    short, other = chatted(*options, "--prompt", PROMPT, "--prompt", PROMPT, folder=folder)
    for cut, long in zip(short["answers"], whole["answers"], strict=True):
        assert cut["score"] is None and cut["tokens"] <= 5
        assert long["response"].startswith(cut["response"])
    assert other["answers"] != short["answers"]  # each prompt has its own draws


class Impatient(PlainDisplay):
    """Presses Ctrl-C at the third token of an answer."""

    def __init__(self) -> None:
        self.tokens = 0
        self.notes: list[Answer] = []

    def written(self, speaker: int, text: str) -> None:
        self.tokens += 1
        if self.tokens == 3:
            raise KeyboardInterrupt

    def noted(self, speaker: int, answer: Answer) -> None:
        self.notes.append(answer)


@pytest.mark.filterwarnings("ignore")  # models are loaded here: what their libraries warn of is not ours
def test_a_stopped_answer_is_forgotten_and_a_reset_repeats(folder: Path) -> None:
    targets = [find_target("tiny")]
    display = Impatient()
    chat = Chat([Speaker(targets[0], None)], Settings(0, 1.0, 16), display, scoring_of(targets, False, print))
    with pytest.raises(KeyboardInterrupt):
        chat.turn(PROMPT)
    assert chat.speakers[0].conversation.turns == [] and chat.step == 0
    chat.turn(PROMPT)
    chat.turn(PROMPT)  # a turn of the same conversation, and other draws
    assert len(chat.speakers[0].conversation.turns) == 4
    assert chat.command("/reset")
    chat.turn(PROMPT)
    first, second, again = display.notes
    assert first.completion == again.completion != second.completion
    assert first.score == again.score is not None
    rescored = load_reward(targets[0].reward, chat.speakers[0].tokenization, chat.scoring.recipe)([first.completion])  # type: ignore[arg-type, union-attr]
    assert first.score == pytest.approx(float(rescored[0]))
    assert not chat.command("/quit")


def test_who_is_no_run_is_said(tmp_path: Path) -> None:
    done = rlhf("chat", "nobody", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: nobody: no run, stage or model")


class Terminal:
    """A command at a pseudo-terminal."""

    def __init__(self, *arguments: str, folder: Path) -> None:
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.environ.update(PYTHONPATH=str(ROOT), TERM="xterm-256color", COLUMNS="100", LINES="40")
            os.execv(sys.executable, [sys.executable, "-P", "-m", "launch.cli", *arguments])
        self.seen = ""

    def until(self, pattern: str, seconds: float = 60) -> str:
        """What is written up to a pattern, from where the last one ended, without the terminal's own codes."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen, re.S)):
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.seen!r}"
            if select.select([self.descriptor], [], [], 0.2)[0]:
                try:
                    data = os.read(self.descriptor, 65536).decode("utf-8", "replace")
                except OSError:  # the other side has gone
                    data = ""
                self.seen += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", data)
        before, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return before

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def rest(self) -> None:
        """Wait until the conversation waits for us: for a second it has used no processor."""
        process, before = psutil.Process(self.pid), -1.0
        while (used := sum(process.cpu_times()[:2])) != before:
            before = used
            time.sleep(1.0)

    def end(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.mark.services
@pytest.mark.beside
def test_somebody_at_a_terminal(tiny_run: Path) -> None:
    terminal = Terminal("chat", "tiny", "--against", "tiny/sft", folder=tiny_run.parents[1])
    terminal.until("/help says.*you> ")
    terminal.type(f"{PROMPT}\n")
    first = terminal.until(r"score -?\d+\.\d\d, \d+ tokens.*score.*you> ")
    assert re.search(r"tiny/ppo +tiny/sft", first)  # two columns
    terminal.type("and the grass ?\n")
    terminal.until("score.*score.*you> ")
    terminal.type("/temperature 0\n")
    assert "temperature 0" in terminal.until("you> ")
    terminal.type("/seed x\n")
    assert "no such command, or a value that it does not take" in terminal.until("you> ")
    terminal.type("/reset\n")
    assert "begins anew" in terminal.until("you> ")
    terminal.type("the ? " * 60 + "\n")
    assert "error: the text has" in terminal.until("you> ")
    terminal.type("\x04")
    assert terminal.end() == 0


@pytest.mark.services
@pytest.mark.beside
def test_ctrl_c_stops_an_answer_and_then_the_conversation(tiny_run: Path) -> None:
    terminal = Terminal("chat", "tiny", "--no-scores", folder=tiny_run.parents[1])
    terminal.until("you> ")
    terminal.type(f"{PROMPT}\n")
    terminal.until("tokens.*you> ")
    terminal.rest()  # Python reads on where the signal comes between the prompt and the reading of an answer to it
    terminal.type("\x03")
    terminal.until("\n")
    assert terminal.end() == 0
