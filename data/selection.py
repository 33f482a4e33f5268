"""Which pairs of responses to label next, within a budget.

margin: those of which a reward model is least sure, |P(one wins) - 0.5| by Bradley & Terry least first; of several
models, by the mean of their probabilities (uncertainty sampling, Lewis & Gale 1994), which is the order of its entropy.
disagreement: those on which several models differ most, by the information that a vote gives on which of them is right
(BALD, Houlsby et al. 2011): a pair on which all say even odds has none. random: any. diverse: prompts that are like no
other one first. All take one pair of each prompt before a second of any, and none of nearly equal responses.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from data.fields import flag_of, need, number_of, prompt_of, text_of
from data.formats import as_record
from data.labelling.pairs import Pair
from data.locations import files_of
from data.quality.faults import normalised
from data.quality.minhash import Signatures, signatures, similarity
from data.reading import NAMED
from data.records import BadRecord, one_line, read_records, shown
from rlhf.errors import ArtifactError, DataError
from rlhf.types import Prompt

BY = ("margin", "disagreement", "random", "diverse")
NEAR = 0.8  # Jaccard similarity from which on texts are nearly the same


@dataclass(frozen=True)
class Answer:
    """A response that may be labelled."""

    text: str
    scores: tuple[float, ...]  # of reward models, in nats
    finished: bool = True


Answered = tuple[Prompt, list[Answer], str | None]  # a prompt, its responses, its stratum


@dataclass(frozen=True)
class Candidate:
    """Two responses to a prompt."""

    prompt: Prompt
    first: Answer
    second: Answer
    kind: str | None = None  # the prompt's stratum

    @property
    def chances(self) -> list[float]:
        """P(first wins) by each reward model."""
        gaps = [a - b for a, b in zip(self.first.scores, self.second.scores, strict=True)]
        return [0.5 + 0.5 * math.tanh(gap / 2) for gap in gaps]

    @property
    def id(self) -> str:
        """Known by its texts, as what is pushed and pulled."""
        return Pair(self.prompt, self.first.text, self.second.text).id

    @property
    def probability(self) -> float | None:
        """P(first wins), the mean over reward models; None where there are no scores."""
        return math.fsum(self.chances) / len(self.chances) if self.chances else None

    @property
    def disagreement(self) -> float | None:
        """Mutual information of the vote and of which model is right, nats; None of less than two models.

        H(mean of P) - mean of H(P), Houlsby et al. 2011, eq. 2: from 0, where all agree, to log 2.
        """
        if self.probability is None or len(self.chances) < 2:
            return None
        return max(0.0, entropy(self.probability) - math.fsum(map(entropy, self.chances)) / len(self.chances))

    @property
    def doubt(self) -> float:
        """How far P(first wins) is from even odds: 0 where the models cannot tell."""
        return 0.0 if self.probability is None else abs(self.probability - 0.5)

    def record(self) -> dict[str, Any]:
        """As `rlhf label push` reads it."""
        chance = {} if self.probability is None else {"probability": round(self.probability, 4)}
        differ = {} if self.disagreement is None else {"disagreement": round(self.disagreement, 4)}
        return {
            "prompt": as_record(self.prompt)["prompt"],
            "responses": [self.first.text, self.second.text],
            "finished": [self.first.finished, self.second.finished],
            **({} if self.kind is None else {"kind": self.kind}),
            **chance,
            **differ,
        }


def entropy(probability: float) -> float:
    """Of a vote that falls one way with this probability, nats."""
    return -math.fsum(p * math.log(p) for p in (probability, 1 - probability) if p > 0)


@dataclass
class Pool:
    """All that can be chosen from."""

    candidates: list[Candidate]
    alike: int = 0  # pairs of nearly equal responses, which are left out
    labelled: int = 0  # pairs that have been labelled, which are left out

    def without(self, labelled: Container[str]) -> Pool:
        """What is left once the pairs with these ids are taken out."""
        left = [candidate for candidate in self.candidates if candidate.id not in labelled]
        return Pool(left, self.alike, len(self.candidates) - len(left))


def pool_of_run(run: Path) -> Pool:
    """Pairs of a prompt's responses at different steps of PPO. Raises ArtifactError where there are no two of them."""
    return paired(answers_of_run(run))


def answers_of_run(run: Path) -> list[Answered]:
    """Each held-out prompt's responses at the steps of PPO, with the scores that PPO saw; see `pool_of_run`."""
    answers: dict[tuple[int, str], tuple[Prompt, list[Answer]]] = {}
    paths = sorted((run / "ppo" / "samples").glob("held-out-*.parquet"))
    for path in paths:
        for row in _rows(path):
            turns = row.get("turns")
            prompt = Prompt(row["prompt"]) if turns is None else prompt_of({"prompt": json.loads(turns)})
            _, known = answers.setdefault((row["index"], row["prompt"]), (prompt, []))
            known.append(Answer(row["response"], (float(row["score"]),), bool(row["finished"])))
    if len(paths) < 2:
        raise ArtifactError(f"{run}/ppo/samples: no responses of two steps; run ppo with ppo.evaluate_every")
    return [(prompt, known, None) for prompt, known in answers.values()]


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise ArtifactError(f"{path}: cannot be read ({one_line(error)}); run the stage again") from error
    for name in ("index", "prompt", "response", "score", "finished"):
        if rows and name not in rows[0]:
            raise ArtifactError(f"{path}: has no column {name}; run the stage again")
    return rows


def pool_of_files(names: Sequence[str], directory: str | None = None) -> Pool:
    """Records {"prompt", "responses"}, and `scores`: a figure for each response, or a list with one of each model.

    `finished`, `kind` may follow. Raises DataError with the first bad records.
    """
    return paired(answers_of_files(names, directory))


