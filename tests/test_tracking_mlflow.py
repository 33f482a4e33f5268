"""MLflow for real: a directory, and a server of its own that is killed in the middle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from running import ROOT, TINY, rlhf
from tracked import MANIFEST, cut_back, log_steps, open_at

pytest.importorskip("mlflow")
SERVER_PACKAGE = "mlflow==3.17.2"  # the client's version; it wants an older pandas than ours, so it gets its own place


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes a client of a URI."""
    for name, value in (("MLFLOW_ALLOW_FILE_STORE", "true"), ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")):
        monkeypatch.setenv(name, value)
    from mlflow import MlflowClient

    return MlflowClient


def only_run(client: Any) -> Any:
    experiment = client.get_experiment_by_name("rlhf")
    (run,) = client.search_runs([experiment.experiment_id])
    return run


def steps(client: Any, run: Any, key: str) -> list[int]:
    return sorted(metric.step for metric in client.get_metric_history(run.info.run_id, key))


def assert_whole(client: Any, stage: Path) -> None:
    """All steps once, parameters, samples, tags, the end."""
    run = only_run(client)
    assert steps(client, run, "objective/kl") == [1, 2, 3, 4, 5, 6]
    assert steps(client, run, "eval/scores") == [2, 4, 6]
    history = client.get_metric_history(run.info.run_id, "objective/kl")
    written = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in written if line["step"] == 1)
    assert {(m.step, m.value) for m in history} == {(step, step / 4) for step in range(1, 7)}
    assert next(m.timestamp for m in history if m.step == 1) == round(first["time"] * 1000)
    assert run.info.run_name == "tiny-ppo" and run.info.status == "FINISHED"
    assert run.data.params["ppo.kl.coef"] == "0.05" and run.data.params["data.comparisons.0.path"] == "toy"
    assert run.data.tags["rlhf.fingerprint"] == MANIFEST["fingerprint"]
    assert run.data.tags["rlhf.input.sft"] == MANIFEST["inputs"]["sft"]
    assert run.data.tags["rlhf.id"] == (stage / "mlflow" / "id").read_text()
    assert run.data.metrics["result/kl"] == 1.5 and "result/judge" not in run.data.metrics
    samples = [file.path for file in client.list_artifacts(run.info.run_id, "samples")]
    assert samples == [f"samples/held-out-{step:06d}.json" for step in (2, 4, 6)]


def test_a_directory_holds_a_stage_that_went_on_once(client: Any, tmp_path: Path) -> None:
    stage, said = tmp_path / "ppo", list[str]()
    store = [f"tracking.mlflow={{uri: {tmp_path / 'store'}}}"]
    tracker = open_at(stage, store, said=said)
    log_steps(tracker, 1, 5)
    tracker.close()
    cut_back(stage, 3)
    tracker = open_at(stage, store, resumed=True, said=said)
    log_steps(tracker, 4, 6)
    tracker.result(MANIFEST)
    tracker.close()
    assert said == []
    assert_whole(client((tmp_path / "store").as_uri()), stage)


def server_python() -> Path:
    """The interpreter of an environment with MLflow's server, made once."""
    cache = Path(os.environ.get("RLHF_TEST_CACHE", ROOT / ".pytest_cache")) / SERVER_PACKAGE
    python = cache / "bin" / "python"
    if not (cache / "ready").is_file():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(cache)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", SERVER_PACKAGE], check=True)
        (cache / "ready").touch()
    return python


@contextmanager
def server(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """MLflow's own server with a database and a store of files, up; killed at the end."""
    import requests

    command = [str(server_python()), "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with (folder / "server.log").open("a") as log:
        process = subprocess.Popen(
            [*command, "--workers", "1"], env=environment, stdout=log, stderr=log, start_new_session=True
        )
    deadline = time.monotonic() + 180
    while True:
        assert process.poll() is None and time.monotonic() < deadline, (folder / "server.log").read_text()
        try:
            if requests.get(f"http://127.0.0.1:{port}/health", timeout=5).ok:
                break
        except requests.RequestException:
            time.sleep(0.2)
    try:
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, 9)
    process.wait()


def until(condition: Any) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


@pytest.mark.soak
@pytest.mark.services
def test_a_server_killed_in_the_middle_gets_the_rest_once(client: Any, tmp_path: Path) -> None:
    from launch.local import free_port

    port, stage, said = free_port(), tmp_path / "ppo", list[str]()
    address = f"http://127.0.0.1:{port}"
    on = f"tracking.mlflow={{uri: '{address}'}}"
    (tmp_path / "recipe.yaml").write_text(TINY.read_text())
    with server(tmp_path, port) as process:
        tracker = open_at(stage, [on, "tracking.close_seconds=3"], said=said)
        log_steps(tracker, 1, 3)
        up = client(address)
        until(lambda: up.get_experiment_by_name("rlhf") and steps(up, only_run(up), "objective/kl") == [1, 2, 3])
        kill(process)
        log_steps(tracker, 4, 6)
        time.sleep(3)
        started = time.monotonic()
        tracker.close()
        assert time.monotonic() - started < 10
    (line,) = said
    assert line.startswith("tracking.mlflow: not everything was sent (") and "connection refused" in line
    away = rlhf("sync", str(stage), on, "--seconds", "5", folder=tmp_path)
    assert away.returncode == 2 and "connection refused" in away.stderr
    assert "Traceback" not in away.stderr and len(away.stderr.splitlines()) == 1

    (stage / "manifest.json").write_text(json.dumps({"format": 1, "environment": {}, **MANIFEST}))
    with server(tmp_path, port):
        for expected in ("sent", "has everything"):
            done = rlhf("sync", str(stage), on, folder=tmp_path)
            assert done.returncode == 0 and f"ppo: mlflow: {expected}" in done.stdout, done.stderr
        back = client(address)
        assert_whole(back, stage)
        (stage / "mlflow" / "sent").unlink()  # as if nobody had noted it
        assert rlhf("sync", str(stage), on, folder=tmp_path).returncode == 0
        assert_whole(back, stage)
        cut_back(stage, 4)  # and it goes on from there, making steps once more
        tracker = open_at(stage, [on], resumed=True, said=said)
        log_steps(tracker, 5, 6)
        tracker.result(MANIFEST)
        tracker.close()
        assert len(said) == 1
        assert Counter(steps(back, only_run(back), "objective/kl")) == Counter(range(1, 7))
