"""Each mistake made on purpose turns a test red: see tests/mutations.py for the list, tests/mutate.py for how."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from mutations import MUTATIONS

FEW = list(MUTATIONS)[::4]  # `make soak ARGS="-k mistake"` makes them all
MUTATE = Path(__file__).with_name("mutate.py")


def mutate(*names: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(MUTATE), *names], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "names", [FEW, pytest.param(MUTATIONS, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])], ids=["few", "all"]
)
def test_every_mistake_turns_its_tests_red(names: Iterable[str]) -> None:
    done = mutate(*names)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" seen  ") == len(list(names))


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mistake_is_one_change_of_one_place(name: str) -> None:
    mutation = MUTATIONS[name]
    text = (MUTATE.parents[1] / mutation.file).read_text(encoding="utf-8")
    assert text.count(mutation.old) == 1 and mutation.old != mutation.new and mutation.tests


def test_what_survives_is_told(tmp_path: Path) -> None:
    """A mistake whose tests pass, one whose text is gone, and one that is broken code."""
    table = '''
from typing import NamedTuple
class Mutation(NamedTuple):
    file: str
    old: str
    new: str
    tests: tuple
KL = "tests/test_kl.py::test_fixed_controller_stays"
MUTATIONS = {
    "harmless": Mutation("rlhf/kl.py", '"""A coefficient that stays."""', '"""A coefficient."""', (KL,)),
    "outdated": Mutation("rlhf/kl.py", "no such text", "", (KL,)),
    "broken": Mutation("rlhf/kl.py", "class FixedController:", "class Fixed:", (KL,)),
}
'''
    (tmp_path / "mutations.py").write_text(table)
    paths = [str(tmp_path), str(MUTATE.parent)]
    script = f"import sys; sys.path[:0] = {paths!r}; import mutate; sys.exit(mutate.main([]))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    for line in ("harmless: tests/test_kl.py", "outdated: its text stands 0 times", "broken: tests/test_kl.py"):
        assert line in done.stdout
    assert "3 mutations of 1 files, 3 problem(s)" in done.stdout
