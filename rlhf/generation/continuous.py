"""Decoding without a wait: a response that ends leaves its slot to the next prompt (Yu et al. 2022, "Orca")."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlhf.distributed import global_max
from rlhf.generation.draft import Draft
from rlhf.generation.slots import Slots, Turn, additive_mask
from rlhf.generation.together import accompany
from rlhf.packing import pack, unmasked

PROMPT_TOKENS = 8192  # of prompts that are read in one forward, beside those that decode


def decode_continuously(policy: Any, draft: Draft, lockstep: bool) -> None:
    """Sample all responses; lockstep: with as many forwards as the rank that needs most."""
    kind = next(policy.parameters()).dtype
    if torch.is_autocast_enabled(draft.device.type):
        kind = torch.get_autocast_dtype(draft.device.type)
    queue, mask = Queue(draft, kind), unmasked(draft.device)
    while global_max(queue.left) if lockstep else queue.left:
        if not queue.left:
            accompany(policy, draft)
            continue
        tokens, positions, last = queue.next()
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

    @property
    def left(self) -> int:
        """Responses that have not ended."""
        return len(self.waiting) + len(self.rows)

    def next(self) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens and positions of the next forward, and the place of the last one of each sequence."""
        self._enter()
        draft, device, capacity = self.draft, self.draft.device, self.slots.capacity
        prompts = [draft.prompts[row] for row in self.entering]
        widths = [len(prompt) for prompt in prompts]
        decoding = len(self.rows)
        read = [torch.tensor(prompt, dtype=torch.long) for prompt in prompts]
        positions = torch.cat([*map(torch.arange, widths), self.lengths])
        slot = torch.arange(decoding + len(prompts))
        slots = torch.cat([slot[decoding:].repeat_interleave(torch.tensor(widths, dtype=torch.long)), slot[:decoding]])
        self.lengths += 1
        longest = int(self.lengths.max()) if decoding else 0
        mask = additive_mask(self.lengths.to(device), longest, self.slots.kind) if decoding else None
        packing = pack(widths, device) if prompts else None
        places = (slots * capacity + positions).to(device)
        self.slots.turn = Turn(places, packing, sum(widths), decoding, longest, mask)
        ends = torch.tensor(widths, dtype=torch.long).cumsum(0) - 1
        last = torch.cat([ends, sum(widths) + slot[:decoding]]).to(device)
        tokens = torch.cat([*(part.to(device) for part in read), self.tokens])
        return tokens, positions.to(device), last

    def take(self, logits: Tensor) -> None:
        """Sample from the logits [sequences, vocabulary] of `next`; who has ended leaves."""
        entered = torch.tensor(self.entering, dtype=torch.long)
        widths = torch.tensor([len(self.draft.prompts[row]) for row in self.entering], dtype=torch.long)
        # In the order of slots: those that decoded before come first.
        first = len(entered)
        self.rows, self.lengths = torch.cat([self.rows, entered]), torch.cat([self.lengths, widths])
        logits = torch.cat([logits[first:], logits[:first]]) if first and len(self.rows) > first else logits
        self.entering = []
        chosen, going_on = self.draft.extend(self.rows.to(logits.device), logits)
        self.tokens = chosen
        ended = (~going_on).nonzero().squeeze(-1).tolist()
        if ended:
            self._leave(ended)

    def _enter(self) -> None:
        """Give free slots to those that wait."""
        budget = PROMPT_TOKENS
        while self.waiting and len(self.rows) + len(self.entering) < self.slots.slots:
            budget -= len(self.draft.prompts[self.waiting[-1]])
            if budget < 0 and self.entering:
                return
            self.entering.append(self.waiting.pop())

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
        self.tokens = self.tokens[index.to(self.tokens.device)]