def answers_of_files(names: Sequence[str], directory: str | None = None) -> list[Answered]:
    """Each record's prompt, responses and stratum; see `pool_of_files`."""
    read: list[Answered] = []
    bad: list[BadRecord] = []
    for file in [file for name in names for file in files_of(name, directory)]:
        for record in read_records(file):
            if isinstance(record, BadRecord):
                bad.append(record)
                continue
            try:
                read.append(_answers(record.fields))
            except (ValueError, OverflowError) as error:
                bad.append(BadRecord(record.place, one_line(error)))
    if bad:
        rest = [f"{len(bad) - NAMED:,} more records cannot be used"] if len(bad) > NAMED else []
        raise DataError(*(f"{one}; mend or remove it" for one in bad[:NAMED]), *rest)
    return read


def _answers(fields: dict[str, Any]) -> Answered:
    responses = need(fields, "responses")
    if not isinstance(responses, list) or len(responses) < 2:
        raise ValueError(f"responses={shown(responses)} is not a list of two or more")
    columns = {"scores": fields.get("scores", [[]] * len(responses))}
    columns["finished"] = fields.get("finished", [True] * len(responses))
    for name, values in columns.items():
        if not isinstance(values, list) or len(values) != len(responses):
            raise ValueError(f"{name}={shown(values)} does not hold one for each of {len(responses)} responses")
    scores = [value if isinstance(value, list) else [value] for value in columns["scores"]]
    if len({len(each) for each in scores}) > 1:
        raise ValueError(f"scores={shown(columns['scores'])} are not of the same models for each response")
    made = [
        Answer(
            text_of(text, "responses", may_be_empty=True),
            tuple(number_of(score, "scores") for score in each),
            flag_of(ended, "finished"),
        )
        for text, each, ended in zip(responses, scores, columns["finished"], strict=True)
    ]
    kind = fields.get("kind")
    return prompt_of(fields), made, None if kind is None else text_of(kind, "kind")


def paired(asked: Iterable[Answered]) -> Pool:
    """Each two different responses to a prompt; nobody can say which of two nearly equal ones is better."""
    pool = Pool([])
    for prompt, answers, kind in asked:
        different = list({answer.text: answer for answer in answers}.values())
        signed = signatures([normalised(answer.text) for answer in different])
        for one, other in itertools.combinations(range(len(different)), 2):
            same = normalised(different[one].text) == normalised(different[other].text)
            if same or similarity(signed[one : one + 1], signed[other : other + 1])[0] >= NEAR:
                pool.alike += 1
            else:
                pool.candidates.append(Candidate(prompt, different[one], different[other], kind))
    return pool


def select(pool: Pool, budget: int, by: str, seed: int = 0) -> list[Candidate]:
    """`budget` pairs, or all there are; each kind of prompts has its share. DataError where `by` wants more scores."""
    if by == "margin" and any(candidate.probability is None for candidate in pool.candidates):
        raise DataError("--by margin: some pairs have no scores; give scores, or --by random or diverse")
    if by == "disagreement" and any(candidate.disagreement is None for candidate in pool.candidates):
        raise DataError(
            "--by disagreement: some pairs have no scores of two reward models; give --rewards, or another --by"
        )
    kinds: dict[str | None, list[Candidate]] = defaultdict(list)
    for candidate in pool.candidates:
        kinds[candidate.kind].append(candidate)
    queues = {kind: _ordered(candidates, by, seed) for kind, candidates in kinds.items()}
    # The k-th of n pairs of a kind stands at (k + 1/2) / n: any beginning of the order has all kinds in proportion.
    places = [
        ((rank + 0.5) / len(queue), number, candidate)
        for number, queue in enumerate(queues.values())
        for rank, candidate in enumerate(queue)
    ]
    return [candidate for _, _, candidate in sorted(places, key=lambda place: place[:2])[:budget]]


def _ordered(candidates: Sequence[Candidate], by: str, seed: int) -> list[Candidate]:
    """One pair of each prompt, then a second of each, and so on; the best ones first."""
    shuffled = list(candidates)
    random.Random(f"{seed}/select").shuffle(shuffled)
    if by == "margin":
        shuffled.sort(key=lambda candidate: candidate.doubt)
    elif by == "disagreement":
        shuffled.sort(key=lambda candidate: candidate.disagreement or 0.0, reverse=True)
    rounds: dict[Prompt, int] = defaultdict(int)
    ranked = []
    for position, candidate in enumerate(shuffled):
        ranked.append((rounds[candidate.prompt], position, candidate))
        rounds[candidate.prompt] += 1
    late = _like_others([candidate.prompt for candidate in shuffled]) if by == "diverse" else set()
    ranked.sort(key=lambda rank: (rank[0], rank[2].prompt in late, rank[1]))
    return [candidate for _, _, candidate in ranked]


def _like_others(prompts: Iterable[Prompt]) -> set[Prompt]:
    """Prompts that are nearly the same as one that stands before them."""
    distinct = list(dict.fromkeys(prompts))
    signed = signatures([normalised(prompt.text) for prompt in distinct])
    late, kept = set(), np.zeros(len(distinct), bool)
    for number, prompt in enumerate(distinct):
        if any((block >= NEAR).any() for block in _similarities(signed, kept, number)):
            late.add(prompt)
        else:
            kept[number] = True
    return late


def _similarities(signed: Signatures, kept: Any, number: int) -> Iterator[Any]:
    rows = np.flatnonzero(kept[:number])
    for start in range(0, len(rows), 4096):
        part = rows[start : start + 4096]
        yield similarity(signed[part], np.broadcast_to(signed[number], (len(part), signed.shape[1])))
