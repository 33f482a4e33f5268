import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlhf.adapters import add_lora
from rlhf.batching import pad
from rlhf.config import GenerationConfig, LoraConfig
from rlhf.generation.choice import choose
from rlhf.generation.native import NativeGenerator
from rlhf.generation.noise import uniforms
from rlhf.generation.together import name_of_cache
from rlhf.logprobs import response_logprobs
from rlhf.types import Sampled
from tests.test_models import tiny_policy

PAD, STOP, TRIGGER = 0, 1, 42
PROMPTS = [[7], [9, 10, 11], [20, 21, 22, 23, 24, 25, 26], [9, 10, 11], [30, 31], [50, 51, 52, 53], [60], [70, 71]]
ALMOST_ONE = 1 - 2**-53


@pytest.fixture
def policy() -> nn.Module:
    return tiny_policy()


class Called(nn.Module):
    """Has the arguments of transformers since 5.24."""

    def forward(self, input_ids: Tensor, cache: Any = None) -> None:
        """Nothing."""


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for it
def test_the_cache_has_the_name_that_the_model_gives_it(policy: nn.Module) -> None:
    assert name_of_cache(Called()) == "cache"
    name = name_of_cache(policy)
    assert name in inspect.signature(policy.forward).parameters
    assert name_of_cache(add_lora(policy, LoraConfig(rank=2), "policy")) == name


def add_to_stop(policy: Any, bonus: float) -> list[int]:
    """Add to the stop token's logits; returns the number of sequences in each forward to come."""
    head = policy.get_output_embeddings()
    head.bias = nn.Parameter(torch.zeros(head.out_features))
    head.bias.data[STOP] = bonus
    return sequences_of(policy)


def sequences_of(policy: nn.Module, change: Callable[[Tensor, Tensor], None] | None = None) -> list[int]:
    """The number of sequences in each forward to come; `change` is given their last tokens and their logits."""
    sizes: list[int] = []

    def hook(_: nn.Module, __: Any, inputs: dict[str, Any], output: Any) -> None:
        kept = inputs["logits_to_keep"]
        if isinstance(kept, Tensor) and "packing" not in inputs:
            sizes.append(len(kept))
            if change is not None:
                change(inputs["input_ids"][0, kept], output.logits[0])

    policy.register_forward_hook(hook, with_kwargs=True)
    return sizes


OFTEN = 4.0  # ends often


def sample(
    policy: nn.Module, prompts: Sequence[Sequence[int]] = PROMPTS, rows: Sequence[int] | None = None, **options: Any
) -> Sampled:
    settings = {"max_new_tokens": 12} | options
    generator = NativeGenerator(policy, STOP, PAD, GenerationConfig(**settings))
    return generator.sample(prompts, range(len(prompts)) if rows is None else rows, seed=3, step=5)


def texts(sampled: Sampled) -> list[list[int]]:
    return [row[mask].tolist() for row, mask in zip(sampled.responses, sampled.mask, strict=True)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.7}, {"temperature": 1.6, "batch_size": 3}, {"temperature": 0.7, "top_p": 0.6}]
)
def test_logprobs_are_those_of_a_training_forward(policy: nn.Module, options: dict[str, Any], training: bool) -> None:
    add_to_stop(policy, OFTEN)
    sampled = sample(policy.train(training), **options)
    assert policy.training is training
    lengths = sampled.mask.sum(-1)
    assert lengths.unique().numel() > 1 and int(lengths.max()) == sampled.responses.shape[1]
    prompts, prompt_mask = pad(PROMPTS, PAD, "left")
    tokens = torch.cat([prompts, sampled.responses], dim=-1)
    attention_mask = torch.cat([prompt_mask, sampled.mask], dim=-1)
    with torch.no_grad():
        forward = response_logprobs(
            policy, tokens, attention_mask, sampled.responses.shape[1], options.get("temperature", 1.0)
        )
    expected = forward.logprobs.masked_fill(~sampled.mask, 0.0)
    torch.testing.assert_close(sampled.logprobs, expected, atol=1e-5, rtol=0)


