"""What a PPO step starts from: how responses are sampled, what scores them, what keeps them near the reference."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlhf.config.sections import Address, AffectsNothing, NonNegativeFloat, PositiveFloat, PositiveInt, Section


class GenerationServerConfig(Section):
    """Servers of responses, each started by `rlhf generation serve`; RLHF_GENERATION_TOKEN is their token."""

    addresses: list[str] = []  # http://host:port of each; rows are dealt out to them
    # For so long a server that is away, or not up yet, is asked again.
    patience_seconds: PositiveFloat = 600.0
    timeout_seconds: PositiveFloat = 600.0  # for one answer, and for all weights to arrive

    @model_validator(mode="after")
    def _addresses_are_addresses(self) -> GenerationServerConfig:
        plain = [address.rstrip("/") for address in self.addresses]
        for number, address in enumerate(plain):
            where = f"addresses[{number}]"
            if "@" in address or "?" in address:  # not shown: it may hold a secret
                raise ValueError(f"{where}: holds a user or a query; set RLHF_GENERATION_TOKEN in place of a secret")
            if not re.fullmatch(r"https?://(\[[0-9a-fA-F:]+\]|[\w.-]+):\d{1,5}(/[\w./-]*)?", address):
                raise ValueError(f"{where}={address!r}: is no address of a server; give for example http://node-7:8000")
            if address in plain[:number]:
                raise ValueError(f"{where}={address!r}: is there twice; name each server once")
        return self


class GenerationConfig(Section):
    """How responses are sampled."""

    engine: Literal["native", "vllm"] = "native"  # PPO's sampler; all else samples natively
    # The sampler's. shared: the policy's own, under fsdp as they are shared out, all processes decoding in step.
    # replica: whole on every process while it samples, which is faster, where they fit; of vLLM, in this one process
    # from beginning to end. server: vLLM's, elsewhere, which is given the policy's after every step.
    weights: Annotated[Literal["shared", "replica", "server"], AffectsNothing] = "shared"
    server: Annotated[GenerationServerConfig, AffectsNothing] = GenerationServerConfig()
    # native on a GPU: decoding as CUDA graphs, compiled, where the policy's layers are known and no adapters; elsewhere
    # nothing changes. Not run on a GPU yet.
    cuda_graphs: Annotated[bool, AffectsNothing] = False
    max_new_tokens: PositiveInt = 24
    temperature: PositiveFloat = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0  # under 1 PPO needs importance_cap
    # Rows of a rank decoded together; of a server, requests of a rank at a time.
    batch_size: Annotated[PositiveInt, AffectsNothing] = 256

    @property
    def vllm_here(self) -> bool:
        """Whether vLLM samples in the training process."""
        return self.engine == "vllm" and self.weights == "replica"

    @model_validator(mode="after")
    def _servers_where_they_are_asked(self) -> GenerationConfig:
        if self.weights == ("server" if self.engine == "native" else "shared"):
            raise ValueError(
                f"engine={self.engine} with weights={self.weights}: only vllm samples on servers, and it has weights "
                "of its own; use engine=vllm with weights=server or replica, or engine=native with shared or replica"
            )
        if self.engine == "vllm" and self.cuda_graphs:
            raise ValueError("cuda_graphs=true with engine=vllm: vLLM has graphs of its own; use cuda_graphs=false")
        if self.weights == "server" and not self.server.addresses:
            raise ValueError(
                "engine=vllm without a server: start one with rlhf generation serve RUN, and name it, for example "
                "server.addresses=[http://127.0.0.1:8000]"
            )
        return self


class KlConfig(Section):
    """The penalty that keeps the policy near the reference."""

    coef: NonNegativeFloat = 0.05  # beta, reward per nat
    controller: Literal["fixed", "adaptive"] = "fixed"
    target: PositiveFloat | None = None  # adaptive: nats per response, Ziegler et al. 2019
    horizon: PositiveInt = 10_000  # adaptive: episodes
    # In the reward k1 has the KL's gradient; as a loss k2 has it at each state by itself, k3 near the reference, and k1
    # none.
    estimator: Literal["k1", "k2", "k3"] = "k1"
    place: Literal["reward", "loss"] = "reward"

    @model_validator(mode="after")
    def _adaptive_has_target(self) -> KlConfig:
        if (self.controller == "adaptive") != (self.target is not None):
            raise ValueError(
                f"controller={self.controller} with target={self.target}: an adaptive controller needs a target "
                "in nats per response, for example target=6.0, and a fixed one takes none"
            )
        return self

    @model_validator(mode="after")
    def _adaptive_can_grow(self) -> KlConfig:
        if self.controller == "adaptive" and not self.coef:
            raise ValueError("coef=0 with controller=adaptive: what is multiplied stays 0; use coef=0.05")
        return self

    @model_validator(mode="after")
    def _loss_has_a_gradient(self) -> KlConfig:
        if (self.place, self.estimator) == ("loss", "k1"):
            raise ValueError(
                "estimator=k1 with place=loss: its expected gradient is zero, so nothing would hold the policy; use "
                "estimator=k2 or place=reward"
            )
        return self


class OverlongConfig(Section):
    """A penalty that grows over the last tokens before the length runs out (Yu et al. 2025, "DAPO", eq. 13)."""

    tokens: PositiveInt  # of generation.max_new_tokens, at the end
    penalty: PositiveFloat = 1.0  # at the very end, in units of the score


class RewardTermConfig(Section):
    """One more reward, added to the reward stage's score."""

    # A reward model, an address or package.module:function, as in reward.use; its raw scores count.
    use: Annotated[str, Address("RLHF_REWARD_TOKEN")]
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0


class FaultsConfig(Section):
    """What happens to a step in which something is not finite: it is skipped, counted and kept."""

    limit: PositiveInt | None = 3  # such steps in a row until the run stops; null: it never does
    keep: Annotated[int, Field(ge=0)] = 3  # steps whose batches are kept in ppo/faults/, the newest; 0: none


class HeldOutConfig(Section):
    """Evaluation while PPO trains: fixed held-out prompts, always sampled with the same noise."""

    prompts: PositiveInt = 64
    # What scores them besides the reward, and then decides which policy is the best: a reward model, an address or
    # package.module:function, as in reward.use. null: the reward itself, which the policy is trained to please.
    judge: Annotated[str | None, Address("RLHF_REWARD_TOKEN")] = None
    patience: PositiveInt | None = None  # evaluations without a better score until PPO ends early; null: never
