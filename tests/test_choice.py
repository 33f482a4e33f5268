"""Tokens are drawn from the distribution that logits say, by noise that is keyed and uniform."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from rlhf.generation.choice import choose
from rlhf.generation.noise import uniforms

ALMOST_ONE = 1 - 2**-53
PROBABILITIES = [0.0, 0.4, 0.05, 0.0, 0.25, 0.2, 0.1, 0.0]


def draws(noise: Tensor, top_p: float = 1.0, probabilities: Sequence[float] = PROBABILITIES) -> Tensor:
    logits = torch.tensor(probabilities).log().expand(len(noise), -1)
    return torch.bincount(choose(logits, noise, top_p)[0], minlength=len(probabilities)) / len(noise)


def test_choose_inverts_the_distribution() -> None:
    """Evenly spread noise meets every probability to one part in 20,000."""
    even = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    np.testing.assert_allclose(draws(even), PROBABILITIES, atol=1.01 / 20_000)


def test_choose_with_the_noise_in_use_draws_from_the_distribution() -> None:
    shares = draws(uniforms(0, 1, range(20_000), 1)[:, 0])
    expected = torch.tensor(PROBABILITIES)
    kept = expected > 0
    assert (shares[~kept] == 0).all()
    chi_square = 20_000 * float(((shares - expected)[kept].square() / expected[kept]).sum())
    assert chi_square < 18.5  # 99.9 % quantile with 4 degrees of freedom


@pytest.mark.parametrize("top_p", [1.0, 0.99])
@pytest.mark.parametrize("noise", [0.0, 0.4, 0.45, 0.7, ALMOST_ONE])
def test_what_has_no_probability_is_never_chosen(noise: float, top_p: float) -> None:
    logits = torch.tensor([PROBABILITIES]).log()
    token = int(choose(logits, torch.tensor([noise], dtype=torch.float64), top_p)[0])
    assert PROBABILITIES[token] > 0


def test_choose_finds_a_needle_in_a_large_vocabulary() -> None:
    """The likely token is found wherever it stands, and the noise just below one stays inside."""
    for place in (0, 77_777, 151_999):
        logits = torch.full((2, 152_000), -40.0)
        logits[:, place] = 40.0
        assert choose(logits, torch.tensor([0.5, ALMOST_ONE], dtype=torch.float64), 1.0)[0].tolist() == [place, place]


@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("vocabulary", [5, 127, 128, 129, 1000, 1024])  # parts of 128, some of them not whole
def test_choose_is_inversion_in_plain(vocabulary: int, top_p: float) -> None:
    torch.manual_seed(vocabulary)
    logits, noise = torch.randn(200, vocabulary) * 2, torch.rand(200, dtype=torch.float64)
    probabilities = torch.softmax(logits.double(), -1)
    kept = probabilities.clone()
    for row in kept if top_p < 1 else ():
        ordered, order = row.sort(descending=True)
        row[order[ordered.cumsum(0) - ordered >= top_p]] = 0.0
    wanted = torch.searchsorted(kept.cumsum(-1), noise[:, None] * kept.sum(-1, keepdim=True), right=True)
    found = choose(logits, noise, top_p)
    assert torch.equal(found.tokens, wanted.squeeze(-1))
    expected = probabilities.gather(-1, wanted).squeeze(-1).log().float()
    torch.testing.assert_close(found.logprobs, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.log_kept, kept.sum(-1).log().float(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("vocabulary", [5, 128, 300])
def test_choose_ends_no_run(vocabulary: int, top_p: float) -> None:
    """Whatever is no number: another place says so; here any token of the vocabulary will do."""
    some = torch.randn(vocabulary)
    rows = [torch.full_like(some, each) for each in (torch.nan, torch.inf, -torch.inf)]
    for each in (torch.nan, torch.inf, -torch.inf):
        rows += [some.clone()]
        rows[-1][vocabulary // 2] = each
    logits = torch.stack(rows).repeat(3, 1)
    noise = torch.tensor([0.0, 0.5, ALMOST_ONE], dtype=torch.float64).repeat_interleave(len(rows))
    tokens = choose(logits, noise, top_p).tokens
    assert ((tokens >= 0) & (tokens < vocabulary)).all()


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (0.1, {1}),
        (0.39, {1}),
        (0.41, {1, 4}),
        (0.64, {1, 4}),
        (0.66, {1, 4, 5}),
        (0.9, {1, 4, 5, 6}),
        (0.99, {1, 2, 4, 5, 6}),
    ],
)
def test_top_p_keeps_the_smallest_set_in_proportion(top_p: float, kept: set[int]) -> None:
    even = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    total = sum(PROBABILITIES[token] for token in kept)
    expected = [probability / total if token in kept else 0.0 for token, probability in enumerate(PROBABILITIES)]
    np.testing.assert_allclose(draws(even, top_p), expected, atol=1.01 / 20_000)


def test_noise_is_the_same_however_rows_are_spread() -> None:
    whole = uniforms(1, 2, range(10), 6)
    halves = [uniforms(1, 2, range(i, 10, 2), 6) for i in range(2)]
    assert torch.equal(torch.stack([halves[i % 2][i // 2] for i in range(10)]), whole)
    assert torch.equal(uniforms(1, 2, [7, 3], 6), whole[[7, 3]])
    assert torch.equal(uniforms(1, 2, range(10), 3), whole[:, :3])


def keys() -> Iterator[tuple[int, int, int]]:
    for seed in (0, 1, 2**31 - 1):
        for step in range(4):
            for row in range(50):
                yield seed, step, row


def test_noise_differs_by_seed_step_row_and_position() -> None:
    values = torch.cat([uniforms(seed, step, [row], 20)[0] for seed, step, row in keys()])
    assert values.unique().numel() == values.numel()
    assert float(values.min()) >= 0 and float(values.max()) < 1


def test_noise_is_uniform_and_uncorrelated() -> None:
    """Within four standard errors, along rows, positions, steps and seeds."""
    noise = torch.stack(
        [torch.stack([uniforms(seed, step, range(40), 25) for step in range(10)]) for seed in range(10)]
    )
    count = noise.numel()
    assert abs(float(noise.mean()) - 1 / 2) < 4 * (1 / 12 / count) ** 0.5
    assert abs(float(noise.var()) - 1 / 12) < 4 * (1 / 180 / count) ** 0.5
    centred = (noise - 1 / 2) * 12**0.5
    for axis in range(4):
        neighbours = centred.narrow(axis, 1, centred.shape[axis] - 1) * centred.narrow(axis, 0, centred.shape[axis] - 1)
        assert abs(float(neighbours.mean())) < 4 / neighbours.numel() ** 0.5
    counts = torch.bincount((noise.flatten() * 16).long(), minlength=16)
    chi_square = float(((counts - count / 16).square() / (count / 16)).sum())
    assert chi_square < 37.7  # 99.9 % quantile with 15 degrees of freedom
