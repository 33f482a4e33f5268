"""`rlhf generation serve`: vLLM's server, ready to be given a policy's weights. Loads no torch."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

import rlhf.generation
from launch.local import visible_gpus
from rlhf.errors import ArtifactError, ConfigError
from rlhf.references import is_local
from stages.targets import RUNS, Target, find_target

app = typer.Typer(name="generation", help="Servers that sample for PPO.", no_args_is_help=True)

PYTHON = "RLHF_VLLM_PYTHON"
TOKEN = "RLHF_GENERATION_TOKEN"
INSIDE = Path(rlhf.generation.__file__).parent / "inside_vllm"
SERVER = "vllm.entrypoints.openai.api_server"
WANTED = (
    f"vLLM is not installed here; make it an environment of its own (python -m venv vllm; vllm/bin/pip install vllm), "
    f"and name its interpreter: --python vllm/bin/python, or {PYTHON}"
)
Python = Annotated[
    Path | None,
    typer.Option("--python", metavar="PATH", help=f"The interpreter of vLLM's environment. Default: ${PYTHON}."),
]
OURS = (  # options by which a server would be open to others, or could not be given weights
    *("--host", "--port", "--uds", "--config", "--model", "--served-model-name", "--api-key", "--root-path"),
    *("--worker-extension-cls", "--logprobs-mode", "--generation-config"),
)
SEVERAL = ("--data-parallel", "-dp")  # of which one would answer for all
LOOK_SECONDS = 2.0  # between two looks for a model that is still to be made


@app.command()
def serve(
    target: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="Whose SFT model, or which model.")],
    options: Annotated[list[str] | None, typer.Argument(metavar="-- VLLM OPTIONS", help="Handed on to vLLM.")] = None,
    host: Annotated[str, typer.Option(help="Where to listen; beyond this machine only with a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where to listen.")] = 8000,
    python: Python = None,
    wait: Annotated[bool, typer.Option("--wait", help="Until RUN has its SFT model, if it has none yet.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command, and start nothing.")] = False,
) -> None:
    """Start a server that samples PPO's rollouts with vLLM and takes up the policy's weights after every step.

    It is vLLM's own OpenAI-compatible server with two additions: its workers can be given weights (over NCCL between
    GPUs, over gloo elsewhere), and a token guards all of it. One command is one engine; for more, start it on other
    ports or machines and name all of them in the recipe, under ppo.generation.server.addresses, beside
    ppo.generation.engine=vllm and ppo.generation.weights=server.

    The recipe's stages need no vLLM. Beyond this machine a server listens only with RLHF_GENERATION_TOKEN in the
    environment, which the run needs as well.

    Examples:

        rlhf generation serve demo --python vllm/bin/python

        rlhf generation serve demo --wait --port 8001

        rlhf generation serve ./Qwen2.5-0.5B-Instruct -- --tensor-parallel-size 2 --gpu-memory-utilization 0.8
    """
    if not os.environ.get(TOKEN) and not is_local(host):
        raise ConfigError(f"--host {host}: is open to others; set {TOKEN}, or use --host 127.0.0.1")
    for option in options or []:
        name = option.partition("=")[0].replace("_", "-")  # vLLM takes both
        if name in OURS:
            raise ConfigError(f"-- {name}: is set by rlhf generation serve; see its own options, or leave it out")
        if name.startswith(SEVERAL):
            raise ConfigError(f"-- {name}: one command is one engine; start another on a --port of its own")
    interpreter = find_python(python)
    found = find_model(target, wait)
    # Ours come last, which vLLM's parser takes: an abbreviation of one of theirs changes nothing.
    command = [
        interpreter,
        "-m",
        SERVER,
        "--dtype",
        dtype_of(found),
        *(options or []),
        *vllm_options(found, host, port),
    ]
    if dry_run:
        typer.echo(" ".join(command))
        return
    typer.echo(f"vLLM serves {found.label} at http://{host}:{port}; its first answer takes a minute or so", err=True)
    sys.stderr.flush()
    os.execve(interpreter, command, environment())


def vllm_options(found: Target, host: str, port: int) -> list[str]:
    """What vLLM is told of a model and of us."""
    model = found.recipe.model
    options = ["--model", found.model, "--host", host, "--port", str(port), "--served-model-name", "policy"]
    if model.revision:
        options += ["--revision", model.revision]
    if model.trust_remote_code:
        options.append("--trust-remote-code")
    # The figures that PPO compares are those of the distribution that was sampled from, and the sampling is the
    # recipe's, whatever the model's own generation_config.json says.
    options += ["--logprobs-mode", "processed_logprobs", "--generation-config", "vllm", "--disable-uvicorn-access-log"]
    return [*options, "--worker-extension-cls", "rlhf_weights.Weights", "--middleware", "rlhf_weights.Guard"]


def dtype_of(found: Target) -> str:
    """As the trainer computes, on a GPU taken for one that has bfloat16; vLLM's own auto rounds float32 on CPUs too."""
    auto = "bfloat16" if visible_gpus() else "float32"
    return auto if found.recipe.model.dtype == "auto" else found.recipe.model.dtype


def environment() -> dict[str, str]:
    """Of vLLM's server: its own packages, and of ours the one module that its workers need."""
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "VIRTUAL_ENV")}
    own["PYTHONPATH"] = str(INSIDE)
    own["VLLM_SERVER_DEV_MODE"] = "1"  # serves the path by which workers are told of weights; the token guards it
    own.setdefault("VLLM_NO_USAGE_STATS", "1")
    return own


def find_python(named: Path | None) -> str:
    """The interpreter of an environment with vLLM. Raises ConfigError where there is none."""
    given = str(named) if named else os.environ.get(PYTHON)
    if given is None:
        if importlib.util.find_spec("vllm") is None:
            raise ConfigError(WANTED)
        return sys.executable
    name = "--python" if named else PYTHON
    found = str(Path(given).absolute()) if Path(given).is_file() else shutil.which(given)
    if found is None:
        raise ConfigError(f"{name}={given}: no interpreter there; give that of vLLM's environment")
    # Isolated from the folder that we are in, which may hold one of that name.
    look = [found, "-I", "-c", "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"]
    try:
        there = subprocess.run(look, check=False, capture_output=True).returncode == 0
    except OSError as error:
        raise ConfigError(
            f"{name}={given}: cannot be run ({error}); give the interpreter of vLLM's environment"
        ) from error
    if not there:
        raise ConfigError(f"{name}={given}: vLLM is not installed there; {found} -m pip install vllm")
    return found


def find_model(target: str, wait: bool) -> Target:
    """A model, or the SFT model of a run. Raises ArtifactError where it is not there and not waited for."""
    said = False
    while True:
        try:
            if is_run(target):
                return find_target(target, "sft")
            return find_target(target)
        except ArtifactError as error:
            if not wait:
                raise
            if not said:
                typer.echo(f"{error}; waiting for it", err=True)
                said = True
            time.sleep(LOOK_SECONDS)


def is_run(target: str) -> bool:
    """Whether a name is that of a run's directory."""
    return any((path / "recipe.yaml").is_file() for path in (Path(target), RUNS / target))
