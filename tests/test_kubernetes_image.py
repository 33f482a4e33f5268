"""The Dockerfile, which no test builds: its instructions, the paths that it copies, and how it installs."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from launch.clusters.manifests.settings import KubernetesSite

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = ROOT / "launch" / "examples" / "kubernetes" / "Dockerfile"
INSTRUCTIONS = {"FROM", "RUN", "WORKDIR", "ENV", "ARG", "COPY", "USER", "CMD"}


def instructions() -> list[tuple[str, str]]:
    text = "\n".join(
        line for line in DOCKERFILE.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")
    )
    joined = re.sub(r"\\\n\s*", "", text)
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines())]


def arguments(name: str) -> list[str]:
    return [rest for found, rest in instructions() if found == name]


def test_every_line_is_an_instruction() -> None:
    assert {name for name, _ in instructions()} == INSTRUCTIONS


def test_what_is_copied_is_there_and_is_every_package() -> None:
    copied = [path for each in arguments("COPY") for path in each.split()[:-1]]
    assert not [path for path in copied if not (ROOT / path).exists()]
    assert {"rlhf", "data", "reward_models", "stages", "launch", "pyproject.toml", "LICENSE"} <= set(copied)


def test_the_base_is_pinned_and_new_enough() -> None:
    (base,) = arguments("FROM")
    assert re.fullmatch(r"python:3\.(1[1-9])\.\d+-slim-\w+", base)


def test_it_installs_as_the_makefile_does() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    installs = [run for run in arguments("RUN") if "pip install" in run]
    for what in ("install -c constraints.txt torch", "install -c constraints.txt -e"):
        assert what in makefile
        assert [run for run in installs if what in run]


@pytest.mark.parametrize("run", arguments("RUN"), ids=lambda run: run.split()[0])
def test_commands_are_shell(run: str) -> None:
    subprocess.run(["sh", "-n", "-c", run], check=True)


def test_its_user_is_the_one_that_pods_have() -> None:
    site = KubernetesSite()
    assert arguments("USER") == [f"{site.user}:{site.group}"]


def test_the_interpreter_is_found_by_its_name() -> None:
    """Manifests say python, unless the site says otherwise."""
    assert "PATH=/opt/rlhf/.venv/bin:$PATH" in arguments("ENV")
