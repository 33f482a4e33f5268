"""How fast a judge is asked, and for how many tokens."""

from __future__ import annotations

import asyncio
import time


class Pace:
    """Turns at equal distances, none while the server wants to be left alone."""

    def __init__(self, per_minute: float | None = None) -> None:
        self.distance = 60 / per_minute if per_minute else 0.0
        self.next = 0.0  # monotonic seconds

    async def turn(self) -> None:
        """Wait for a turn."""
        while True:
            # Looked at again after the sleep: somebody may have been told to wait meanwhile.
            now = time.monotonic()
            if self.next <= now:
                self.next = now + self.distance
                return
            await asyncio.sleep(self.next - now)

    def hold(self, seconds: float) -> None:
        """Give nobody a turn for so long."""
        self.next = max(self.next, time.monotonic() + seconds)


class Budget:
    """Tokens that may be used, prompts and answers together.

    What a question will use is not known before its answer says so. So each reserves what it may cost at most: as many
    tokens for a byte as the costliest question so far (one, before the first is answered), and all of its answer's.
    """

    def __init__(self, limit: int | None, spent: int = 0) -> None:
        self.limit = limit
        self.spent = spent
        self.reserved = 0
        self.tokens_per_byte = 0.0
        self.changed = asyncio.Condition()

    def estimate(self, size: int, answer: int) -> int:
        """Tokens that a question of `size` bytes may use, with at most `answer` in what is said."""
        return int(size * (self.tokens_per_byte or 1.0)) + 1 + answer

    async def reserve(self, size: int, answer: int) -> int | None:
        """Tokens set aside for a question, once there are enough; None where there are not, and none will come back."""
        if self.limit is None:
            return 0
        async with self.changed:
            while True:
                wanted = self.estimate(size, answer)
                if self.spent + self.reserved + wanted <= self.limit:
                    self.reserved += wanted
                    return wanted
                if not self.reserved:
                    return None
                await self.changed.wait()

    async def settle(self, reserved: int, size: int = 0, prompt: int = 0, answer: int = 0) -> None:
        """A question is done with: what it has used stands for what was set aside."""
        self.reserved -= reserved
        self.spent += prompt + answer
        if size:
            self.tokens_per_byte = max(self.tokens_per_byte, prompt / size)
        async with self.changed:
            self.changed.notify_all()
