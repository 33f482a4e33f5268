"""Collecting experience: sample, score, and what the reference and the value model say of each token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rlhf.batching import pad, split_by_tokens
from rlhf.beacons import phase
from rlhf.config import PpoConfig
from rlhf.distributed import rank, world_size
from rlhf.lockstep import in_lockstep
from rlhf.logprobs import response_logprobs, response_values
from rlhf.offload import Offloaded
from rlhf.packing import packs
from rlhf.ppo.early import EarlyScores, is_early
from rlhf.ppo.rewards import ALONE, WeightedRewards, named_rewards, reads_tokens
from rlhf.ppo.scoring import Share
from rlhf.sharding import autocast
from rlhf.tokenization import Tokenization
from rlhf.types import Completion, Experience, Generator, Prompt, Reward, Sampled

OLD, REFERENCE, VALUES = "/old", "/reference", "/values"  # figures of tokens, beside scores by a reward's name


@dataclass(frozen=True)
class MicroBatch:
    """Rows of an experience, trimmed to their own widths."""

    rows: Tensor  # [rows] indices into the experience
    tokens: Tensor  # [rows, prompt + response]
    attention_mask: Tensor  # [rows, prompt + response]
    response_length: int

    @property
    def inputs(self) -> tuple[Tensor, Tensor, int]:
        """What `rlhf.logprobs` is asked about."""
        return self.tokens, self.attention_mask, self.response_length


@dataclass(frozen=True)
class Actors:
    """Who takes part in a rollout; all frozen here."""

    policy: nn.Module
    reference: nn.Module
    value: nn.Module | None  # None: no value model takes part, and values are 0; the policy: it has a head for them
    generator: Generator
    reward: Reward
    tokenization: Tokenization
    bfloat16: bool = False  # policy and value compute by autocast, as the engines that train them do
    lockstep: bool = False  # a forward or a sampling is a collective: models are shared out, or servers are asked
    offloaded: Mapping[str, Offloaded] = field(default_factory=dict)  # of "reference" and "reward", what is not here

    def at_hand(self, role: str) -> AbstractContextManager[None]:
        """Inside, the reference or the reward can be asked."""
        return self.offloaded[role].at_hand() if role in self.offloaded else nullcontext()


def own_rows(config: PpoConfig) -> list[int]:
    """This rank's rows of a step's rollout: all responses to a prompt together, so that they can be compared."""
    group = config.responses_per_prompt
    return [
        prompt * group + response
        for prompt in range(rank(), config.prompts_per_step, world_size())
        for response in range(group)
    ]


def collect(
    prompts: Sequence[Prompt], rows: Sequence[int], actors: Actors, config: PpoConfig, key: tuple[int, int]
) -> tuple[Experience, list[Completion]]:
    """One rollout of this rank's prompts, without gradients. All ranks make it together.

    rows: the prompts' indices in the step's global batch; key: (seed, step) of the noise.
    """
    tokenization, rewards = actors.tokenization, named_rewards(actors.reward)
    prompt_tokens = [tokenization.prompt(prompt) for prompt in prompts]
    early = early_scores(actors, prompts, prompt_tokens)
    with phase("sample"), early or nullcontext():
        ended = {"ended": early.ended} if early else {}
        sampled = actors.generator.sample(prompt_tokens, rows, seed=key[0], step=key[1], **ended)
    padded, prompt_mask = pad(prompt_tokens, tokenization.pad_id, "left")
    completions = complete(prompts, prompt_tokens, tokenization, sampled)

    share = Share(completions, tokenization.pad_id)
    with torch.no_grad():
        with autocast(actors.policy, actors.bfloat16):
            found = forwards(share, actors, config)
        with phase("score"):
            late = {name: reward for name, reward in rewards.items() if not is_early(reward)}
            with autocast(actors.policy, actors.bfloat16), actors.at_hand("reward"):
                found |= {name: reward(share.completions) for name, reward in late.items() if reads_tokens(reward)}
            # Functions are no models of ours, and compute as they say, in whichever thread they are called.
            of_texts = {name: reward(completions) for name, reward in late.items() if not reads_tokens(reward)}
            own = share.returned(found) | of_texts | (early.scores(completions) if early else {})
    terms = {name: own[name] for name in rewards}
    several = actors.reward if isinstance(actors.reward, WeightedRewards) else None
    experience = Experience(
        tokens=torch.cat([padded, sampled.responses], dim=-1),
        attention_mask=torch.cat([prompt_mask, sampled.mask], dim=-1),
        rows=torch.tensor(rows),
        mask=sampled.mask,
        old_logprobs=own.get(OLD, sampled.logprobs),
        sampler_logprobs=sampled.sampler_logprobs,
        ref_logprobs=own[REFERENCE],
        values=own.get(VALUES, torch.zeros_like(sampled.logprobs)),
        scores=several.total(terms) if several else terms[ALONE],
        finished=sampled.finished,
        terms=terms if several else {},
    )
    return experience, completions


def early_scores(
    actors: Actors, prompts: Sequence[Prompt], prompt_tokens: Sequence[Sequence[int]]
) -> EarlyScores | None:
    """What asks rewards while others are sampled; None where there is none that can be asked then."""
    rewards = {name: reward for name, reward in named_rewards(actors.reward).items() if is_early(reward)}
    tokenization = actors.tokenization

    def completion(row: int, tokens: Sequence[int]) -> Completion:
        finished = tokenization.stop_id in tokens
        return Completion(
            prompts[row], tokenization.text(list(tokens)), tuple(prompt_tokens[row]), tuple(tokens), finished
        )

    return EarlyScores(rewards, completion, len(prompts), actors.generator.ordered) if rewards else None


def forwards(share: Share, actors: Actors, config: PpoConfig) -> dict[str, Tensor]:
    """What the models say of each response token of some rows, [rows, response] each; values where there are any."""
    temperature, mask = config.generation.temperature, share.mask
    models = [model for model in (actors.policy, actors.reference, actors.value) if model is not None]
    batch = share.tokens, share.attention_mask, mask
    budget, packed = config.micro_batch_tokens, all(map(packs, models))
    work: list[MicroBatch | None] = list(micro_batches(*batch, budget, packed))
    if actors.lockstep:
        work = in_lockstep(work)
    empty = trim(torch.zeros(1, dtype=torch.long), *batch)

    def over_rows(model: nn.Module, compute: Callable[[nn.Module, MicroBatch], Tensor]) -> Tensor:
        said = [(batch, compute(model, batch or empty)) for batch in work]
        filled = torch.zeros(mask.shape)
        for batch, found in said:  # behind all forwards, for each copy waits for the device
            if batch is not None:
                filled[batch.rows, : batch.response_length] = found.cpu()
        return filled.masked_fill(~mask, 0.0)

    def logprobs(model: nn.Module, batch: MicroBatch) -> Tensor:
        return response_logprobs(model, *batch.inputs, temperature).logprobs

    # The reference at the sampling temperature too: at T != 1 the KL of the raw model is not the policy's we train.
    with actors.at_hand("reference"):
        found = {REFERENCE: over_rows(actors.reference, logprobs)}
    if not actors.generator.exact:
        found[OLD] = over_rows(actors.policy, logprobs)
    if actors.value is not None:
        found[VALUES] = over_rows(actors.value, lambda model, batch: response_values(model, *batch.inputs))
    return found


def complete(
    prompts: Sequence[Prompt], prompt_tokens: Sequence[Sequence[int]], tokenization: Tokenization, sampled: Sampled
) -> list[Completion]:
    """What was sampled, as text and tokens; row i answers prompt i."""
    responses = [row[mask].tolist() for row, mask in zip(sampled.responses, sampled.mask, strict=True)]
    return [
        Completion(prompt, tokenization.text(response), tuple(tokens), tuple(response), finished)
        for prompt, tokens, response, finished in zip(
            prompts, prompt_tokens, responses, sampled.finished.tolist(), strict=True
        )
    ]


def micro_batches(
    tokens: Tensor, attention_mask: Tensor, mask: Tensor, budget: int, packed: bool = False
) -> Iterator[MicroBatch]:
    """Trimmed micro-batches of at most `budget` tokens; see `rlhf.batching.split_by_tokens`.

    tokens, attention_mask [batch, prompt + response]; mask [batch, response].
    """
    responses = mask.sum(-1).tolist()
    prompts = (attention_mask.sum(-1) - mask.sum(-1)).tolist()
    for indices in split_by_tokens(list(zip(prompts, responses, strict=True)), budget, packed):
        yield trim(torch.tensor(indices), tokens, attention_mask, mask)


def trim(rows: Tensor, tokens: Tensor, attention_mask: Tensor, mask: Tensor) -> MicroBatch:
    """Some rows without the columns that are padding in all of them; at least one response column stays."""
    boundary = tokens.shape[1] - mask.shape[1]
    response_length = max(1, int(mask[rows].sum(-1).max()))
    first = boundary - int(attention_mask[rows, :boundary].sum(-1).max())
    columns = slice(first, boundary + response_length)
    return MicroBatch(rows, tokens[rows, columns], attention_mask[rows, columns], response_length)
