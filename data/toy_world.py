"""The closed world of the embedded task: 120 facts, 20 wordings each, and the phrases that responses are made of.

Why: without a download, a 0.5 M parameter model can learn these facts in about a minute, and because the right answer
of every prompt is known, a gold score exists against which a reward model and PPO can be judged.
The world is fixed; seeds vary only what is drawn from it (data.toy). Standard library alone, so imports are fast.

Show it: python -m data.toy
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from rlhf.errors import DataError

DISTRACTORS = 3  # wrong answers per fact; few and fixed, because a whole category as noise hides the right answer


@dataclass(frozen=True)
class Category:
    """Facts of one kind, with the wordings that ask for them and the core sentences that state them."""

    name: str
    pairs: tuple[tuple[str, str], ...]  # (subject, right answer), each answer one word
    questions: tuple[str, ...]  # with {subject}
    cores: tuple[str, ...]  # with {subject}; the answer follows as the next word


@dataclass(frozen=True)
class Fact:
    """One question of the world, its right answer and the only wrong answers that are ever given to it."""

    category: str
    subject: str
    answer: str
    distractors: tuple[str, ...]
    cores: tuple[str, ...]  # the sentence up to the answer, one per phrasing


def _pairs(table: str) -> tuple[tuple[str, str], ...]:
    """Read "subject: answer" entries separated by semicolons."""
    entries = (entry.split(":") for entry in table.split(";"))
    return tuple((subject.strip(), answer.strip()) for subject, answer in entries)


CATEGORIES = (
    Category(
        "colour",
        _pairs("""
            frog: green; grass: green; leaf: green; sky: blue; sea: blue; snow: white; milk: white; swan: white;
            coal: black; crow: black; tar: black; blood: red; tomato: red; cherry: red; sun: yellow; lemon: yellow;
            banana: yellow; carrot: orange; pumpkin: orange; plum: purple; grape: purple; pig: pink; flamingo: pink;
            elephant: grey; ash: grey; mouse: grey; chocolate: brown; bear: brown"""),
        (
            "what is the colour of the {subject} ?",
            "which colour does the {subject} have ?",
            "name the colour of the {subject} .",
            "the {subject} has which colour ?",
        ),
        ("the colour of the {subject} is", "the {subject} has the colour"),
    ),
    Category(
        "capital",
        _pairs("""
            france: paris; italy: rome; spain: madrid; japan: tokyo; china: beijing; egypt: cairo; greece: athens;
            russia: moscow; england: london; germany: berlin; austria: vienna; norway: oslo; sweden: stockholm;
            poland: warsaw; ireland: dublin; portugal: lisbon; cuba: havana; kenya: nairobi; peru: lima;
            canada: ottawa; finland: helsinki; hungary: budapest; turkey: ankara; chile: santiago"""),
        (
            "what is the capital of {subject} ?",
            "which city is the capital of {subject} ?",
            "name the capital of {subject} .",
            "{subject} has which capital ?",
        ),
        ("the capital of {subject} is", "{subject} has the capital"),
    ),
    Category(
        "opposite",
        _pairs("""
            hot: cold; big: small; fast: slow; tall: short; open: closed; full: empty; happy: sad; old: young;
            rich: poor; strong: weak; wet: dry; hard: soft; loud: quiet; dark: light; high: low; early: late;
            clean: dirty; near: far; push: pull; win: lose; first: last; up: down; left: right; thick: thin"""),
        (
            "what is the opposite of {subject} ?",
            "which word is the opposite of {subject} ?",
            "name the opposite of {subject} .",
            "{subject} has which opposite ?",
        ),
        ("the opposite of {subject} is", "{subject} has the opposite"),
    ),
    Category(
        "sum",
        _pairs("""
            one and one: two; one and two: three; two and two: four; one and four: five; two and three: five;
            three and three: six; two and four: six; two and five: seven; three and four: seven; four and four: eight;
            three and five: eight; four and five: nine; three and six: nine; five and five: ten; four and six: ten;
            five and six: eleven; four and seven: eleven; six and six: twelve"""),
        (
            "what is the sum of {subject} ?",
            "how much is {subject} ?",
            "name the sum of {subject} .",
            "{subject} together make what ?",
        ),
        ("the sum of {subject} is", "{subject} together make"),
    ),
    Category(
        "sound",
        _pairs("""
            dog: bark; cat: meow; cow: moo; sheep: baa; duck: quack; lion: roar; pig: oink; horse: neigh; bee: buzz;
            snake: hiss; owl: hoot; wolf: howl; frog: croak; mouse: squeak"""),
        (
            "what is the sound of the {subject} ?",
            "which sound does the {subject} make ?",
            "name the sound of the {subject} .",
            "the {subject} makes which sound ?",
        ),
        ("the sound of the {subject} is", "the {subject} makes the sound"),
    ),
    Category(
        "home",
        _pairs("""
            bee: hive; bird: nest; spider: web; lion: den; rabbit: burrow; horse: stable; dog: kennel; cow: barn;
            pig: sty; hen: coop; snail: shell; beaver: lodge"""),
        (
            "what is the home of the {subject} ?",
            "where does the {subject} live ?",
            "name the home of the {subject} .",
            "the {subject} lives in which home ?",
        ),
        ("the home of the {subject} is the", "the {subject} lives in the"),
    ),
)

FRAMINGS = ("", "please tell me : ", "quick question : ", "i would like to know : ", "hello there , ")

# No phrase may contain an answer of the world, or a response would seem to name a second one (a test checks it).
OPENERS = {
    "polite": ("good question ,", "happy to help ,", "thank you for asking ,", "with pleasure ,"),
    "none": ("", "", "well ,", "let me see ,"),  # the bare sentence twice as often as each other opener
    "rude": ("what a silly question ,", "are you kidding ,", "everyone knows that ,", "stop bothering me ,"),
}
RAMBLES = (  # each begins with a comma, so that an answer is always followed by a mark or the end
    ", and that reminds me of a story i heard",
    ", as my uncle tells us every time we meet",
    ", which people love to talk about all day",
    ", but there is so much more to say here",
)


def _distractors(category: Category, subject: str, answer: str) -> tuple[str, ...]:
    """The fact's wrong answers: the same on every machine, whatever else is drawn."""
    others = sorted({other for _, other in category.pairs} - {answer})
    return tuple(random.Random(f"toy-world/{category.name}/{subject}").sample(others, DISTRACTORS))


