"""Apply each mistake of tests/mutations.py to a copy of the sources and see that its tests fail.

    python tests/mutate.py                                  all of them
    python tests/mutate.py "the KL's sign in the reward"    one, or some

First all tests named are run without a mistake, and must pass. Then for each mutation a process of its own is forked
from this one, which has loaded the libraries and nothing of ours; it sees the changed copy alone. Exit code 1 if a
mutation survives, if a named test does not fail, or if a mutation's text no longer stands in its file.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OURS = ("rlhf", "reward_models", "data", "stages", "launch", "tests")
SECONDS = 120.0  # for one mutation
# How code that does not fit together fails, which says nothing of a test.
BROKEN = {"ImportError", "ModuleNotFoundError", "SyntaxError", "NameError", "TypeError", "AttributeError"}


class Recorder:
    """A plugin of pytest's that keeps how each test ended."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, str, str, str]] = []  # test, phase, outcome, exception

    def pytest_runtest_makereport(self, item: Any, call: Any) -> None:
        """Called behind each phase of each test."""
        failed = call.excinfo.type.__name__ if call.excinfo else ""
        if call.when == "call" or failed:
            self.ended.append((item.nodeid, call.when, "failed" if failed else "passed", failed))


def copy_sources(folder: Path) -> Path:
    """The packages and their tests, without anything compiled."""
    for name in OURS:
        ignored = shutil.ignore_patterns("__pycache__", "corpus", "baselines.old")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def run_tests(folder: Path, tests: Sequence[str], report: Path) -> None:
    """In a forked process: the tests of a copy, by pytest; never returns."""
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        with (report.with_suffix(".log")).open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        sys.path[:] = [str(folder), *(path for path in sys.path if not (Path(path) / "rlhf").is_dir())]
        import pytest

        recorder = Recorder()
        options = [
            "-q",
            "--tb=short",
            "--assert=plain",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            f"--rootdir={folder}",
        ]
        pytest.main([*options, *tests], plugins=[recorder])
        strangers = [
            f"{name} comes from {module.__file__}"
            for name, module in sys.modules.items()
            if name.split(".")[0] in OURS and getattr(module, "__file__", None)
            if not str(module.__file__).startswith(str(folder))
        ]
        copied = {name for name, module in sys.modules.items() if str(folder) in str(getattr(module, "__file__", ""))}
        loaded = [name for name in sys.modules if name not in copied and name.split(".")[0] not in OURS]
        report.write_text(json.dumps({"ended": recorder.ended, "strangers": strangers, "loaded": loaded}))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def forked(folder: Path, tests: Sequence[str], report: Path, seconds: float) -> dict[str, Any]:
    """What `run_tests` found in a process of its own."""
    report.unlink(missing_ok=True)
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        run_tests(folder, tests, report)
    deadline = time.monotonic() + seconds
    while not os.waitpid(pid, os.WNOHANG)[0]:
        if time.monotonic() > deadline:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            break
        time.sleep(0.01)
    if not report.is_file():
        log = report.with_suffix(".log")
        return {"ended": [], "strangers": ["no report: " + (log.read_text()[-2000:] if log.is_file() else "")]}
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def names(test: str, nodeid: str) -> bool:
    """Whether a test by this name, with or without its case, ran under an id."""
    return nodeid == test or nodeid.startswith(test + "[")


def control(folder: Path, mutations: dict[str, Any], report: Path) -> list[str]:
    """All named tests on the unchanged copy; loads what they loaded, for the forks that follow. What is wrong."""
    tests = sorted({test for mutation in mutations.values() for test in mutation.tests}, key=processes_first)
    found = forked(folder, tests, report, 4 * SECONDS)
    problems = list(found["strangers"])
    for test in tests if found["ended"] else ():
        ended = [each for each in found["ended"] if names(test, each[0])]
        if not ended or any(outcome != "passed" for _, _, outcome, _ in ended):
            problems.append(f"without a mutation {test} does not pass: {ended[:3] or 'no such test'}")
    for name in found.get("loaded", []):
        with suppress(Exception):  # a part that its own library loads under some condition alone
            importlib.import_module(name)
    return problems


def processes_first(test: str) -> tuple[bool, str]:
    """Tests that fork processes of their own come before any that have used autograd's threads."""
    return ("two_processes" not in test, test)


def mutate(folder: Path, name: str, mutation: Any, report: Path) -> list[str]:
    """What is wrong with one mutation: nothing, where every test named sees it."""
    file = folder / mutation.file
    original = (ROOT / mutation.file).read_text(encoding="utf-8")
    count = original.count(mutation.old)
    if count != 1:
        return [f"{name}: its text stands {count} times in {mutation.file}; bring tests/mutations.py up to date"]
    compile(changed := original.replace(mutation.old, mutation.new), mutation.file, "exec")
    file.write_text(changed, encoding="utf-8")
    try:
        found = forked(folder, mutation.tests, report, SECONDS)
    finally:
        shutil.copy2(ROOT / mutation.file, file)
    problems = [f"{name}: {line}" for line in found["strangers"]]
    for test in mutation.tests:
        ended = [each for each in found["ended"] if names(test, each[0])]
        failed = [each for each in ended if each[1] == "call" and each[2] == "failed"]
        if not failed:
            problems.append(f"{name}: {test} did not fail: {ended[:3]}")
        elif broken := [each for each in failed if each[3] in BROKEN]:
            problems.append(f"{name}: {test} failed by {broken[0][3]}: the mutation is no mistake, but broken code")
    return problems


def main(chosen: Sequence[str]) -> int:
    """Play the mutations; the exit code."""
    os.environ |= {"RLHF_TEST_PROCESSES": "fork", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    import torch
    from hypothesis import Phase, settings
    from mutations import MUTATIONS

    torch.set_num_threads(1)
    # The first counterexample is enough, and none is kept.
    settings.register_profile("mutations", phases=[Phase.explicit, Phase.generate], database=None)
    settings.load_profile("mutations")
    sys.modules.pop("mutations")
    if unknown := set(chosen) - set(MUTATIONS):
        print(f"no mutation {unknown.pop()!r}")
        return 2
    mutations = {name: MUTATIONS[name] for name in chosen or MUTATIONS}
    with tempfile.TemporaryDirectory() as scratch:
        folder, report = copy_sources(Path(scratch) / "sources"), Path(scratch) / "report.json"
        began = time.monotonic()
        problems = control(folder, mutations, report)
        print(f"{time.monotonic() - began:5.1f} s  without a mutation: {'some fail' if problems else 'all pass'}")
        gc.freeze()
        sys.dont_write_bytecode = True  # a changed file may have its original's size and second
        for name, mutation in mutations.items() if not problems else ():
            began = time.monotonic()
            found = mutate(folder, name, mutation, report)
            problems += found
            print(f"{time.monotonic() - began:5.1f} s  {'SURVIVES' if found else 'seen'}  {name}", flush=True)
    print(*problems, sep="\n")
    kinds = Counter(mutation.file for mutation in mutations.values())
    print(f"{len(mutations)} mutations of {len(kinds)} files, {len(problems)} problem(s)")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
