"""`rlhf doctor`: what is meant, what is refused, what is found on this machine, and no secret told."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from answering import answering
from running import TINY, rlhf
from wandb_server import WandbServer

from launch.checking import services
from launch.checking.finding import Finding
from launch.checking.recipe import problems, tokenizer
from launch.cli import main
from launch.commands.doctor import run_of
from launch.local import free_port
from rlhf.errors import ConfigError
from rlhf.recipe import load_recipe
from rlhf.tokenization import train_tokenization

SECRET = "s3cret-key-of-somebody"
PERSONAL = "eyJ0.s3cret.token"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a run called demo, as the shipped recipe is, one called mine, and a recipe."""
    monkeypatch.chdir(tmp_path)
    for name in ("demo", "mine"):
        (tmp_path / "runs" / name / "sft").mkdir(parents=True)
    (tmp_path / "my.yaml").write_text("name: my\n")
    return tmp_path


@pytest.mark.parametrize(
    ("subject", "run"),
    [
        ("mine", "runs/mine"),
        ("runs/mine", "runs/mine"),
        ("runs/mine/sft", "runs/mine/sft"),
        ("demo", "runs/demo"),
        ("my.yaml", None),
        ("stories", None),
        (None, None),
    ],
)
def test_a_run_or_a_recipe_is_known_by_what_there_is(folder: Path, subject: str | None, run: str | None) -> None:
    assert run_of(subject, ahead=False, stage=None) == (Path(run) if run else None)


def test_a_name_that_is_both_is_the_run_and_how_to_ask_for_the_other_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_of("demo", ahead=False, stage=None) == Path("runs/demo")
    assert "to check before a run: rlhf doctor demo --before" in capsys.readouterr().err
    assert run_of("demo", ahead=True, stage=None) is None


