"""Decoding without a wait: a response that ends leaves its slot to the next prompt (Yu et al. 2022, "Orca")."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf.distributed import global_max
from rlhf.generation.draft import Draft
from rlhf.generation.slots import Slots, Turn, additive_mask
from rlhf.generation.together import accompany
from rlhf.packing import kind_of_attention, pack, unmasked
from rlhf.shapes import PROMPT_TOKENS

Reads = Callable[[Tensor, Tensor, Slots, Tensor], Tensor]  # see `rlhf.generation.decoder.Decoder`


def decode_continuously(policy: Any, draft: Draft, lockstep: bool, reads: Reads | None = None) -> None:
    """Sample all responses; lockstep: with as many forwards as the rank that needs most.

    reads: what reads in place of the policy.
    """
    kind = next(policy.parameters()).dtype
    if torch.is_autocast_enabled(draft.device.type):
        kind = kind_of_attention(torch.get_autocast_dtype(draft.device.type), draft.device, width=1)
    queue, mask = Queue(draft, kind), unmasked(draft.device)
    while global_max(queue.left) if lockstep else queue.left:
        if not queue.left:
            accompany(policy, draft)
            continue
        tokens, positions, last = queue.next()
        if reads is not None:
            queue.take(reads(tokens, positions, queue.slots, last))
            continue
        output = policy(
            input_ids=tokens[None],
            position_ids=positions[None],
            attention_mask=mask,
            slots=queue.slots,
            use_cache=False,
            logits_to_keep=last,
        )
        queue.take(output.logits[0])


class Queue:
    """Who decodes in which slot, and who waits. The first slots are those in use."""

    def __init__(self, draft: Draft, kind: torch.dtype) -> None:
        self.draft = draft
        count = min(len(draft.prompts), draft.config.batch_size)
        longest = max((len(prompt) for prompt in draft.prompts), default=0)
        self.slots = Slots(count, longest + draft.noise.shape[1], kind)
        # The longest prompts first, so that those read together are of similar length.
        self.waiting = sorted(range(len(draft.prompts)), key=lambda row: len(draft.prompts[row]))
        self.rows = torch.empty(0, dtype=torch.long)  # [in use] of the draft
        self.lengths = torch.empty(0, dtype=torch.long)  # [in use] tokens in memory
        self.tokens = torch.empty(0, dtype=torch.long, device=draft.device)  # [in use] sampled last, not in memory yet
        self.entering: list[int] = []
        self.prompts: list[Sequence[int]] = []  # of those, each once
        self.prompt_of: list[int] = []  # [entering] which of them a row answers

    @property
    def left(self) -> int:
        """Responses that have not ended."""
        return len(self.waiting) + len(self.rows)

    def next(self) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens and positions of the next forward, and the place of the last one of each sequence."""
        self._enter()
        device, capacity = self.draft.device, self.slots.capacity
        widths = [len(prompt) for prompt in self.prompts]
        decoding = len(self.rows)
        read = [torch.tensor(prompt, dtype=torch.long) for prompt in self.prompts]
        positions = torch.cat([*map(torch.arange, widths), self.lengths])
        of_prompts, slot = decoding + self._first_rows(), torch.arange(decoding)
        slots = torch.cat([of_prompts.repeat_interleave(torch.tensor(widths, dtype=torch.long)), slot])
        self.lengths += 1
        longest = int(self.lengths.max()) if decoding else 0
        mask = additive_mask(self.lengths.to(device, non_blocking=True), longest, self.slots.kind) if decoding else None
        packing = pack(widths, device) if widths else None
        places = (slots * capacity + positions).to(device, non_blocking=True)
        self.slots.turn = Turn(places, packing, sum(widths), decoding, longest, mask)
        ends = torch.tensor(widths, dtype=torch.long).cumsum(0) - 1
        last = torch.cat([ends, sum(widths) + slot]).to(device, non_blocking=True)
        tokens = torch.cat([*(part.to(device, non_blocking=True) for part in read), self.tokens])
        return tokens, positions.to(device, non_blocking=True), last

    def take(self, logits: Tensor) -> None:
        """Sample from the logits [sequences, vocabulary] of `next`; who has ended leaves."""
        entered, prompt_of = (torch.tensor(each, dtype=torch.long) for each in (self.entering, self.prompt_of))
        widths = torch.tensor([len(self.draft.prompts[row]) for row in self.entering], dtype=torch.long)
        read = len(self.prompts)
        if len(entered) > read:
            self._share(entered, prompt_of, widths)
        # In the order of slots: those that decoded before come first.
        self.rows, self.lengths = torch.cat([self.rows, entered]), torch.cat([self.lengths, widths])
        if read:
            logits = torch.cat([logits[read:], logits[:read][prompt_of.to(logits.device, non_blocking=True)]])
        self.entering, self.prompts, self.prompt_of = [], [], []
        chosen, going_on = self.draft.extend(self.rows.to(logits.device, non_blocking=True), logits)
        self.tokens = chosen
        ended = (~going_on).nonzero().squeeze(-1).tolist()
        if ended:
            self._leave(ended)

    def _enter(self) -> None:
        """Give free slots to those that wait. A prompt that several answer is read once."""
        budget = PROMPT_TOKENS
        while self.waiting and len(self.rows) + len(self.entering) < self.slots.slots:
            prompt = self.draft.prompts[self.waiting[-1]]
            if not self.prompts or prompt != self.prompts[-1]:  # the responses to a prompt are neighbours
                budget -= len(prompt)
                if budget < 0 and self.entering:
                    return
                self.prompts.append(prompt)
            self.prompt_of.append(len(self.prompts) - 1)
            self.entering.append(self.waiting.pop())

    def _first_rows(self) -> Tensor:
        """[prompts] the first of those entering that answers each prompt."""
        return torch.tensor([self.prompt_of.index(number) for number in range(len(self.prompts))], dtype=torch.long)

    def _share(self, entered: Tensor, prompt_of: Tensor, widths: Tensor) -> None:
        """Copy what a prompt's first response has in its slot to those of the others."""
        first, begin = self._first_rows()[prompt_of], len(self.rows)
        others = (first != torch.arange(len(entered))).nonzero().squeeze(-1)
        columns = torch.cat([torch.arange(int(width)) for width in widths[others]])
        repeats = widths[others]
        capacity, device = self.slots.capacity, self.draft.device
        source, target = (
            ((begin + slot) * capacity).repeat_interleave(repeats) + columns for slot in (first[others], others)
        )
        self.slots.copy(*(part.to(device, non_blocking=True) for part in (source, target)))

    def _leave(self, ended: list[int]) -> None:
        """Free slots; sequences from the end move into the gaps."""
        gone = set(ended)
        left = len(self.rows) - len(ended)
        order = list(range(left))
        movers = [slot for slot in range(left, len(self.rows)) if slot not in gone]
        for target in (slot for slot in ended if slot < left):
            source = movers.pop()
            self.slots.move(source, target, int(self.lengths[source]))
            order[target] = source
        index = torch.tensor(order, dtype=torch.long)
        self.rows, self.lengths = self.rows[index], self.lengths[index]
        self.tokens = self.tokens[index.to(self.tokens.device, non_blocking=True)]
