"""The documentation is true: its commands run, its recipes load, its links lead somewhere, its site builds.

`make test` does what takes a moment; `make test-services` types each page's commands in, one after another, in a folder
that holds what a reader has (`newcomer.py`).
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import typer
from documentation import PAGES, ROOT, Command, anchors, commands, inline, links, name_of, split
from instead import INSTEAD
from newcomer import furnish, is_recipe, type_in
from typer.core import TyperGroup
from typer.exceptions import Exit, TyperException

from launch.cli import app
from rlhf.recipe import load_recipe

SECONDS = 120  # of a processor, for one command
LANGUAGES = {"", "sh", "yaml", "python", "json", "text"}
MOMENT = re.compile(r"^rlhf (?!.*[|;&>]).*(--help|--dry-run)\b|^rlhf (data show|schema)\b")

# What a page's commands leave behind, besides exit code 0.
LEFT: dict[str, list[str]] = {
    "README.md": ["runs/my/ppo/model/model.safetensors", "runs/my/curves.png", "my.svg"],
    "docs/index.md": [
        "runs/trial/ppo/model/model.safetensors",
        "runs/trial/ppo/metrics.jsonl",
        "runs/my/ppo/adapter/adapter_model.safetensors",
        "runs/my/summary.json",
        "runs/my/curves.png",
        "runs/given/ppo/model/model.safetensors",
    ],
}
BY_NAME = pytest.mark.parametrize("page", PAGES, ids=name_of)


def understand(command: str) -> None:
    """Parse a command line of `rlhf`, overrides included, as `rlhf` would, without running anything."""
    words = shlex.split(command)[1:]
    group = typer.main.get_command(app)
    try:
        context = group.make_context("rlhf", list(words))
        while isinstance(group, TyperGroup) and (rest := [*context._protected_args, *context.args]):
            name, group, rest = group.resolve_command(context, rest)
            context = group.make_context(name, rest, parent=context)
    except Exit:  # --help
        return
    load_recipe("demo", [word for word in words if re.match(r"[a-z_0-9.]+=", word)])


def make_target(command: str) -> str:
    return next(word for word in shlex.split(command)[1:] if "=" not in word and not word.startswith("-"))


def documented() -> list[Command]:
    return [command for page in PAGES for command in commands(page)]


def test_there_is_something_to_check() -> None:
    assert len(documented()) > 15
    assert {name_of(page) for page in PAGES} >= {"README.md", "CONTRIBUTING.md", "docs/index.md", *LEFT}


@BY_NAME
def test_blocks_say_what_they_are(page: Path) -> None:
    """A command in a block of another language would escape the tests."""
    for block in split(page)[0]:
        assert block.language in LANGUAGES, f"{block.place}: {block.language}; use sh for commands"
        if block.language in ("", "text"):
            typed = re.findall(r"^(?:[$#>] )?((?:rlhf|make|pip|python|torchrun) .*)$", block.text, re.M)
            assert not typed, f"{block.place}: fence commands as sh: {typed}"


@BY_NAME
def test_recipes_load(page: Path, tmp_path: Path) -> None:
    """Also those that show one section alone: the others have defaults."""
    (tmp_path / "other.yaml").write_text("name: other\n")  # what pages call a recipe to build on
    for block in split(page)[0]:
        if is_recipe(block):
            (tmp_path / "block.yaml").write_text(block.text)
            assert load_recipe(tmp_path / "block.yaml"), block.place


@BY_NAME
def test_other_blocks_are_well_formed(page: Path) -> None:
    for block in split(page)[0]:
        if block.language == "python":
            compile(block.text, block.place, "exec")
        if block.language == "json":
            for line in block.text.splitlines():
                assert json.loads(line), block.place


@BY_NAME
def test_commands_are_understood(page: Path) -> None:
    """Those of `rlhf` parse, make's have a target; others are run by the tests of services, or listed."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for command in commands(page):
        if command.text.startswith("rlhf "):
            try:
                understand(command.text)
            except Exception as error:
                pytest.fail(f"{command.place}: {command.text}: {error}", pytrace=False)
        if command.text.startswith("make "):
            assert command.text in INSTEAD, f"{command.place}: list what is run instead of {command.text}"
            assert make_target(command.text) in targets, command.place


