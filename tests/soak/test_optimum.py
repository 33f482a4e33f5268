"""Five seeds of each estimator at each beta against the known optimum: `make soak ARGS="-k optimum -s"`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from running import rlhf

pytestmark = [pytest.mark.soak, pytest.mark.timeout(7200)]
MINUTES = 3  # of a processor, for five seeds of an estimator


@pytest.mark.parametrize("beta", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("advantage", ["gae", "rloo", "reinforce++"])
def test_ppo_finds_the_optimum(tmp_path: Path, advantage: str, beta: float) -> None:
    command = ("study", "optimum", "--advantage", advantage, "--beta", str(beta), "--output", "here")
    done = rlhf(*command, folder=tmp_path, seconds=7000)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout[done.stdout.index("PPO and the known optimum") :])
    courses = json.loads((tmp_path / "here" / "optimum.json").read_text())["courses"]
    assert [course["seed"] for course in courses] == [1, 2, 3, 4, 5]
    for course in courses:
        last = course["distances"][-1]
        assert last["tv"] <= 0.03 and last["gap"] <= 0.01, course["seed"]
    assert sum(course["seconds"] for course in courses) <= 60 * MINUTES
