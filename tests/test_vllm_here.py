"""vLLM in the training process, as far as it can be said without it; tests/soak/test_vllm_here.py asks the engine."""

from __future__ import annotations

import importlib.util
import os
import random
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
import torch

from rlhf import memory
from rlhf.config import GenerationConfig, Recipe
from rlhf.errors import ConfigError, GenerationError
from rlhf.generation import vllm_here
from rlhf.generation.answers import as_sampled
from rlhf.generation.vllm_here import SETTINGS, start, unchanged
from rlhf.memory import Computation, RolloutLoad
from rlhf.memory.beside import longest_sequence, room
from rlhf.memory.parts import total_of
from rlhf.recipe_memory import estimate
from rlhf.shapes import Shape, shape_of_config, shape_of_size
from stages.preflight import packages_are_there, parallelism_fits
from stages.sampling import rollout_generator
from tests.test_models import tiny_policy, tiny_tokenization

HERE: dict[str, Any] = {"engine": "vllm", "weights": "replica"}
RECIPE = Recipe.model_validate({"ppo": {"generation": HERE}})
absent = pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is installed here")


@absent
def test_without_vllm_a_run_does_not_begin() -> None:
    with pytest.raises(ConfigError, match="weights=replica: vllm is not installed in this environment; install it"):
        packages_are_there(RECIPE, ["ppo"])
    packages_are_there(RECIPE, ["sft", "reward"])


@absent
def test_without_vllm_the_generator_says_so_and_joins_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*SETTINGS, "VLLM_LOGGING_LEVEL"):
        monkeypatch.setenv(name, "0")  # put back behind the test
    with pytest.raises(GenerationError, match=r"vllm: does not start here \(ModuleNotFoundError.*weights=server"):
        start(tiny_policy(), RECIPE.ppo.generation, False)
    assert not torch.distributed.is_initialized()


def test_it_samples_in_one_process_alone() -> None:
    parallelism_fits(RECIPE, "ppo", 1)
    with pytest.raises(ConfigError, match=r"engine=vllm: 2 processes, .* use weights=server, or .*processes=1"):
        parallelism_fits(RECIPE, "ppo", 2)
    native = Recipe.model_validate({"ppo": {"generation": {"weights": "replica"}}})
    parallelism_fits(native, "ppo", 2)


def test_its_weights_and_its_room_for_keys_and_values_stay_from_step_to_step() -> None:
    shape = Shape(hidden=10, mlp=20, layers=1, query=10, key_value=5, vocabulary=7, context=64, weights=1000)
    load = RolloutLoad(prompt=6, response=2, generation_rows=3, micro_batch_tokens=16, sampler="beside")
    how = Computation(bfloat16=True, checkpointing=False)
    found = memory.ppo(shape, shape, how, load)
    assert found.standing["policy"]["generator"] == 2 * 1000
    assert found.standing["policy"]["KV cache"] == 3 * (2 * 128) * 2 * 5 * 2  # a block begun, and one more, each
    assert total_of(found.passing["sampling"]) == 0
    size = shape_of_size(500_000_000)
    settled = RECIPE.model_copy(
        update={"model": RECIPE.model.model_copy(update={"dtype": "bfloat16", "activation_checkpointing": False})}
    )
    assert estimate(settled, "ppo", size).standing["policy"]["generator"] == 2 * size.weights


def test_there_is_room_for_all_rows_and_for_one_of_the_longest() -> None:
    assert room(3, 100, 64) == 3 * (2 + 1) * 128
    assert room(1, 100, 4096) == (32 + 1) * 128
    assert room(1, 24, 100_000) == (64 + 1) * 128 and longest_sequence(24, 100_000) == 8192
    assert longest_sequence(6000, 100_000) == 12_000