def test_tokens_belong_to_prompt_and_row_not_to_the_batch(policy: nn.Module) -> None:
    add_to_stop(policy, OFTEN)
    whole = sample(policy)
    assert texts(whole)[1] != texts(whole)[3]  # of one prompt
    assert len({len(text) for text in texts(whole)}) > 3
    for size in (1, 2, 3, 100):
        assert texts(sample(policy, batch_size=size)) == texts(whole)
    order = [5, 2, 7, 0, 1, 6, 4, 3]
    permuted = sample(policy, [PROMPTS[i] for i in order], order)
    assert texts(permuted) == [texts(whole)[i] for i in order]
    halves = [sample(policy, PROMPTS[i::2], range(i, len(PROMPTS), 2)) for i in range(2)]
    assert [texts(halves[i % 2])[i // 2] for i in range(len(PROMPTS))] == texts(whole)
    for i, row in enumerate(order):
        length = int(whole.mask[row].sum())
        torch.testing.assert_close(permuted.logprobs[i, :length], whole.logprobs[row, :length], atol=1e-5, rtol=0)


def test_seed_step_and_row_make_other_responses(policy: nn.Module) -> None:
    generator = NativeGenerator(policy, STOP, PAD, GenerationConfig(max_new_tokens=12))

    def answer(seed: int, step: int, row: int) -> list[list[int]]:
        return texts(generator.sample([[9, 10]], [row], seed=seed, step=step))

    assert answer(1, 2, 3) == answer(1, 2, 3)
    distinct = [answer(*key) for key in [(1, 2, 3), (0, 2, 3), (1, 0, 3), (1, 2, 0), (2, 1, 3), (1, 3, 2)]]
    assert all(a != b for i, a in enumerate(distinct) for b in distinct[:i])


def test_a_stop_ends_a_row_and_its_work(policy: nn.Module) -> None:
    """Rows whose prompt ends in TRIGGER stop at once; the others never do."""

    def change(tokens: Tensor, logits: Tensor) -> None:
        logits[:, STOP] += torch.where(tokens == TRIGGER, 1e4, -1e4)

    sizes = sequences_of(policy, change)
    prompts = [[5, TRIGGER], [5, 6], [TRIGGER], [7]]
    sampled = sample(policy, prompts, max_new_tokens=4)
    assert sampled.mask.tolist() == [[True, False, False, False], [True] * 4] * 2
    assert sampled.finished.tolist() == [True, False, True, False]
    assert sampled.responses[[0, 2]].tolist() == [[STOP, PAD, PAD, PAD]] * 2
    assert not (sampled.responses[[1, 3]] == STOP).any()
    assert (sampled.logprobs[~sampled.mask] == 0).all()
    assert sizes == [4, 2, 2, 2]


def test_when_all_stop_at_once_nothing_more_is_computed(policy: nn.Module) -> None:
    sizes = add_to_stop(policy, 1e4)
    sampled = sample(policy)
    assert sizes == [len({tuple(prompt) for prompt in PROMPTS})]  # one that occurs twice is read once
    assert sampled.mask.tolist() == [[True]] * len(PROMPTS)
    assert sampled.finished.all() and (sampled.responses == STOP).all()


def test_a_stop_as_the_last_token_allowed_is_an_end(policy: nn.Module) -> None:
    add_to_stop(policy, 1e4)
    assert sample(policy, max_new_tokens=1).finished.all()


def test_almost_no_temperature_is_greedy_search(policy: nn.Module) -> None:
    add_to_stop(policy, 1.5)
    sampled = sample(policy, temperature=1e-3)
    tokens, mask = pad(PROMPTS, PAD, "left")
    generated: Tensor = policy.generate(
        input_ids=tokens, attention_mask=mask.long(), max_new_tokens=12, do_sample=False
    )  # type: ignore[operator]
    expected = generated[:, tokens.shape[1] :]
    assert torch.equal(sampled.responses, expected)
    assert len({len(text) for text in texts(sampled)}) > 1


def test_weights_are_shared_and_can_be_exchanged(policy: nn.Module) -> None:
    generator = NativeGenerator(policy, STOP, PAD, GenerationConfig(max_new_tokens=12))

    def answer() -> list[list[int]]:
        return texts(generator.sample(PROMPTS, range(len(PROMPTS)), seed=3, step=5))

    other = tiny_policy(seed=1)
    before, expected = answer(), texts(sample(other))
    generator.load(other)
    assert answer() == expected != before
    generator.load(policy)
    with torch.no_grad():
        for mine, theirs in zip(policy.parameters(), other.parameters(), strict=True):
            mine.copy_(theirs)
    assert answer() == expected


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
