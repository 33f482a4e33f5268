"""What runs in pods: the processes of a node, and what waits for a stage's inputs. Nodes here are processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from launch.clusters import gate
from launch.clusters.due import await_free
from launch.clusters.pod import Beside, await_name, meeting_of, serving
from launch.local import Meeting, free_port
from rlhf.errors import ConfigError, InUseError
from rlhf.store.artifact import find_artifact
from rlhf.store.unfinished import hold

TINY = Path(__file__).parent / "recipes" / "tiny.yaml"
PYTHON = [sys.executable, "-P", "-m"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with its recipe."""
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "recipe.yaml").write_text(TINY.read_text(encoding="utf-8"), encoding="utf-8")
    return directory


def node(run: Path, *options: str, command: Sequence[str], number: int | None = None) -> subprocess.Popen[str]:
    own = {**os.environ, **({} if number is None else {"JOB_COMPLETION_INDEX": str(number)})}
    given = ["launch.clusters.pod", "--run", str(run), "--stage", "sft", *options, "--", *command]
    return subprocess.Popen([*PYTHON, *given], env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outcome(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


@pytest.mark.parametrize("code", [0, 2, 75])
def test_an_exit_code_is_the_stage_s_own(run: Path, code: int) -> None:
    assert outcome(node(run, command=["sh", "-c", f"exit {code}"]))[0] == code


def test_processes_of_two_nodes_are_numbered_and_meet_at_the_first(run: Path) -> None:
    options = ("--nodes", "2", "--processes", "2", "--port", "29411")
    tell = ["sh", "-c", "echo $RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR $MASTER_PORT"]
    nodes = [node(run, *options, "--address", "localhost", command=tell, number=number) for number in (0, 1)]
    lines = [sorted(outcome(each)[1].splitlines()) for each in nodes]
    assert lines[0] == ["0 0 4 2 127.0.0.1 29411", "1 1 4 2 127.0.0.1 29411"]
    assert lines[1] == ["2 0 4 2 localhost 29411", "3 1 4 2 localhost 29411"]


@pytest.mark.services
@pytest.mark.beside
def test_two_nodes_train_together_and_once(run: Path) -> None:
    port = str(free_port())
    stage = ["-m", "stages.sft", "--recipe", str(run / "recipe.yaml"), "--run-dir", str(run)]
    options = ("--nodes", "2", "--port", port, "--address", "localhost")

    def train() -> list[tuple[int, str, str]]:
        nodes = [node(run, *options, command=[sys.executable, *stage], number=number) for number in (0, 1)]
        return [outcome(each) for each in nodes]

    first = train()
    assert [code for code, _, _ in first] == [0, 0], first
    artifact = find_artifact(run / "sft")
    assert artifact is not None
    assert artifact.manifest["processes"] == 2
    assert [(code, output) for code, output, _ in train()] == [(0, "sft: complete, nothing to do\n")] * 2


def test_a_signal_reaches_the_stage_which_has_its_time(run: Path) -> None:
    trap = f"trap 'sleep 1; echo written > {run}/checkpoint; exit 75' TERM"
    process = node(run, command=["sh", "-c", f"{trap}; echo begun; while :; do sleep 0.1; done"])
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    code, output, _ = outcome(process)
    assert (code, output) == (75, "SIGTERM: ending behind a checkpoint; once more ends at once\n")
    assert (run / "checkpoint").read_text(encoding="utf-8") == "written\n"


def test_a_node_without_a_number_is_told_in_a_line(run: Path) -> None:
    code, _, errors = outcome(node(run, "--nodes", "2", "--address", "localhost", command=["true"]))
    assert code == 2
    assert errors.startswith("error: this node's number: none of JOB_COMPLETION_INDEX")
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    "told",
    [
        {"PET_NODE_RANK": "1", "PET_MASTER_ADDR": "localhost", "MASTER_ADDR": "elsewhere.invalid"},  # Kubeflow Trainer
        {"RANK": "1", "MASTER_ADDR": "localhost", "WORLD_SIZE": "2"},  # Training Operator
    ],
)
def test_operators_tell_a_pod_its_number_and_the_first_one(
    told: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert meeting_of(2, None, 29400) == Meeting(2, 1, "localhost", 29400)


def test_a_first_node_that_never_comes_is_worth_another_try() -> None:
    with pytest.raises(OSError, match=r"nowhere.invalid: has no address after 0 s"):
        await_name("nowhere.invalid", 0.1)


def test_a_server_beside_the_processes_is_there_before_them_and_gone_after_them(run: Path) -> None:
    port = free_port()
    address = f"http://127.0.0.1:{port}/"
    server = {"command": [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"], "health": address}
    ask = f"import urllib.request; print(urllib.request.urlopen({address!r}).status)"
    process = node(run, "--beside", json.dumps(server), command=[sys.executable, "-c", ask])
    code, output, _ = outcome(process)
    assert (code, output.splitlines()[-1]) == (0, "200")
    again = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=False)
    assert "refused" in again.stderr


def test_a_stage_waits_until_an_earlier_try_has_left_its_directory(run: Path) -> None:
    with hold(run / "sft"):
        process = node(run, command=["sh", "-c", "echo begun"])
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2.0)
        with pytest.raises(InUseError, match="in use by another rlhf process, for 0.1 s"):
            await_free(run / "sft", 0.1)
    assert outcome(process)[:2] == (0, "begun\n")


def test_a_server_without_a_path_is_there_once_it_takes_connections() -> None:
    port = free_port()
    serve = f"import socket, time; time.sleep(1); s = socket.create_server(('127.0.0.1', {port})); time.sleep(60)"
    with serving([Beside([sys.executable, "-c", serve], {}, f"tcp://127.0.0.1:{port}")], 60.0):
        socket.create_connection(("127.0.0.1", port), 1.0).close()


def test_a_server_that_ends_is_told_in_a_line(run: Path) -> None:
    server = {"command": ["sh", "-c", "exit 3"], "health": "http://127.0.0.1:1/health"}
    code, _, errors = outcome(node(run, "--beside", json.dumps(server), command=["true"]))
    assert (code, errors) == (1, "error: http://127.0.0.1:1/health: its server has ended with exit code 3\n")


def test_a_stage_whose_server_has_died_is_worth_another_try(run: Path) -> None:
    """The stage itself says 2: that its server does not answer."""
    server = {"command": ["sh", "-c", "exit 9"]}
    code, _, errors = outcome(node(run, "--beside", json.dumps(server), command=["sh", "-c", "sleep 1; exit 2"]))
    assert (code, errors) == (1, "error: sft: a server beside it has ended with exit code 9\n")


def test_the_recipe_that_was_submitted_is_brought_into_the_run(run: Path, tmp_path: Path) -> None:
    submitted = tmp_path / "submitted.yaml"
    submitted.write_text(TINY.read_text(encoding="utf-8") + "# as submitted\n", encoding="utf-8")
    assert outcome(node(run, "--recipe", str(submitted), command=["true"]))[0] == 0
    assert (run / "recipe.yaml").read_text(encoding="utf-8").endswith("# as submitted\n")


def test_a_recipe_of_another_run_is_refused_in_a_line(run: Path, tmp_path: Path) -> None:
    submitted = tmp_path / "submitted.yaml"
    submitted.write_text("name: another\n", encoding="utf-8")
    code, _, errors = outcome(node(run, "--recipe", str(submitted), command=["true"]))
    assert code == 2
    assert "holds the run of recipe tiny, not another" in errors
    assert len(errors.splitlines()) == 1


def waits(run: Path, stage: str, *options: str, **environment: str) -> tuple[int, str, str]:
    given = ["launch.clusters.gate", "--run", str(run), "--wait", "0", *options, stage]
    own = {**os.environ, **environment}
    found = subprocess.run([*PYTHON, *given], env=own, capture_output=True, text=True, check=False)
    return found.returncode, found.stdout, found.stderr


def test_a_gate_whose_inputs_do_not_come_says_which(run: Path) -> None:
    code, output, errors = waits(run, "ppo")
    assert (code, output) == (2, "ppo: waits for sft and reward\n")
    assert errors == f"error: ppo: needs sft and reward, not complete in {run}; run that first\n"


def test_a_gate_opens_for_a_stage_without_inputs(run: Path) -> None:
    assert waits(run, "sft")[0] == 0


class Server(HTTPServer):
    """Answers as an API server would, over TLS, and remembers what it was asked."""

    answer = 200
    asked: tuple[str, str, dict[str, str], Any] | None = None


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_PATCH(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked = (self.command, self.path, dict(self.headers), content)
        self.send_response(self.server.answer)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def account(tmp_path: Path) -> Path:
    """What Kubernetes mounts into a pod: a token, and the certificate of the server, which is its own authority."""
    (tmp_path / "token").write_text("a-token\n", encoding="utf-8")
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(tmp_path / "key.pem")]
    made += ["-out", str(tmp_path / "ca.crt"), "-days", "2", "-subj", "/CN=127.0.0.1"]
    subprocess.run([*made, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    return tmp_path


@pytest.fixture
def server(account: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as found:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(account / "ca.crt", account / "key.pem")
        found.socket = context.wrap_socket(found.socket, server_side=True)
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(found.server_port))
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield found
        found.shutdown()
        thread.join()


PATH = "/apis/jobset.x-k8s.io/v1alpha2/namespaces/default/jobsets/rlhf-demo-ppo"


def test_a_workload_is_handed_to_its_queue(server: Server, account: Path) -> None:
    change = {"metadata": {"labels": {"kueue.x-k8s.io/queue-name": "research"}}}
    gate.patch(PATH, change, account)
    assert server.asked is not None
    method, path, headers, content = server.asked
    assert (method, path, content) == ("PATCH", PATH, change)
    assert headers["Authorization"] == "Bearer a-token"
    assert headers["Content-Type"] == "application/merge-patch+json"


def test_without_the_right_to_patch_the_role_is_named(server: Server, account: Path) -> None:
    server.answer = 403
    with pytest.raises(ConfigError, match="the service account may not patch it; give it the Role"):
        gate.patch(PATH, {}, account)


def test_a_server_that_fails_is_worth_another_try(server: Server, account: Path) -> None:
    server.answer = 500
    with pytest.raises(OSError, match="500"):
        gate.patch(PATH, {}, account)


def test_a_server_of_another_authority_is_not_believed(server: Server, account: Path) -> None:
    other = account / "other"
    other.mkdir()
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(other / "key.pem")]
    made += ["-out", str(other / "ca.crt"), "-days", "2", "-subj", "/CN=127.0.0.1"]
    subprocess.run(made, check=True, capture_output=True)
    (other / "token").write_text("a-token", encoding="utf-8")
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        gate.patch(PATH, {}, other)
    assert server.asked is None


def test_outside_a_pod_there_is_nothing_to_patch(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no service account's token"):
        gate.patch(PATH, {}, tmp_path)
