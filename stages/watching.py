"""A stage under its watchdog: beacons from the moment it holds its directory, and a last word however it ends."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch.distributed as dist
from safetensors import SafetensorError

from rlhf.beacons.diagnosis import ENDED, GONE_SECONDS, Finding, Observed, diagnose
from rlhf.beacons.keeper import Channel, Keeper
from rlhf.beacons.record import BEACONS, COMPLETE, LOST, RAISED, REFUSED, STOPPED, left_by, read_all
from rlhf.beacons.watchdog import Limits, Post
from rlhf.distributed import rank, world_size
from rlhf.errors import RLHFError
from stages.problems import ERRORS, report
from stages.signals import Stopped

if TYPE_CHECKING:
    from stages.context import StageContext

# What a collective's error says whose other side has gone.
OTHER_SIDE = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "process group", "process_group")
CAUSE_SECONDS = 5.0  # how long a rank that has lost the others looks for the one that ended first


class Consequence(Exception):
    """A rank ends because another one has; what there is to say has been said."""


@contextmanager
def watched(context: StageContext) -> Iterator[None]:
    """Keep this rank's beacon; raises Consequence where it ends only because another rank has."""
    config = context.recipe.watchdog
    if config is None:
        yield
        return
    post = Post(context.stage, context.output, context.output / BEACONS, context.execution, rank(), world_size())

    def warn(line: str) -> None:
        print(f"{context.stage}: warning: {line}", file=sys.stderr, flush=True)

    def problem(line: str) -> None:
        report([f"{context.stage}: {line}"])

    keeper = Keeper(post, Limits(config.warn_seconds, config.abort_seconds), Channel(warn, problem))
    keeper.start()
    try:
        yield
    except BaseException as error:
        state, word = last_word(error, post.ranks > 1)
        keeper.end(state, word, error if state in (RAISED, LOST) else None)
        with context.signals.deferred():  # torchrun sends one as soon as it misses a process
            cause = find_cause(post) if state == LOST else None
            if cause is None:
                if state == LOST:  # it was no consequence: the others are to be told of this rank
                    keeper.end(RAISED, word, error)
                raise
            tell(cause, post)
            raise Consequence from error
    keeper.end(COMPLETE)


def last_word(error: BaseException, several: bool) -> tuple[str, str]:
    """How a rank ends by an exception: the state and the word of its last beacon."""
    if isinstance(error, Stopped):
        return STOPPED, error.reason
    if isinstance(error, RLHFError):
        return REFUSED, error.problems[0] if error.problems else ""
    word = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, (OSError, SafetensorError)):
        return REFUSED, word
    return (LOST if several and is_of_the_others(error) else RAISED), word


def is_of_the_others(error: BaseException) -> bool:
    """Whether an error looks like what follows from the end of another rank: `find_cause` tells whether one has ended.

    torch raises DistError and what is one, but for gloo also a bare RuntimeError, known by its words alone.
    """
    if isinstance(error, dist.DistError):
        return True
    return type(error) is RuntimeError and any(mark in str(error).lower() for mark in OTHER_SIDE)


def find_cause(post: Post) -> Finding | None:
    """The rank that has ended first and taken the others along, if its beacon or its absence tells within seconds."""
    deadline = time.monotonic() + CAUSE_SECONDS
    while time.monotonic() < deadline:
        # Its side of a connection is closed: who is not there has ended, without any silence to wait for.
        beacons = read_all(post.directory)
        left = [left_by(post.directory, beacon) for beacon in beacons]
        seen = [Observed(beacon, GONE_SECONDS, killed) for beacon, killed in left]
        certain = [finding for finding in diagnose(seen, CAUSE_SECONDS) if finding.certain]
        if certain:
            return certain[0]
        time.sleep(0.2)
    return None


def tell(cause: Finding, post: Post) -> None:
    """Say why all end: each to a launcher, which shows it once, and else the first of those that are left."""
    left = min(set(range(post.ranks)) - set(cause.ranks))
    if cause.said:  # by that rank itself
        return
    if ERRORS in os.environ or post.rank == left:
        above = "; its traceback stands above" if cause.kind == ENDED else ""
        report([f"{post.stage}: {cause.text}{above}; the same command goes on from the newest checkpoint"])