@BY_NAME
def test_commands_in_prose_are_understood(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for line, code in inline(page):
        if re.match(r"make [a-z-]+( |$)", code):
            assert make_target(code) in targets, f"{name_of(page)}:{line}: {code}"
        if re.match(r"rlhf [a-z]+( |$)", code) and not re.search(r"[|…]|\.\.\.", code):
            try:
                understand(code)
            except Exception as error:
                if isinstance(error, TyperException) and "Missing argument" in error.format_message():
                    continue  # the command by its name alone
                pytest.fail(f"{name_of(page)}:{line}: {code}: {error}", pytrace=False)


def test_the_table_lists_what_pages_have() -> None:
    assert INSTEAD.keys() - {command.text for command in documented()} == set()


@BY_NAME
def test_links_lead_somewhere(page: Path) -> None:
    """Relative ones to a file and heading of the repository; others are only looked at."""
    wrong = []
    for line, target in links(page):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            url = urlsplit(target)
            good = url.scheme in ("https", "mailto") and ("." in url.netloc or url.scheme == "mailto")
            good = good and url.hostname not in ("localhost", "127.0.0.1")
        else:
            file = (page.parent / path).resolve() if path else page
            inside = ROOT / "docs" if ROOT / "docs" in page.parents else ROOT  # the site has nothing else
            good = not path.startswith("/") and file.exists() and file.is_relative_to(inside)
            good = good and (not anchor or (file.suffix == ".md" and anchor in anchors(file)))
        wrong += [] if good else [f"{name_of(page)}:{line}: {target}"]
    assert wrong == []


@BY_NAME
def test_no_path_of_a_machine(page: Path) -> None:
    assert re.findall(r"(?<![\w.])/(?:home|root|work|Users|mnt)/[\w./-]*", page.read_text(encoding="utf-8")) == []


def test_site_builds(tmp_path: Path) -> None:
    """Strictly: a broken link, a heading that is not there or a page that the menu lacks ends it."""
    command = [sys.executable, "-W", "ignore", "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for file in tmp_path.rglob("*.html"):
        loaded = re.findall(r"<(?:script|img|link)[^>]+(?:src|href)=\"?(?:https?:)?//[^>]+", file.read_text())
        assert [tag for tag in loaded if "canonical" not in tag] == [], file
    assert (tmp_path / "demo.png").read_bytes() == (ROOT / "docs" / "demo.png").read_bytes()


def test_the_first_ten_minutes_are_ten() -> None:
    """Of a person, at 200 words of prose a minute and half a minute for each command."""
    page = ROOT / "docs" / "index.md"
    words = len(re.findall(r"\w+", split(page)[1])) + sum(len(block.text.split()) for block in split(page)[0])
    assert words / 200 + len(commands(page)) / 2 < 10


@BY_NAME
def test_momentary_commands_run(page: Path, tmp_path: Path) -> None:
    """Help, dry runs and looks at data, in the folder of somebody who has data and no model yet."""
    wanted = [command for command in commands(page) if MOMENT.match(command.text) and command.text not in INSTEAD]
    if wanted:
        furnish(tmp_path, page)
    for command in wanted:
        typed = type_in(command.text, tmp_path)
        assert typed.code == 0, f"{command.place}: {command.text}: exit code {typed.code}\n{typed.printed}"


@pytest.mark.services
@pytest.mark.beside
@pytest.mark.timeout(1800)
@BY_NAME
def test_pages_can_be_followed(page: Path, tiny_run: Path, tmp_path: Path) -> None:
    """Every command of a page, one after another, in the folder of somebody who has what the page assumes."""
    furnish(tmp_path, page, tiny_run)
    for command in commands(page):
        text, reason = INSTEAD.get(command.text, (command.text, ""))
        typed = type_in(text, tmp_path)
        about = f"{command.place}: {text} ({reason}): {{}}\n{typed.printed[-3000:]}"
        assert typed.code == 0, about.format(f"exit code {typed.code}")
        assert typed.seconds < SECONDS, about.format(f"took {typed.seconds:.0f} s of a processor")
        assert "Traceback" not in typed.printed, about.format("a traceback")
    for name in LEFT.get(name_of(page), []):
        assert (tmp_path / name).is_file(), f"{name_of(page)} leaves no {name}"
    metrics = tmp_path / "runs" / "trial" / "ppo" / "metrics.jsonl"
    if name_of(page) == "docs/index.md":  # whoever follows it has made their first PPO step
        assert any("objective/kl" in json.loads(line) for line in metrics.read_text().splitlines())