class Vllm(NamedTuple):
    """What stands in for vLLM, which is not installed where these tests run: as much of it as `start` touches."""

    arguments: Callable[..., Any]
    engine: Any = SimpleNamespace(from_engine_args=lambda options: options)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make it what is imported, in a process that keeps its variables and joins no group."""
        for name in (*SETTINGS, "VLLM_LOGGING_LEVEL"):
            monkeypatch.setenv(name, "0")
        layers = [f"vllm.model_executor.layers.{part}" for part in ("utils", "linear", "vocab_parallel_embedding")]
        modules = {"vllm.engine.arg_utils": SimpleNamespace(EngineArgs=self.arguments)}
        modules |= {"vllm.v1.engine.llm_engine": SimpleNamespace(LLMEngine=self.engine)}
        for name, module in (modules | {name: SimpleNamespace() for name in layers}).items():
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(vllm_here, "join_process_group", lambda alone: None)


@pytest.mark.parametrize(
    ("ppo", "generation", "rows"),
    [
        ({}, {}, 64),
        ({"prompts_per_step": 8, "held_out": {"prompts": 24}}, {}, 24),
        ({"prompts_per_step": 8, "evaluate_every": 0}, {}, 8),
        ({}, {"batch_size": 5, "max_new_tokens": 200}, 5),
        ({"prompts_per_step": 1, "evaluate_every": 0, "minibatches": 1}, {"max_new_tokens": 1}, 1),
    ],
)
def test_what_vllm_is_given_is_what_the_plan_counts(
    ppo: dict[str, Any], generation: dict[str, Any], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {"dtype": "float32", "activation_checkpointing": False}
    recipe = Recipe.model_validate({"model": model, "ppo": ppo | {"generation": HERE | generation}})
    Vllm(SimpleNamespace).install(monkeypatch)
    policy = tiny_policy(context=1024)
    made: Any = rollout_generator(policy, tiny_tokenization(), recipe)
    shape = shape_of_config(cast(Any, policy).config.to_dict(), "policy")
    counted = estimate(recipe, "ppo", shape).standing["policy"]["KV cache"]
    assert made.engine.kv_cache_memory_bytes == counted and made.engine.max_num_seqs == rows
    assert made.context == made.engine.max_model_len == 1024


def unknown_argument(*, model: str) -> None:
    """Options of a version that has fewer."""


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (Vllm(unknown_argument), "TypeError: .*unexpected keyword argument"),
        (Vllm(SimpleNamespace, SimpleNamespace()), "AttributeError: .*from_engine_args"),
        (Vllm(lambda **options: os.stat("/nowhere/at/all")), "FileNotFoundError: "),
    ],
)
def test_another_version_of_vllm_ends_in_a_line(other: Vllm, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other.install(monkeypatch)
    with pytest.raises(GenerationError, match=rf"^vllm: does not start here \({said}.*\); vllm 0.32 was tried; use "):
        start(tiny_policy(), RECIPE.ppo.generation, False)


def test_what_vllm_does_to_the_process_is_put_back() -> None:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[union-attr, index]
    threads, count = torch.set_num_threads, torch.get_num_threads()
    with unchanged():
        torch.manual_seed(2)
        random.seed(2)
        np.random.seed(2)
        threads(count + 1)
        torch.set_num_threads = print  # type: ignore[assignment]
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]  # type: ignore[union-attr, index]
    assert torch.set_num_threads is threads and torch.get_num_threads() == count


def test_answers_are_padded_and_finished_where_they_stop() -> None:
    sampled = as_sampled([([5, 1], [-0.5, -1.0]), ([6, 7, 8], [-1.0, -2.0, -3.0])], stop_id=1, pad_id=0)
    assert sampled.responses.tolist() == [[5, 1, 0], [6, 7, 8]]
    assert sampled.mask.tolist() == [[True, True, False], [True, True, True]]
    assert sampled.finished.tolist() == [True, False]
    assert sampled.logprobs.tolist() == [[-0.5, -1.0, 0.0], [-1.0, -2.0, -3.0]]


def test_settings() -> None:
    assert GenerationConfig.model_validate(HERE).vllm_here
    assert not GenerationConfig(weights="replica").vllm_here
    with pytest.raises(ValueError, match="engine=vllm with weights=shared: only vllm samples on servers, and it has"):
        GenerationConfig(engine="vllm")
