"""Steps of PPO to play on two processes and on one: ragged batches, ways to estimate advantages, ways to shard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rlhf.config import ParallelismConfig, PpoConfig
from tests.cast import CONFIG

LONG, SHORT = "The cat sat on the mat, and the dog ", ("a", "it", "ran", "on")
TEXTS = [text for i in range(4) for text in (LONG[: 36 - 4 * i], SHORT[i])]


@dataclass(frozen=True)
class Case:
    """A step to play."""

    texts: Sequence[str]
    minibatches: int
    budget: int  # of a micro-batch, in tokens
    changes: Mapping[str, Any] = field(default_factory=dict)
    lora: bool = False
    parallelism: ParallelismConfig = ParallelismConfig()
    inexact: bool = False  # old log-probs come from a forward of their own

    @property
    def config(self) -> PpoConfig:
        sizes = {"prompts_per_step": len(self.texts), "minibatches": self.minibatches}
        return PpoConfig.model_validate(
            CONFIG.model_dump() | sizes | {"micro_batch_tokens": self.budget} | self.changes
        )


ELSEWHERE = "ragged, sampled elsewhere"
RAGGED = {
    # Rank 0 has the long prompts, and with them more micro-batches.
    "ragged": Case(TEXTS, 2, 20),
    # Behind `!` the stop token is certain, so all of rank 1's responses are one token long.
    "one rank ends at once": Case([text + "!" * (text in SHORT) for text in TEXTS], 2, 20),
    # Three rows on one rank and two on the other; every minibatch is one row, so one rank has no work at all.
    "nothing to do": Case(["The cat", "a", "and the dog", "it", "on the mat"], 5, 1000),
}
SAMPLING = CONFIG.generation.model_dump()
GROUPS = {"responses_per_prompt": 2}
ESTIMATORS: dict[str, dict[str, Any]] = {
    "gae": {"whiten_rewards": True, "entropy_bonus": 0.1},
    "trunk": {"value_start": "trunk", "value_coef": 0.4},
    "rloo": {"advantage": "rloo", **GROUPS, "kl": {"estimator": "k2", "place": "loss"}},
    "reinforce++": {"advantage": "reinforce++", "normalize_scores": "running", "target_kl": 1.0},
    "grpo": {"advantage": "grpo", **GROUPS, "ratio": "sequence", "clip": 0.01},
}
CASES = RAGGED | {
    name + " with adapters" * lora: Case(TEXTS[: 4 if "responses_per_prompt" in changes else 8], 2, 20, changes, lora)
    for name, changes in ESTIMATORS.items()
    for lora in (False, True)
}
CASES[ELSEWHERE] = Case(TEXTS, 2, 20, inexact=True)
SHARDED = ParallelismConfig(strategy="fsdp")
DEEPSPEED = {
    f"{name}, zero{stage}": replace(CASES[name], parallelism=ParallelismConfig(strategy=f"zero{stage}"))
    for stage in (1, 2, 3)
    for name in CASES
}
# `make test` plays these of FSDP2's and DeepSpeed's, `make soak ARGS="-k two_processes"` the rest.
OFTEN = {f"{name}, {how}" for how in ("fsdp", "zero3") for name in (*RAGGED, "trunk", "rloo with adapters")}
OFTEN |= {"gae with adapters, fsdp", "ragged, zero2", "ragged, fsdp with replicas", "trunk, fsdp with offloading"}
OFTEN |= {"ragged, fsdp, offloaded"}
CASES |= {f"{name}, fsdp": replace(case, parallelism=SHARDED) for name, case in CASES.items()}
CASES["ragged, fsdp with replicas"] = replace(
    CASES["ragged"], parallelism=SHARDED, changes={"generation": {**SAMPLING, "weights": "replica"}}
)
CASES["trunk, fsdp with offloading"] = replace(
    CASES["trunk"], parallelism=ParallelismConfig(strategy="fsdp", cpu_offload=True)
)
CASES["ragged, fsdp, offloaded"] = replace(
    CASES["ragged"], parallelism=SHARDED, changes={"offload": ["reference", "reward", "optimizer"]}
)
CASES |= DEEPSPEED
CASES["ragged, zero3 with replicas"] = replace(
    CASES["ragged"],
    parallelism=ParallelismConfig(strategy="zero3"),
    changes={"generation": {**SAMPLING, "weights": "replica"}},
)
for number in (2, 3):
    CASES[f"gae, zero{number} with offloading"] = replace(
        CASES["gae"], parallelism=ParallelismConfig(strategy=f"zero{number}", cpu_offload=True)
    )
RARELY = [case for case in CASES if ("zero" in case or "fsdp" in case) and case not in OFTEN]
