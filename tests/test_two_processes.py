"""One whole PPO step on two processes against the same step on one: 1e-5, sampled tokens equal.

Ragged batches, then each way to estimate advantages, with all weights learning and with adapters alone. The processes
are started once and play all cases of the tests that were chosen; if one of them waits for ever, the fixture fails.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlhf.distributed import barrier, gather_objects, global_max, global_sum, is_main, rank, world_size
from rlhf.ppo.dealing import gather_rows
from rlhf.ppo.experience import own_rows
from rlhf.ppo.update import micro_batches_in_lockstep, minibatches, own_share
from rlhf.sharding import own_part, whole
from rlhf.types import Prompt
from tests.cases_of_two import CASES, RAGGED, RARELY
from tests.cast import KEY, load_cast, save_cast, step, weights
from tests.two_ranks import chosen, two_ranks

SECONDS, EACH = 60.0, 12.0  # to start, and for a case
# Only for who knows that nothing here has used torch yet (tests/mutate.py): without the seconds of imports.
START = os.environ.get("RLHF_TEST_PROCESSES", "spawn")


@dataclass(frozen=True)
class Outcome:
    """What a rank has of a step; rows without padding, by their index in the global batch."""

    rows: dict[int, dict[str, Tensor]]
    statistics: dict[str, float]
    weights: dict[str, Tensor]
    engines: set[str]
    empty: list[list[bool]]  # of each minibatch, which micro-batches are empty work
    held: float  # share of the policy's weights that this rank holds
    scored: int  # tokens that the reference has read
    places: list[list[int | None]]  # of the policy's gradients, before and behind the step


def play(folder: Path, case: str) -> Outcome:
    config = CASES[case].config
    parallelism = CASES[case].parallelism if world_size() > 1 else None
    cast = load_cast(folder, config, CASES[case].lora, parallelism)
    vars(cast.actors.generator)["exact"] = not CASES[case].inexact
    read: list[int] = []
    cast.actors.reference.register_forward_pre_hook(
        lambda _, __, inputs: read.append(inputs["input_ids"].numel() - inputs["packing"].added), with_kwargs=True
    )
    rows = own_rows(config)
    prompts = [Prompt(CASES[case].texts[row // config.responses_per_prompt]) for row in rows]
    places = [gradients(cast.policy.module)]
    made = step(cast, prompts, rows, config)
    places.append(gradients(cast.policy.module))
    experience, targets = made.experience, made.targets
    fields = {
        "tokens": experience.tokens[:, -experience.response_length :],
        "old_logprobs": experience.old_logprobs,
        "values": experience.values,
        "advantages": targets.advantages,
        "returns": targets.returns,
    }
    parts = [
        {name: field[i][experience.mask[i]] for name, field in fields.items()} | {"score": experience.scores[i]}
        for i in range(len(rows))
    ]
    every, _ = gather_rows(experience, targets)
    work = [
        micro_batches_in_lockstep(every, own_share(every, part), config.micro_batch_tokens)
        for part in minibatches(config, KEY)
    ]
    return Outcome(
        dict(zip(rows, parts, strict=True)),
        made.statistics,
        {"policy": weights(cast.policy.module)} | ({"value": weights(cast.value.module)} if cast.value else {}),
        {cast.policy.name, cast.value.name if cast.value else cast.policy.name},
        [[batch is None for batch in batches] for batches in work],
        held(cast.policy.module),
        sum(read),
        places,
    )


def gradients(model: nn.Module) -> list[int | None]:
    """Where they are."""
    learning = (parameter for parameter in model.parameters() if parameter.requires_grad)
    return [None if parameter.grad is None else parameter.grad.data_ptr() for parameter in learning]


def held(model: nn.Module) -> float:
    """The share of a model's weights that this rank has between two steps."""
    own = sum(own_part(parameter).numel() for parameter in model.parameters())
    return own / sum(whole(parameter).numel() for parameter in model.parameters())


def collectives() -> dict[str, Any]:
    barrier()
    mine = torch.tensor([float(rank() + 1)])
    return {
        "sum": float(global_sum(mine)),
        "max": global_max(10 - rank()),
        "gathered": gather_objects(("rank", rank())),
        "main": is_main(),
    }


def play_all(folder: Path, cases: Sequence[str]) -> dict[str, Any]:
    return {case: play(folder, case) for case in cases} | {"collectives": collectives()}


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[dict[str, Any]]]:
    """Of a single process, and of the two ranks."""
    folder, asked = save_cast(tmp_path_factory.mktemp("cast")), chosen(request, "case")
    cases = [case for case in CASES if case in asked]
    with two_ranks(play_all, folder, cases, SECONDS + EACH * len(cases), START) as both:
        alone = play_all(folder, cases)
    yield [alone, *both]


pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks
every_case = pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.soak] * (case in RARELY)) for case in CASES]
)


@every_case
def test_each_rank_has_its_rows_and_samples_the_same_tokens(outcomes: list[dict[str, Any]], case: str) -> None:
    alone, first, second = (outcome[case].rows for outcome in outcomes)
    assert sorted([*first, *second]) == sorted(alone) and not first.keys() & second.keys()
    for i, row in (first | second).items():
        assert row["tokens"].tolist() == alone[i]["tokens"].tolist()


@every_case
@pytest.mark.parametrize("field", ["score", "old_logprobs", "values", "advantages", "returns"])
def test_figures_of_each_token_are_equal(outcomes: list[dict[str, Any]], case: str, field: str) -> None:
    alone, first, second = (outcome[case].rows for outcome in outcomes)
    for i, row in (first | second).items():
        torch.testing.assert_close(row[field], alone[i][field], atol=1e-5, rtol=1e-5)


@every_case
def test_statistics_are_equal_on_every_rank(outcomes: list[dict[str, Any]], case: str) -> None:
    """The norms show the gradient itself: Adam would hide a factor."""
    alone, *ranks = (outcome[case].statistics for outcome in outcomes)
    for statistics in ranks:
        assert statistics == pytest.approx(alone, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("case", RAGGED)
def test_no_figure_is_trivially_equal(outcomes: list[dict[str, Any]], case: str) -> None:
    alone = outcomes[0][case].statistics
    zeros = [name for name, value in alone.items() if value == 0 and name != "policy/approxkl_first"]  # 0 on policy
    assert zeros == ["policy/skipped_steps", "value/skipped_steps"]


@every_case
def test_weights_are_equal_after_the_step(outcomes: list[dict[str, Any]], case: str) -> None:
    alone, first, second = (outcome[case].weights for outcome in outcomes)
    assert list(alone) == ["policy", "value"][: 2 if CASES[case].config.has_value else 1]
    for model in alone:
        assert torch.equal(first[model], second[model])
        torch.testing.assert_close(first[model], alone[model], atol=1e-5, rtol=0)


@every_case
def test_ranks_ran_in_lockstep_with_uneven_work(outcomes: list[dict[str, Any]], case: str) -> None:
    """Otherwise the other tests of a case would show little."""
    _, first, second = (outcome[case] for outcome in outcomes)
    assert first.engines == second.engines
    strategy = CASES[case].parallelism.strategy
    if strategy == "fsdp":
        assert all(name.startswith("FSDP") for name in first.engines)
    else:
        assert first.engines == {"DistributedDataParallel" if strategy == "ddp" else "DeepSpeedEngine"}
    for outcome in (first, second):
        assert (outcome.held < 0.6) == (strategy in ("fsdp", "zero3")), outcome.held
    assert [len(work) for work in first.empty] == [len(work) for work in second.empty]
    uneven = [mine != theirs for mine, theirs in zip(first.empty, second.empty, strict=True)]
    assert any(uneven) or case.startswith(("rloo", "grpo"))  # whose tokens are dealt out evenly
    if case.startswith("nothing to do"):
        assert all(uneven) and all(len(work) == 1 for work in first.empty)
    else:
        assert max(len(work) for work in first.empty) > 1
        lengths = {len(row["tokens"]) for row in second.rows.values()}
        assert (lengths == {1}) == case.startswith("one rank ends at once")


@pytest.mark.parametrize("case", ["ragged"])
def test_gradients_are_where_they_are_sent_from_from_the_first_step_on(
    outcomes: list[dict[str, Any]], case: str
) -> None:
    """Others would stand beside them while micro-batches that are not sent are added up."""
    for before, behind in (outcome[case].places for outcome in outcomes[1:]):
        assert before == behind and None not in before


@pytest.mark.parametrize("case", ["ragged", "one rank ends at once"])
def test_ranks_score_about_as_many_tokens(outcomes: list[dict[str, Any]], case: str) -> None:
    """Rank 0 has the long prompts, and would have more than twice as many."""
    alone, first, second = (outcome[case].scored for outcome in outcomes)
    assert first + second == alone
    assert abs(first - second) < 0.15 * alone


def test_collectives_are_identities_alone_and_span_the_ranks_together(outcomes: list[dict[str, Any]]) -> None:
    alone, first, second = (outcome["collectives"] for outcome in outcomes)
    assert alone == {"sum": 1.0, "max": 10, "gathered": [("rank", 0)], "main": True}
    together = {"sum": 3.0, "max": 10, "gathered": [("rank", 0), ("rank", 1)]}
    assert first == together | {"main": True}
    assert second == together | {"main": False}
