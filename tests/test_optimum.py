"""Theory against PPO's real code, in a world small enough to count: `rlhf study optimum`.

The fast tests run fewer steps than the study, to a wider tolerance; tests/soak/test_optimum.py has the five seeds.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optima import objective, optimum, total_variation
from running import rlhf

from rlhf.analysis import optimum as theory
from rlhf.config import GenerationConfig
from rlhf.generation.native import NativeGenerator
from rlhf.kl import estimate
from rlhf.types import Sampled
from stages.small_world import PROMPTS, SmallWorld, all_responses
from stages.study import Course, learn
from stages.variants import EXACT, OTHERWISE, deviations, expected, settings

BETA, STEPS, SEED = 1.0, 50, 1
NEAR, FAR = 0.04, 0.1  # total variation that the fast tests allow, and that a mutation must exceed


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def end(name: str, beta: float = BETA, given: float = BETA, steps: int = STEPS) -> Course:
    """The course of a variant towards the optimum of `beta`, in haste, when PPO is given another coefficient."""
    config = settings(name, given, steps).model_copy(update={"epochs": 2})
    return learn(SmallWorld(SEED), config, beta, every=steps)


def table(row: np.ndarray) -> dict[tuple[int, ...], float]:
    return dict(zip(all_responses(), row.tolist(), strict=True))


def test_every_response_is_counted_once() -> None:
    """43: the stop token behind 0 or 1 of 6 letters, and 2 letters."""
    responses = all_responses()
    assert len(set(responses)) == len(responses) == 1 + 6 + 36
    assert all((0 in y[:-1]) is False and (y[-1] == 0 or len(y) == 2) for y in responses)


def test_enumerated_probabilities_are_those_of_sampling() -> None:
    """50,000 responses of the sampler to each prompt; a chi-square of 42 degrees of freedom, within 5 deviations."""
    world, draws = SmallWorld(SEED), 50_000
    probabilities = world.distribution(world.policy)
    np.testing.assert_allclose(probabilities.sum(-1), 1.0, atol=1e-12)
    config = GenerationConfig(max_new_tokens=2, batch_size=25_000)
    generator = NativeGenerator(world.policy, world.tokenization.stop_id, world.tokenization.pad_id, config)
    for prompt, row in zip(PROMPTS, probabilities, strict=True):
        sampled = generator.sample([world.tokenization.prompt(prompt)] * draws, range(draws), seed=0, step=1)
        found = Counter(tuple(y[m].tolist()) for y, m in zip(sampled.responses, sampled.mask, strict=True))
        counts = np.array([found.pop(y, 0) for y in world.responses])
        assert not found
        chi_square = ((counts - draws * row) ** 2 / (draws * row)).sum()
        assert abs(chi_square - 42) < 5 * math.sqrt(2 * 42)


@pytest.mark.parametrize("beta", [0.1, 0.25, 1.0, 5.0])
def test_theory_is_the_definition(beta: float) -> None:
    rng = np.random.default_rng(0)
    reference, policy = (rng.dirichlet(np.ones(43), 3) for _ in range(2))
    policy[0, :20] = 0
    policy /= policy.sum(-1, keepdims=True)
    rewards = rng.uniform(-1, 1, (3, 43))
    best = theory.optimum(reference, rewards, beta)
    np.testing.assert_allclose(best.sum(-1), 1.0, atol=1e-12)
    np.testing.assert_allclose(
        theory.objective(best, reference, rewards, beta), theory.best_objective(reference, rewards, beta), rtol=1e-9
    )
    values = [theory.objective(each, reference, rewards, beta) for each in (best, policy, reference)]
    for i in range(3):
        before, after, scores = table(reference[i]), table(policy[i]), table(rewards[i])
        wanted = optimum(before, scores, beta)
        np.testing.assert_allclose(best[i], list(wanted.values()), rtol=1e-9, atol=1e-15)
        expected_values = [objective(each, before, scores, beta) for each in (wanted, after, before)]
        np.testing.assert_allclose([value[i] for value in values], expected_values, rtol=1e-9)
        assert expected_values[0] > max(expected_values[1:])
        apart = total_variation(after, wanted)
        assert theory.total_variation(policy, best)[i] == pytest.approx(apart, rel=1e-9)
    assert theory.objective_gap(reference, reference, rewards, beta) == pytest.approx(1)
    assert theory.objective_gap(best, reference, rewards, beta) == pytest.approx(0, abs=1e-9)


def test_token_by_token_the_optimum_is_the_same() -> None:
    world = SmallWorld(SEED)
    reference = world.distribution(world.reference)
    found = theory.settled(reference, world.rewards, world.responses, lambda _: theory.exact_rule(0.3))
    np.testing.assert_allclose(found, theory.optimum(reference, world.rewards, 0.3), atol=1e-12)


@pytest.mark.parametrize("name", ["rloo:k2", "rloo:k3", "rloo:k2:whiten", "grpo:k3"])
def test_where_a_loss_settles_its_expected_gradient_is_zero(name: str) -> None:
    """By central differences of each state's own objective: expected advantages less beta times that state's KL."""
    world, beta, rng = SmallWorld(SEED), 2.0, np.random.default_rng(0)
    config = settings(name, beta)
    reference = world.distribution(world.reference)
    policy = expected(config, reference, world.rewards, world.responses)
    np.testing.assert_allclose(policy.sum(-1), 1.0, atol=1e-9)
    scale = deviations(policy, world.rewards, world.responses, config)
    for i in range(len(PROMPTS)):
        now, before, scores = table(policy[i]), table(reference[i]), table(world.rewards[i])
        for begun in [(), (1,), (3,)]:
            tokens = sorted({y[len(begun)] for y in now if y[: len(begun)] == begun})
            worth, chosen, asked = [], [], []
            for token in tokens:
                inside = [y for y in now if y[: len(begun) + 1] == (*begun, token)]
                chosen.append(sum(now[y] for y in inside))
                asked.append(sum(before[y] for y in inside))
                worth.append(sum(now[y] * scores[y] for y in inside) / chosen[-1] / scale[i])
            p, q, r = (np.array(part) for part in (chosen, asked, worth))
            p, q = p / p.sum(), q / q.sum()

            def gain(logits: np.ndarray, q: np.ndarray = q, r: np.ndarray = r) -> float:
                pi = np.exp(logits) / np.exp(logits).sum()
                kl = (pi * np.log(pi / q)).sum() if "k2" in name else (q * np.log(q / pi)).sum()
                return float(pi @ r - beta * kl)

            step = 1e-4 * rng.normal(size=len(p))
            slope = (gain(np.log(p) + step) - gain(np.log(p) - step)) / np.linalg.norm(2 * step)
            assert abs(slope) < 1e-6


def test_a_k1_loss_would_teach_nothing_and_k3_pulls_the_other_way() -> None:
    """The expected gradients over a categorical's own samples, by enumeration."""
    logits = torch.tensor([0.3, -1.0, 0.8], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    logprobs = logits.log_softmax(-1)
    weights = logprobs.exp().detach()
    forward = (logprobs.exp() * (logprobs - reference.log())).sum()
    backward = (reference * (reference.log() - logprobs)).sum()
    wanted = {"k1": torch.zeros_like(logits), "k2": slope(forward, logits), "k3": slope(backward, logits)}
    for kind in ("k1", "k2", "k3"):
        got = slope((weights * estimate(logprobs, reference.log(), kind)).sum(), logits)  # type: ignore[arg-type]
        torch.testing.assert_close(got, wanted[kind], atol=1e-12, rtol=0)
    assert (wanted["k2"] - wanted["k3"]).abs().max() > 0.1


def slope(loss: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
    return gradient


@pytest.mark.parametrize("name", EXACT)
def test_ppo_comes_near_the_optimum(name: str) -> None:
    last = end(name).distances[-1]
    assert last.tv < NEAR


def test_beta_doubled_is_seen() -> None:
    assert end("rloo", given=2 * BETA).distances[-1].tv > FAR


def test_the_sign_of_the_divergence_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf.ppo.targets.estimate", lambda *given: -estimate(*given))
    assert end("rloo").distances[-1].tv > FAR


def test_a_stop_token_that_does_not_count_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = NativeGenerator.sample

    def without_stop(self: NativeGenerator, *given: Any, **named: Any) -> Sampled:
        sampled = sample(self, *given, **named)
        mask = sampled.mask & (sampled.responses != self.stop_id)
        mask[:, 0] = True  # a response has a token
        return replace(sampled, mask=mask)

    monkeypatch.setattr(NativeGenerator, "sample", without_stop)
    monkeypatch.setattr("stages.small_world.TableReward.__call__", padded_lookup)
    assert end("rloo").distances[-1].tv > FAR


def padded_lookup(self: Any, completions: Any) -> torch.Tensor:
    """The reward as it was for the whole response, of which the mask now hides the stop token."""
    places = {y: i for i, y in enumerate(self.responses)}
    prompts = {prompt: i for i, prompt in enumerate(PROMPTS)}
    found = []
    for each in completions:
        tokens = each.response_tokens
        whole = tokens if tokens in places else (*tokens, 0)
        found.append(self.table[prompts[each.prompt], places[whole]])
    return torch.tensor(found, dtype=torch.float32)


def test_the_command_reports_draws_and_goes_on(tmp_path: Path) -> None:
    arguments = ("study", "optimum", "--advantage", "rloo", "--seeds", "1", "--steps", "2", "--output", "here")
    done = rlhf(*arguments, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\x1b" not in done.stdout
    file = tmp_path / "here" / "optimum.json"
    (course,) = json.loads(file.read_text())["courses"]
    assert [distance["step"] for distance in course["distances"]] == [0, 2]
    assert f"{course['distances'][-1]['tv']:.4f}" in done.stdout
    assert (tmp_path / "here" / "optimum.png").read_bytes()[:4] == b"\x89PNG"
    again = rlhf(*arguments, "--variants", "rloo:k3", folder=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    first, second = json.loads(file.read_text())["courses"]
    assert first == course and second["variant"] == "rloo:k3"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--advantage", "ppo"), "--advantage=ppo: there is no ppo; choose from gae, rloo, reinforce++"),
        (("--variants", "k1"), "--variants=k1: there is no k1; choose from gae:whiten"),
        (("--advantage", ""), "nothing to run"),
        (("--beta", "0"), "use --beta 0.25"),
        (("--beta", "half"), "give numbers with commas between them"),
        (("--seeds", "1.5"), "give whole numbers"),
        (("--output", "file"), "--output=file: a file; give a directory"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: Any, said: str
) -> None:
    from launch import cli

    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["rlhf", "study", "optimum", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_all_settings_are_settings() -> None:
    for name in (*EXACT, *OTHERWISE):
        assert settings(name, 0.5).kl.coef == 0.5
