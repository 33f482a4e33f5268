"""Versions: inside the ranges of this project, of what packages ask of each other, and the same on all nodes."""

from __future__ import annotations

import importlib.util
import platform
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from os import environ
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from launch.checking.finding import Facts, Finding, failure, listed, ok, warning
from rlhf.config import Recipe
from rlhf.store.artifact import PACKAGES, environment
from stages.lineage import STAGES, used_by

CHECK = "versions"
SHOWN = ("torch", "transformers", "trl", "accelerate", "deepspeed")
# A difference between nodes in one of these ends in a hang or in other numbers; in another it is only untidy.
DECISIVE = {*PACKAGES, "deepspeed", "tokenizers", "rlhf", "python", "commit"}
# Their requirements are looked at besides those of ours: what does not fit torch or transformers breaks their import.
BESIDE = ("torchvision", "torchaudio", "flash-attn", "bitsandbytes", "vllm", "xformers", "triton", "tokenizers")
NCCL = re.compile(r"nvidia-nccl-cu\d+")
STALE_SECONDS = 600.0  # no extension takes longer to build


class Versions(Facts):
    """What is installed on a node."""

    python: str
    commit: str | None  # of the clone, if it is one
    packages: dict[str, str]
    broken: tuple[str, ...]  # requirements that what is installed does not meet, each a line
    cuda: str | None  # that torch was built for
    locks: tuple[str, ...] = ()  # builds of extensions that nobody goes on with
    tools: tuple[str, ...] = ()  # that builds need and that are not there


def look() -> Versions:
    """Those of this environment."""
    packages = installed()
    here = environment()
    return Versions(
        python=here["python"],
        commit=here["commit"],
        packages=packages,
        broken=tuple(broken(requirements(packages), packages)),
        cuda=cuda_of_torch(),
        locks=tuple(abandoned_locks()),
        tools=tuple(name for name in ("ninja", "g++") if not shutil.which(name)),
    )


def installed() -> dict[str, str]:
    """Versions of the packages that matter, as far as they are there."""
    wanted = {"rlhf", *PACKAGES, *BESIDE}
    with suppress(metadata.PackageNotFoundError):
        wanted |= {Requirement(each).name for each in metadata.requires("rlhf") or () if "rlhf[" not in each}
    wanted |= {name for each in metadata.distributions() if NCCL.fullmatch(name := each.metadata["Name"] or "")}
    found: dict[str, str] = {}
    for name in sorted(wanted):
        with suppress(metadata.PackageNotFoundError):
            found[canonicalize_name(name)] = metadata.version(name)
    return found


def requirements(packages: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What each package asks of others, with its name."""
    for name in packages:
        for text in metadata.requires(name) or ():
            yield name, text


def broken(asked: Iterator[tuple[str, str]] | Sequence[tuple[str, str]], packages: Mapping[str, str]) -> Iterator[str]:
    """Requirements that are not met: of ours also those of extras whose package is there, of others the plain ones.

    Only between packages that matter: what else is installed may disagree as it likes.
    """
    for owner, text in asked:
        try:
            requirement = Requirement(text)
            name = canonicalize_name(requirement.name)
            extra = requirement.marker is not None and "extra" in str(requirement.marker)
            if requirement.marker and not extra and not requirement.marker.evaluate():
                continue
            has = packages.get(name)
            if extra and (owner != "rlhf" or has is None):
                continue
            if has is None:
                if owner == "rlhf":
                    yield f"{name} is not installed, and rlhf needs {wish(requirement)}"
            elif not requirement.specifier.contains(Version(has), prereleases=True):
                yield f"{name} {has} is installed, and {owner} {packages.get(owner, '')} needs {wish(requirement)}"
        except (InvalidRequirement, InvalidVersion):
            continue


def wish(requirement: Requirement) -> str:
    """A requirement without what it depends on."""
    return f"{requirement.name}{requirement.specifier}"


def cuda_of_torch() -> str | None:
    """The CUDA that torch was built for, read from its file: to import torch takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    with suppress(OSError, UnicodeDecodeError):
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
        if found := re.search(r"^cuda\b[^=\n]*= *['\"]([\d.]+)['\"]", text, re.M):
            return found[1]
    return None


def abandoned_locks() -> list[str]:
    """Locks of extensions' builds that were killed: whoever comes next waits for them forever, and says nothing."""
    folder = Path(environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions")
    old = time.time() - STALE_SECONDS
    found = []
    for pattern in ("*/lock", "*/*/lock"):
        for lock in folder.glob(pattern):
            with suppress(OSError):
                if lock.stat().st_mtime < old:
                    found.append(str(lock))
    return sorted(found)


def judge_one(node: Versions, recipe: Recipe | None) -> list[Finding]:
    """What a node's own versions say."""
    remedy = "in the clone: pip install -c constraints.txt -e ."
    found = [failure(CHECK, line, remedy) for line in node.broken]
    if "rlhf" not in node.packages:
        found.append(warning(CHECK, "rlhf is on the path and not installed, so that its ranges are unknown", remedy))
    if recipe is not None and any(
        recipe.parallelism_of(stage).strategy.startswith("zero") for stage in STAGES if not used_by(recipe, stage)
    ):
        if node.tools:
            what = f"DeepSpeed builds extensions when it starts, and {listed(node.tools)} is not here"
            found.append(failure(CHECK, what, "apt-get install g++ ninja-build, or pip install ninja"))
        found += [
            failure(
                CHECK, f"{lock} is left of a build that was killed, for which DeepSpeed waits forever", f"rm {lock}"
            )
            for lock in node.locks
        ]
    return found


def judge_all(nodes: Mapping[str, Versions]) -> list[Finding]:
    """Where nodes differ; of two the first counts as right, of more the most."""
    found = []
    others = "the first node" if len(nodes) == 2 else "the others"
    told = {name: {"python": each.python, "commit": each.commit or "", **each.packages} for name, each in nodes.items()}
    for package in sorted({package for each in told.values() for package in each}):
        have = {name: each.get(package, "none") for name, each in told.items()}
        if len(set(have.values())) == 1:
            continue
        usual = Counter(have.values()).most_common(1)[0][0]
        odd = {name: version for name, version in have.items() if version != usual}
        for version in sorted(set(odd.values())):
            names = [name for name, each in odd.items() if each == version]
            what = f"{listed(names)}: {package} is {version} there and {usual} on {others}"
            level = failure if package in DECISIVE or NCCL.fullmatch(package) else warning
            found.append(level(CHECK, what, "install the same on all nodes, or share one environment"))
    return found


def summary(node: Versions, tested: Mapping[str, str]) -> Finding:
    """The versions in a line; those that the tests of this repository ran with are told where they differ."""
    parts = [f"Python {platform_of(node.python)}"]
    for name in SHOWN:
        if version := node.packages.get(name):
            other = tested.get(name)
            beside = f" (tested: {other})" if other and version.partition("+")[0] != other else ""
            parts.append(f"{name} {version}{beside}")
    return ok(CHECK, ", ".join(parts))


def platform_of(python: str) -> str:
    """A Python version for people."""
    return python if platform.python_implementation() == "CPython" else f"{python} {platform.python_implementation()}"


def tested_versions() -> dict[str, str]:
    """Those of constraints.txt, where this is a clone."""
    path = Path(__file__).parents[2] / "constraints.txt"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pinned = [line.partition("==") for line in lines if "==" in line and not line.startswith("#")]
    return {canonicalize_name(name.strip()): version.strip() for name, _, version in pinned}
