"""The prompts of a run that leave room for a response in the model's context."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from data.mapped import Selection
from data.progress import counted
from data.splits import Split
from rlhf.errors import ConfigError, DataError
from rlhf.tokenization import Tokenization
from rlhf.types import Prompt
from stages import examples
from stages.context import StageContext
from stages.preflight import toy_among_real


def fitting_prompts(context: StageContext, tokenization: Tokenization, window: int) -> Split[Prompt]:
    """All prompts whose tokens and ppo.generation.max_new_tokens more fit into a context of `window` tokens.

    Raises ConfigError with the longest that does not fit, unless data.too_long=drop: then those are left out and said.
    """
    room = context.recipe.ppo.generation.max_new_tokens
    split = examples.prompts(context)
    if room >= window:
        sizes = [len(tokenization.prompt(prompt)) for part in (split.train, split.test) for prompt in part]
        longest = max((size for size in sizes if size < window), default=window - 1)
        raise ConfigError(
            f"ppo.generation.max_new_tokens={room} leaves no room for a prompt in the model's context of {window}; use "
            f"at most max_new_tokens={window - longest}, which the longest prompt leaves"
        )
    train, test = (_fitting(part, context, tokenization, window - room) for part in (split.train, split.test))
    if not len(train) or not len(test):
        raise ConfigError(
            f"ppo.generation.max_new_tokens={room} leaves no prompt in the train or test part that fits the model's "
            f"context of {window}; lower it or give shorter prompts"
        )
    return Split(train, test, split.notes)


def check_prompts_early(context: StageContext, tokenization: Tokenization, window: int) -> None:
    """Raise ConfigError where PPO would refuse a prompt, hours before it does.

    Only where the recipe has prompts that belong to its demonstrations; SFT alone needs none.
    """
    read = ("prompts",) if context.recipe.sft.use else ("demonstrations", "prompts")
    if toy_among_real(context.recipe, read):
        return
    with suppress(DataError):  # who wants no PPO may have no such file; for the whole chain it has been read before
        fitting_prompts(context, tokenization, window)


def _fitting(
    prompts: Sequence[Prompt], context: StageContext, tokenization: Tokenization, most: int
) -> Sequence[Prompt]:
    sizes = [len(tokenization.prompt(prompt)) for prompt in counted(prompts, "measuring prompts", len(prompts))]
    kept = np.flatnonzero(np.array(sizes) <= most)
    if len(kept) == len(prompts):
        return prompts
    if context.recipe.data.too_long == "drop":
        context.say(f"left out {len(prompts) - len(kept):,} of {len(prompts):,} prompts: more than {most:,} tokens")
        return Selection([prompts], kept)
    longest = int(np.argmax(sizes))
    text, tokens, room = prompts[longest].text, sizes[longest], context.recipe.ppo.generation.max_new_tokens
    raise ConfigError(
        f"ppo.generation.max_new_tokens={room} and the prompt {text[:40]!r}... of {tokens} tokens exceed "
        f"the model's context of {most + room}; use max_new_tokens={max(1, most + room - tokens)}, shorter prompts or "
        "data.too_long=drop"
    )