def test_what_is_neither_is_refused_with_what_there_could_be(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing: no run .* and no recipe .*demo"):
        run_of("nothing", ahead=False, stage=None)


def lines_of(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What the command line is refused with."""
    monkeypatch.setattr(sys, "argv", ["rlhf", "doctor", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["absent.yaml"], "absent.yaml: no run"),
        (["absent", "--before"], "absent: cannot be read"),
        (["my.yaml", "ppo.stepz=1"], "ppo.stepz=1 is not a known key"),
        (["runs/mine", "--nodes", "2"], "runs/mine: a directory"),
        (["my.yaml", "--stage", "ppo"], "--stage ppo: my.yaml is a recipe"),
        (["--stage", "ppo"], "--stage ppo: give the run"),
        (["my.yaml", "--nodes", "2"], "--nodes 2: where do they meet?"),
        (["my.yaml", "--nodes", "0"], "--nodes 0: a run has at least one"),
        (["my.yaml", "--nodes", "1000000"], "--nodes 1000000: at most 100000 meet"),
        (["my.yaml", "--nodes", "9" * 5000], "9: at most 100000 meet"),
        (["my.yaml", "--nodes", "node-1,a b"], "--nodes node-1,a b: a b is no host; write host or host:port"),
        (["my.yaml", "--nodes", "node-1,"], "--nodes node-1,: nothing is no host"),
        (["my.yaml", "--nodes", "node-1,node-1"], "node-1 is there twice"),
        (["my.yaml", "--nodes", "node-1,localhost"], "localhost is another machine on each host"),
        (["my.yaml", "--hosts", "absent"], "--hosts=absent: cannot be read"),
        (["my.yaml", "--nodes", "a,b", "--hosts", "absent"], "--nodes a,b: absent names hosts, too"),
        (["my.yaml", "--nodes", "a,b", "--rendezvous", "a:1"], "--rendezvous a:1: hosts that ssh reaches meet at"),
        (["my.yaml", "--nodes", "a,b", "--site", "absent"], "site absent: cannot be read"),
        (["my.yaml", "--site", "absent"], "--site absent: is for hosts that ssh reaches; name them"),
        (["my.yaml", "--node-rank", "1"], "--node-rank 1: is for several nodes"),
        (["my.yaml", "--rendezvous", "node-1:29400"], "--rendezvous node-1:29400: is for several nodes"),
        (["my.yaml", "--nodes", "2", "--rendezvous", "node-1"], "--rendezvous node-1: is no address"),
        (["my.yaml", "--nodes", "2", "--rendezvous", "a:1", "--node-rank", "2"], "the last is 1"),
        (
            ["my.yaml", "--nodes", "2", "--rendezvous", "no.such.host.invalid:1", "--wait-seconds", "1"],
            "--rendezvous no.such.host.invalid:1: no such host",
        ),
    ],
)
def test_a_wrong_command_is_a_line(
    folder: Path,
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (line,) = lines_of(arguments, monkeypatch, capsys)
    assert line.startswith("error: ") and said in line
    assert sorted(path.name for path in folder.iterdir()) == ["my.yaml", "runs"]


def test_this_machine_is_fit_for_the_tiny_recipe(tmp_path: Path) -> None:
    done = rlhf("doctor", str(TINY), "--json", "--processes", "2", folder=tmp_path)
    told = json.loads(done.stdout)
    amiss = [each for each in told["findings"] if each["level"] != "ok" and each["check"] != "memory"]
    assert done.returncode == 0 and amiss == [] and told["level"] in ("ok", "warning"), told["findings"]
    assert [len(told["collectives"]["pairs"]), told["collectives"]["backend"]] == [1, "gloo"]
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_with_a_recipe_is_told_in_lines_and_by_the_exit_code(tmp_path: Path) -> None:
    wrong = ["sft.use=absent", "data.prompts=[{path: absent.jsonl}]", "ppo={prompts_per_step: 2, minibatches: 1}"]
    done = rlhf("doctor", str(TINY), *wrong, "--processes", "4", folder=tmp_path)
    lines = [line for line in done.stdout.splitlines() if line.startswith("failure")]
    assert done.returncode == 1 and done.stderr == "" and lines, done.stdout
    assert all(line.split()[1] in ("recipe", "disk", "tokenizer") for line in lines), lines
    told = " ".join(lines)
    assert "sft.use=absent" in told and "absent.jsonl" in told and "ppo.prompts_per_step=2 leaves" in told


def test_more_processes_than_gpus_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    done = rlhf("doctor", "--processes", "2", folder=tmp_path)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("failure")]
    assert done.returncode == 1 and "2 processes for 1 GPU; use --processes 1" in line


def test_the_other_node_does_not_come(tmp_path: Path) -> None:
    where = f"127.0.0.1:{free_port()}"
    done = rlhf("doctor", "--nodes", "2", "--rendezvous", where, "--wait-seconds", "1", folder=tmp_path)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("failure")]
    assert done.returncode == 1 and "missing: node rank 1; start the same command there" in line


def test_processes_of_the_recipe_and_of_the_nodes() -> None:
    recipe = load_recipe(TINY, ["ppo.parallelism={processes: 2}"])
    assert problems(recipe, 4, False, print) == ["ppo: parallelism.processes=2 where 4 processes would run; use auto"]


@pytest.mark.parametrize(("context", "level"), [(256, "ok"), (16, "failure")])
def test_a_tokenizer_is_tried_on_prompts(context: int, level: str, tmp_path: Path) -> None:
    made = tmp_path / "model"
    train_tokenization(["Say it in a word.", "No."], 300, context).save(made)
    (made / "config.json").write_text(json.dumps({"max_position_embeddings": context}))
    found = tokenizer(load_recipe(TINY, [f"sft.use={made}"]))
    said = "chat template" if level == "ok" else f"the model's context is {context}"
    assert found.level == level and said in found.what, found


@contextmanager
def server(status: int) -> Iterator[str]:
    """Answers /health, and everything else with a status."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(200 if self.path == "/health" else status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        do_GET = do_POST = _answer  # noqa: N815

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with answering(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as made:
        yield f"http://127.0.0.1:{made.server_port}"


def without_secret(found: Finding) -> Finding:
    assert SECRET not in found.line and PERSONAL not in found.line
    return found


def test_wandb_knows_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    made = WandbServer()
    try:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        (found,) = services.look(load_recipe(TINY, ["tracking.wandb.mode=online"]))
    finally:
        made.close()
    assert found.level == "ok" and found.what.endswith("knows the key")


@pytest.mark.parametrize("status", [200, 401])
def test_wandb_does_not_know_the_key(status: int) -> None:
    with server(status) as address:
        assert without_secret(services.wandb(address, SECRET)).level == "failure"
        assert "WANDB_API_KEY is not set" in services.wandb(address, None).what


def test_trackers_that_are_away_only_warn() -> None:
    address = f"http://somebody:{SECRET}@127.0.0.1:{free_port()}"
    for found in (services.wandb(address, SECRET), services.label_studio(address, SECRET)):
        assert without_secret(found).level == "warning" and "cannot be reached" in found.what


@pytest.mark.parametrize("key", [SECRET, PERSONAL])
@pytest.mark.parametrize(("status", "level"), [(200, "ok"), (401, "failure")])
def test_label_studio_and_keys_of_both_kinds(key: str, status: int, level: str) -> None:
    with server(status) as address:
        assert without_secret(services.label_studio(address, key)).level == level


@pytest.mark.parametrize("key", [SECRET, PERSONAL])
def test_label_studio_on_this_machine_is_asked_without_the_proxy(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with server(200) as address:
        assert services.label_studio(address, key).level == "ok"


def test_label_studio_is_asked_where_the_environment_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert services.look(None) == [Finding("services", "ok", "no server is named")]
    with server(200) as address:
        monkeypatch.setenv(services.LABEL_STUDIO, address)
        (found,) = services.look(None)
    assert found.level == "warning" and "LABEL_STUDIO_API_KEY is not set" in found.what


def test_servers_of_the_recipe_are_looked_for() -> None:
    with server(404) as address:
        here = f"reward.use={address}/score"
        (found,) = services.others(load_recipe(TINY, [here]))
        away = "ppo.generation={engine: vllm, weights: server, server: {addresses: ['http://127.0.0.1:9']}}"
        levels = [each.level for each in services.others(load_recipe(TINY, [here, away]))]
    assert found.level == "ok" and levels == ["warning", "ok"]
