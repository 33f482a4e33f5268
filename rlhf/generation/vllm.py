"""Sampling on vLLM servers, which are given the policy's weights whenever these have changed.

Each row has a seed of its own, keyed as the native sampler's noise by (seed, step, row): who samples it does not
matter, as far as vLLM's kernels do not depend on what shares a batch. The log-probs are those of another
implementation, so PPO computes them again, and logs how far apart the two are (`policy/mismatch_kl`).
"""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import httpx
import torch
from torch import nn

from rlhf.beacons import patient
from rlhf.config import GenerationConfig
from rlhf.distributed import from_main, gather_objects, is_main, patient_group
from rlhf.errors import GenerationAwayError, GenerationError
from rlhf.generation.answers import as_sampled, seeds_of
from rlhf.generation.servers import BUSY, START, Servers, client_options, content, said_by
from rlhf.generation.weights import weights_of
from rlhf.types import Ended, Sampled

T = TypeVar("T")
ATTEMPTS = 3  # at a batch whose servers lose their weights meanwhile


class VllmGenerator:
    """See `rlhf.types.Generator`. All ranks sample at the same time: together they give servers the weights."""

    exact = False
    ordered = False  # they end as servers answer

    def __init__(self, policy: nn.Module, stop_id: int, pad_id: int, config: GenerationConfig) -> None:
        self.policy = policy
        self.stop_id = stop_id
        self.pad_id = pad_id
        self.config = config
        self.servers = Servers(config.server)
        self.run = uuid.uuid4().hex  # of the main rank: another process's weights are never taken for ours
        self.updates = 0

    def load(self, policy: nn.Module) -> None:
        """The policy's weights have changed: servers are given them before they sample again."""
        self.policy = policy
        self.updates += 1

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        rows: Sequence[int],
        *,
        seed: int,
        step: int,
        ended: Ended | None = None,
    ) -> Sampled:
        """Answer token prompts; see `rlhf.types.Generator`. Raises GenerationError on every rank.

        `logprobs` are the server's, of what top-p leaves; they are for comparison, see `exact`.
        """
        for _ in range(ATTEMPTS):
            current, context = from_main(self._state)
            if not current:
                self._give_weights()
            answers = _on_every_rank(lambda context=context: self._answers(prompts, rows, seed, step, context, ended))  # type: ignore[misc]
            if from_main(self._state)[0]:
                return as_sampled(answers, self.stop_id, self.pad_id)
        raise GenerationAwayError(
            f"generation servers {self._named}: lost the policy's weights in {ATTEMPTS} attempts at a batch; does "
            "another run use them?"
        )

    @property
    def _named(self) -> str:
        return ", ".join(self.servers.addresses)

    @property
    def version(self) -> str:
        """The name of the policy's present weights, on the main rank."""
        return f"{self.run}-{self.updates}"

    def _state(self) -> tuple[bool, int]:
        """Whether all servers have the policy's weights as they are now, and the tokens that each has room for."""
        workers = [worker for own in self.servers.workers() for worker in own]
        versions = {worker.version for worker in workers}
        return versions == {self.version}, min(worker.context for worker in workers)

    @torch.no_grad()
    def _give_weights(self) -> None:
        weights = weights_of(self.policy)
        vocabulary = int(self.policy.config.vocab_size)  # type: ignore[union-attr, arg-type]
        from_main(lambda: self.servers.open(weights, self.version, vocabulary))
        with patient("gives weights to generation servers", self.config.server.timeout_seconds):
            for weight in weights:
                tensor = weight.make()
                if is_main():
                    self.servers.send(tensor)
        from_main(self.servers.close)

    def _answers(
        self,
        prompts: Sequence[Sequence[int]],
        rows: Sequence[int],
        seed: int,
        step: int,
        context: int,
        ended: Ended | None,
    ) -> list[tuple[list[int], list[float]]]:
        longest = max((len(prompt) for prompt in prompts), default=0)
        wanted = longest + self.config.max_new_tokens
        if wanted > context:
            raise GenerationError(
                f"generation servers {self._named}: have room for {context:,} tokens where a prompt of {longest:,} and "
                f"max_new_tokens={self.config.max_new_tokens} want more; start them with -- --max-model-len {wanted}"
            )
        seeds = seeds_of(seed, step, rows)
        turns = math.ceil(len(rows) / self.config.batch_size)
        seconds = self.config.server.patience_seconds + turns * self.config.server.timeout_seconds
        with patient("waits for responses", seconds):
            return asyncio.run(self._ask(prompts, rows, seeds, ended))

    async def _ask(
        self, prompts: Sequence[Sequence[int]], rows: Sequence[int], seeds: Sequence[int], ended: Ended | None
    ) -> list[tuple[list[int], list[float]]]:
        limits = httpx.Limits(max_connections=self.config.batch_size, max_keepalive_connections=self.config.batch_size)
        options = client_options(self.config.server.timeout_seconds)

        async def answer(client: httpx.AsyncClient, place: int) -> tuple[list[int], list[float]]:
            found = await self._ask_one(client, list(prompts[place]), rows[place], seeds[place])
            if ended is not None:
                ended(place, found[0])
            return found

        async with httpx.AsyncClient(limits=limits, **options) as client:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(answer(client, place)) for place in range(len(prompts))]
            except ExceptionGroup as errors:  # of those that failed before the others were told to stop
                raise next(
                    (e for e in errors.exceptions if isinstance(e, GenerationError)), errors.exceptions[0]
                ) from None
        return [task.result() for task in tasks]

    async def _ask_one(
        self, client: httpx.AsyncClient, prompt: list[int], row: int, seed: int
    ) -> tuple[list[int], list[float]]:
        """The tokens of a response, and their log-probs."""
        config, address = self.config, self.servers.addresses[row % len(self.servers.addresses)]
        question = {
            "prompt": prompt,
            "max_tokens": config.max_new_tokens,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "seed": seed,
            "stop_token_ids": [self.stop_id],
            "ignore_eos": True,  # others may stand in generation_config.json; a response ends at one alone
            "logprobs": 0,  # of the sampled tokens
            "return_token_ids": True,
            "skip_special_tokens": False,
        }
        patience = self.servers.patience[address]
        while True:
            try:
                answer = await client.post(f"{address}/v1/completions", json=question)
                if answer.status_code not in BUSY:
                    patience.over()
                    return self._read(address, content(address, answer))
                reason = said_by(answer)
            except httpx.TransportError as error:
                reason = f"{type(error).__name__}: {error}"
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise GenerationError(f"generation server {address}: {error}; {START}") from error
            await asyncio.sleep(patience.pause(reason))

    def _read(self, address: str, answer: Any) -> tuple[list[int], list[float]]:
        try:
            choice: dict[str, Any] = answer["choices"][0]
            tokens, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
            if not 0 < len(tokens) == len(logprobs) <= self.config.max_new_tokens:
                raise ValueError(f"{len(tokens)} tokens with {len(logprobs)} log-probs")
            return [int(token) for token in tokens], [float(logprob) for logprob in logprobs]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise GenerationError(
                f"generation server {address}: its answer holds no tokens with their log-probs "
                f"({type(error).__name__}: {error}); {START}"
            ) from error


def _on_every_rank(work: Callable[[], T]) -> T:
    """This rank's result of some work that may take long; an error of one rank is everybody's."""
    made: T | None = None
    failure: Exception | None = None
    try:
        made = work()
    except Exception as error:
        failure = error
    failures = [each for each in gather_objects(failure, group=patient_group()) if each is not None]
    if failures:
        raise failures[0]
    assert made is not None
    return made
