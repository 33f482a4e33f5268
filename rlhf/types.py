"""The nouns that stages hand to each other, and the seams where an implementation can be exchanged.

Torch is imported for type checkers alone, so that the launcher can use the nouns without loading it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor, nn

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True)
class Prompt:
    """What a response answers: plain text, or turns that a chat template renders."""

    content: str | tuple[Message, ...]

    @property
    def text(self) -> str:
        """Plain form for people, scorers and split hashes: the text, or the turns' contents joined by blank lines."""
        if isinstance(self.content, str):
            return self.content
        return "\n\n".join(message.content for message in self.content)

    @classmethod
    def of_user(cls, text: str) -> Prompt:
        """A conversation with one user turn."""
        return cls((Message("user", text),))


@dataclass(frozen=True)
class Demonstration:
    """A prompt with a response to imitate."""

    prompt: Prompt
    completion: str


@dataclass(frozen=True)
class Comparison:
    """One vote: of two responses to a prompt, which is better."""

    prompt: Prompt
    chosen: str
    rejected: str
    tie: bool = False  # no preference: chosen and rejected are in no order
    annotator: str | None = None
    weight: float = 1.0
    chosen_shown_first: bool | None = None  # None: the order was not recorded
    seconds: float | None = None  # time the annotator took
    chosen_finished: bool = True  # False: cut off by a length limit, so no stop token ends it
    rejected_finished: bool = True
    target: float = 1.0  # P(chosen wins) to learn, in (0.5, 1]: a soft label where several votes were put together
    time: float | None = None  # when it was cast: seconds since 1970, UTC
    kind: str | None = None  # the prompt's stratum

    @property
    def wanted(self) -> float:
        """P(chosen wins) that a reward model is to learn: the soft label, or even odds for a tie."""
        return 0.5 if self.tie else self.target


@dataclass(frozen=True)
class Completion:
    """A sampled response: what a reward scores."""

    prompt: Prompt
    response: str
    prompt_tokens: tuple[int, ...]
    response_tokens: tuple[int, ...]  # with the stop token, if one was sampled
    finished: bool  # a stop token was sampled before the length ran out


@dataclass(frozen=True)
class Sampled:
    """A generator's answer to a batch of prompts; row i answers prompt i."""

    responses: Tensor  # [batch, response] ids, right-padded
    logprobs: Tensor  # [batch, response] nats at the sampling temperature, untruncated, 0 where mask is False
    sampler_logprobs: Tensor  # [batch, response] nats of the distribution that was sampled from: with top-p, higher
    mask: Tensor  # [batch, response] bool, True up to and including the stop token
    finished: Tensor  # [batch] bool, a stop token was sampled


@dataclass(frozen=True)
class Experience:
    """One PPO step's rollout on this rank, everything the update needs."""

    tokens: Tensor  # [batch, prompt + response] ids, prompts left-padded, responses right-padded
    attention_mask: Tensor  # [batch, prompt + response] bool
    rows: Tensor  # [batch] index of each row in the step's global batch
    mask: Tensor  # [batch, response] bool, True up to and including the stop token
    old_logprobs: Tensor  # [batch, response] nats, sampling policy at its temperature, as a training forward has it
    sampler_logprobs: Tensor  # [batch, response] nats, as the sampler had it: equal where it is exact and truncates not
    ref_logprobs: Tensor  # [batch, response] nats, reference at the same temperature
    values: Tensor  # [batch, response] value of the state before each response token
    scores: Tensor  # [batch] reward model output
    finished: Tensor  # [batch] bool
    terms: Mapping[str, Tensor] = field(default_factory=dict)  # scores [batch] of each reward, where there are several

    @property
    def response_length(self) -> int:
        """Width of the response part, in tokens."""
        return int(self.mask.shape[1])


# Told of a response that is complete: its place in the batch, and its tokens.
Ended: TypeAlias = Callable[[int, Sequence[int]], None]


class Generator(Protocol):
    """Samples responses from a policy."""

    exact: bool  # log-probs equal those of a training forward to rounding, so they can serve as old_logprobs
    ordered: bool  # responses end in the same order whenever the same is sampled

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        rows: Sequence[int],
        *,
        seed: int,
        step: int,
        ended: Ended | None = None,
    ) -> Sampled:
        """Answer token prompts; `rows` are their indices in the global batch, which key the noise.

        ended: told of each response as soon as it is complete, in this thread.
        """
        ...

    def load(self, policy: nn.Module) -> None:
        """Take over the policy's present weights."""
        ...


class Reward(Protocol):
    """Scores responses; higher is better."""

    def __call__(self, completions: Sequence[Completion]) -> Tensor:
        """Scores [batch] in nats, on the CPU."""
        ...


class TextReward(Reward, Protocol):
    """A reward that can be asked by another thread than the one that samples: it uses none of our models."""

    early: bool  # whether it shall be
    patience: float  # seconds that all requests about a rollout may take together
    timeout: float  # seconds that the last of them may take longer

    def scores(self, completions: Sequence[Completion], deadline: float) -> Tensor:
        """See `Reward`; deadline: by time.monotonic(), until when one that does not answer is asked again."""
        ...


class Scorer(Protocol):
    """A rule or an oracle over text, such as a gold score in [0, 1]."""

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """One figure per pair of prompt and response."""
        ...


class Tracker(Protocol):
    """Where figures and samples go."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics of a step."""
        ...

    def table(self, step: int, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Record a table of samples."""
        ...

    def result(self, manifest: Mapping[str, Any]) -> None:
        """Record what the stage has made, once it is complete."""
        ...

    def close(self) -> None:
        """Flush and end."""
        ...
