"""Decoding as a CUDA graph: a step of a few rows is hundreds of kernels, which Python starts more slowly than they run.

A graph is recorded once and replayed as one call, so nothing in it may change but what stands in its tensors: the
sequences that decode are filled up to one of a few numbers (a bucket), and so are the tokens that they look back on. A
step in which prompts are read stays as it is. Sequences have the first slots of memory; rows that are none write to the
first place of a slot that nobody has, and see that place alone. Who enters such a slot later writes over it.

Graphs live as long as the decoder whose weights they read, one call of `sample`. To record one takes about as long as
two steps without it, so a bucket's first step is computed as ever, which warms up what the second one records.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from rlhf.generation.decoder import CHANGING, Decoder, is_plain
from rlhf.generation.slots import Slots, Turn, additive_mask
from rlhf.packing import packs

ROWS, COLUMNS = 4, 128  # the smallest buckets: of sequences, and of the tokens of the longest


class Recorder(Protocol):
    """Records a step whose tensors stay where they are: what it reads, what it writes, and its result."""

    def once(self, step: Callable[[], Tensor]) -> Tensor:
        """The step's result, computed as it will be recorded, which warms up what is made at a first call."""
        ...

    def record(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """What computes the step again, into the same tensor, without calling it."""
        ...


def bucket(number: int, grain: int, most: int) -> int:
    """The next number that is a multiple of the grain, or of a quarter of the next power of two; at most `most`."""
    grain = max(grain, (1 << (number - 1).bit_length()) // 4)
    return min(most, -(-number // grain) * grain)


class GraphedDecoder:
    """A decoder, whose steps without prompts are recorded and replayed."""

    def __init__(self, decoder: Decoder, recorder: Recorder) -> None:
        self.decoder = decoder
        self.recorder = recorder
        self.slots: Slots | None = None  # whose memory the steps below use
        self.given = torch.empty(0)  # [2, slots] tokens and positions
        self.begun: set[tuple[int, int]] = set()  # buckets that have been used once
        self.replays: dict[tuple[int, int], Callable[[], Tensor]] = {}
        self.failed = False  # to record, once

    def __call__(self, tokens: Tensor, positions: Tensor, slots: Slots, last: Tensor) -> Tensor:
        """See `Decoder`."""
        turn = slots.turn
        # Memory is made as it is first written to, which must not be within a graph.
        if self.failed or turn is None or turn.prompts is not None or not slots.memory:
            return self.decoder(tokens, positions, slots, last)
        if slots is not self.slots:
            self.slots, self.begun, self.replays = slots, set(), {}
            self.given = torch.zeros(2, slots.slots, dtype=torch.long, device=tokens.device)
        rows, longest = bucket(turn.decoding, ROWS, slots.slots), bucket(turn.longest, COLUMNS, slots.capacity)
        self.given[:, : turn.decoding].copy_(torch.stack([tokens, positions]))
        self.given[:, turn.decoding : rows].zero_()
        # Logits are of the vocabulary's size, and graphs keep their results: the head is called each time. So are the
        # hooks it may have, and autocast's copy of its weights is no part of a graph.
        # It gets a tensor of its own, which a hook may change, and no inference tensor.
        return self.decoder.logits(self._states(slots, rows, longest).clone(), turn.decoding)

    def _states(self, slots: Slots, rows: int, longest: int) -> Tensor:
        """See `step`."""
        which = rows, longest
        if which in self.replays:
            return self.replays[which]()
        # Holds nothing of this object: a graph in a cycle of references would keep its memory until it is found.
        recorded = functools.partial(step, self.decoder, slots, self.given[:, :rows], longest)
        if which not in self.begun:
            self.begun.add(which)
            return self.recorder.once(recorded)
        try:
            self.replays[which] = self.recorder.record(recorded)
        except RuntimeError as error:  # out of memory, or what no graph can hold
            reason = str(error).strip().split("\n")[0]
            warnings.warn(f"decoding goes on without CUDA graphs ({reason})", RuntimeWarning, stacklevel=2)
            self.failed = True
            return recorded()
        return self.replays[which]()


def step(decoder: Decoder, slots: Slots, given: Tensor, longest: int) -> Tensor:
    """Normed states [rows or more, hidden] behind one token in each of the first slots.

    given [2, rows]: tokens and their positions, both 0 where nobody decodes. To compute it twice changes nothing.
    """
    tokens, positions = given
    rows = len(tokens)
    places = torch.arange(rows, device=given.device) * slots.capacity + positions
    slots.turn = Turn(places, None, 0, rows, longest, additive_mask(positions + 1, longest, slots.kind))
    return decoder.states(tokens, positions, slots)


class _Ground(NamedTuple):
    """Where a device's graphs are recorded, for as long as the process lives."""

    stream: torch.cuda.Stream  # one: cuBLAS keeps some ten megabytes for each that it has seen
    pool: Any  # of memory, which all graphs share, for none runs beside another
    keeper: torch.cuda.CUDAGraph  # never replayed: a pool without a graph is given up, and the next one costs anew


@functools.cache
def _ground(device: torch.device) -> _Ground:
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    found = _Ground(stream, torch.cuda.graph_pool_handle(), torch.cuda.CUDAGraph())
    _capture(found, found.keeper, lambda: torch.zeros(1, device=device))
    return found


def _capture(ground: _Ground, graph: torch.cuda.CUDAGraph, recorded: Callable[[], Tensor]) -> Tensor:
    """Record a step; not by `torch.cuda.graph`, which first gives all cached memory back, each time."""
    ground.stream.wait_stream(torch.cuda.current_stream(ground.stream.device))
    with torch.cuda.stream(ground.stream):
        # thread_local: what other threads do meanwhile, NCCL's watchdog or a reward, is no error.
        graph.capture_begin(pool=ground.pool, capture_error_mode="thread_local")
        try:
            return recorded()
        finally:
            graph.capture_end()


class CudaRecorder:
    """Records CUDA graphs, which run on the stream that asks for them."""

    def __init__(self, device: torch.device) -> None:
        self.ground = _ground(device)
        # While it records, torch gives nothing back of what an update has left: a graph's memory would not be there.
        torch.cuda.empty_cache()

    def once(self, step: Callable[[], Tensor]) -> Tensor:
        """On the stream that records, so that what libraries make for a stream is there."""
        here, there = torch.cuda.current_stream(self.ground.stream.device), self.ground.stream
        there.wait_stream(here)
        with torch.cuda.stream(there):
            found = step()
        here.wait_stream(there)
        return found  # its memory is used again on that stream alone, which waits for this one first

    def record(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """A graph's replay."""
        graph = torch.cuda.CUDAGraph()
        found = _capture(self.ground, graph, step)

        def replay() -> Tensor:
            graph.replay()
            return found

        return replay


def obstacle(policy: Any, device: torch.device, lockstep: bool) -> str | None:
    """Why a policy's decoding is no CUDA graph; None where it is one."""
    if device.type != "cuda":
        return "there is no CUDA device"
    if lockstep:
        return "weights are shared out while it samples; ppo.generation.weights=replica has them whole"
    if not packs(policy) or not is_plain(policy):
        return "the policy is called by its modules: it has adapters, or layers that are not known here"
    kind = getattr(policy.model.rotary_emb, "rope_type", "default")
    if kind in CHANGING:
        return f"rotary positions of the type {kind} change with the longest sequence"
    return None
