"""`rlhf generation serve`, what guards a server, and the settings that lead to one."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from launch.cli import app
from launch.commands import generation
from rlhf.config import GenerationConfig, Recipe
from rlhf.errors import ArtifactError, ConfigError
from rlhf.generation.inside_vllm.rlhf_weights import Guard
from rlhf.models import save_model
from rlhf.references import is_local
from stages.lineage import STAGES
from tests.test_models import tiny_policy, tiny_tokenization


def test_serve_wants_a_token_before_it_opens_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RLHF_GENERATION_TOKEN", raising=False)
    for option in ("--host=0.0.0.0", "--uds=/tmp/s", "--config", "--worker-extension-cls", "--api-key"):
        with pytest.raises(ConfigError, match=f"-- {option.partition('=')[0]}: is set by rlhf generation serve"):
            app(["generation", "serve", "demo", "--", option], standalone_mode=False)
    for option in ("--data-parallel-size=2", "-dp", "--data_parallel_size", "--data-parallel-rank"):
        with pytest.raises(ConfigError, match="one command is one engine"):
            app(["generation", "serve", "demo", "--", option], standalone_mode=False)
    with pytest.raises(ConfigError, match="--worker-extension-cls: is set by rlhf"):
        app(["generation", "serve", "demo", "--", "--worker_extension_cls"], standalone_mode=False)
    for host in ("0.0.0.0", "::", "10.1.2.3", "node-7"):
        with pytest.raises(ConfigError, match="set RLHF_GENERATION_TOKEN"):
            app(["generation", "serve", "demo", "--host", host], standalone_mode=False)
    assert all(map(is_local, ("127.0.0.1", "::1", "localhost", "127.8.9.1")))


def test_serve_wants_an_interpreter_that_has_vllm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(generation.PYTHON, raising=False)
    (tmp_path / "vllm").mkdir()  # no package, though a folder of that name
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="vLLM is not installed here"):
        app(["generation", "serve", "demo"], standalone_mode=False)
    monkeypatch.setenv(generation.PYTHON, "/not/there")
    with pytest.raises(ConfigError, match=f"{generation.PYTHON}=/not/there: no interpreter there"):
        app(["generation", "serve", "demo"], standalone_mode=False)
    with pytest.raises(ConfigError, match="--python=.*: vLLM is not installed there"):
        app(["generation", "serve", "demo", "--python", sys.executable], standalone_mode=False)


def test_serve_names_a_model_and_hands_options_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generation, "find_python", lambda named: "/vllm/bin/python")
    save_model(tiny_policy(), tiny_tokenization(), tmp_path / "model")
    capsys.readouterr()
    app(
        ["generation", "serve", str(tmp_path / "model"), "--port", "9", "--dry-run", "--", "--enforce-eager"],
        standalone_mode=False,
    )
    said = capsys.readouterr().out.split()
    assert said[:6] == ["/vllm/bin/python", "-m", generation.SERVER, "--dtype", "float32", "--enforce-eager"]
    assert said[6:8] == ["--model", str(tmp_path / "model")] and said[said.index("--port") + 1] == "9"
    assert "processed_logprobs" in said and "--trust-remote-code" not in said
    with pytest.raises(ArtifactError, match="no run, stage or model"):
        app(["generation", "serve", "nothing", "--dry-run"], standalone_mode=False)
    assert generation.environment()["PYTHONPATH"] == str(generation.INSIDE)
    assert (generation.INSIDE / "rlhf_weights.py").is_file()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "vllm"}, "engine=vllm with weights=shared"),
        ({"weights": "server"}, "engine=native with weights=server"),
        ({"engine": "vllm", "weights": "server"}, "without a server: start one with rlhf generation serve RUN"),
        (
            {"engine": "vllm", "weights": "server", "server": {"addresses": ["localhost:8000"]}},
            "give for example http://node-7:8000",
        ),
        (
            {"engine": "vllm", "weights": "server", "server": {"addresses": ["http://me:secret@host:1"]}},
            "set RLHF_GENERATION_TOKEN in place of a secret",
        ),
        ({"engine": "vllm", "weights": "server", "server": {"addresses": ["http://host:port"]}}, "is no address"),
        (
            {"engine": "vllm", "weights": "server", "server": {"addresses": ["http://h:1", "http://h:1/"]}},
            "is there twice",
        ),
    ],
)
def test_settings_that_fit_no_server_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        GenerationConfig.model_validate(settings)
    assert "secret@" not in error.value.errors()[0]["msg"]  # type: ignore[attr-defined]


def test_only_who_brings_the_token_gets_through(monkeypatch: pytest.MonkeyPatch) -> None:
    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"in"})

    async def ask(path: str, token: str | None) -> int:
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        transport = httpx.ASGITransport(app=Guard(inner))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return (await client.post(path, headers=headers)).status_code

    for path in ("/collective_rpc", "/v1/completions", "/pause"):
        monkeypatch.setenv("RLHF_GENERATION_TOKEN", "right")
        assert [asyncio.run(ask(path, token)) for token in ("right", "wrong", "", None)] == [200, 401, 401, 401]
        monkeypatch.delenv("RLHF_GENERATION_TOKEN")
        assert asyncio.run(ask(path, None)) == 200
    monkeypatch.setenv("RLHF_GENERATION_TOKEN", "right")
    assert asyncio.run(ask("/health", None)) == 200


def test_another_engine_runs_ppo_again_and_nothing_before_it(tmp_path: Path) -> None:
    there = {"engine": "vllm", "weights": "server", "server": {"addresses": ["http://127.0.0.1:1"]}}
    elsewhere = {**there, "server": {"addresses": ["http://10.0.0.1:1"], "timeout_seconds": 5.0}}
    prints = []
    for how in ({}, there, elsewhere):
        recipe = Recipe.model_validate({"ppo": {"generation": how}, "reward": {"use": "data.toy:gold"}})
        prints.append([fields_of(recipe, name) for name in STAGES])
    native, first, second = prints
    assert first == second
    assert [a == b for a, b in zip(native, first, strict=True)] == [True, True, False, True]


def fields_of(recipe: Recipe, name: str) -> Any:
    return STAGES[name].fields(recipe)
