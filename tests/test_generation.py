import inspect
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlhf.adapters import add_lora
from rlhf.batching import pad
from rlhf.config import GenerationConfig, LoraConfig
from rlhf.generation.native import NativeGenerator
from rlhf.generation.together import name_of_cache
from rlhf.logprobs import response_logprobs
from rlhf.types import Sampled
from tests.test_models import tiny_policy

PAD, STOP, TRIGGER = 0, 1, 42
PROMPTS = [[7], [9, 10, 11], [20, 21, 22, 23, 24, 25, 26], [9, 10, 11], [30, 31], [50, 51, 52, 53], [60], [70, 71]]


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