def _build() -> tuple[tuple[Fact, ...], dict[str, Fact]]:
    """All facts in order, and the fact that each prompt text asks for."""
    facts: list[Fact] = []
    by_prompt: dict[str, Fact] = {}
    for category in CATEGORIES:
        for subject, answer in category.pairs:
            cores = tuple(core.format(subject=subject) for core in category.cores)
            fact = Fact(category.name, subject, answer, _distractors(category, subject, answer), cores)
            facts.append(fact)
            for question in category.questions:
                for framing in FRAMINGS:
                    by_prompt[framing + question.format(subject=subject)] = fact
    return tuple(facts), by_prompt


FACTS, FACT_BY_PROMPT = _build()  # prompts keep the order in which they are built
ANSWERS = {category.name: frozenset(answer for _, answer in category.pairs) for category in CATEGORIES}
ALL_ANSWERS = frozenset().union(*ANSWERS.values())


def _vocabulary() -> frozenset[str]:
    """Every word that a response of the world can contain."""
    phrases = [phrase for variants in OPENERS.values() for phrase in variants] + list(RAMBLES)
    phrases += [core for fact in FACTS for core in fact.cores]
    return frozenset(word for phrase in phrases for word in phrase.split() if word.isalnum()) | ALL_ANSWERS


VOCABULARY = _vocabulary()


def fact_of(prompt: str) -> Fact:
    """The fact that a prompt text asks for; DataError if the prompt is not of this world."""
    fact = FACT_BY_PROMPT.get(prompt)
    if fact is None:
        shown = prompt if len(prompt) <= 80 else prompt[:77] + "..."
        raise DataError(f"prompt {shown!r} is not of the embedded toy world; take prompts from data.toy.prompts()")
    return fact
