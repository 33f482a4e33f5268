"""Talk to a policy in the terminal, side by side with another, each answer with its reward score.

`rlhf chat RUN` starts this as a child process: python -m stages.chat RUN [--against RUN]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rlhf.errors import RLHFError
from rlhf.references import kind_of
from stages.command import quiet_libraries
from stages.dialogue import Display, JsonDisplay, PlainDisplay, TerminalDisplay
from stages.speakers import Answer, Scoring, Settings, Speaker
from stages.targets import Target, find_target

HELP = """/reset           forget the conversation
/seed N          other draws, and from the first again
/temperature T   1: as in training; lower: more certain; 0: the most probable token
/help            this
/quit            end, as Ctrl-D does; Ctrl-C stops an answer"""
LONGEST = 256  # tokens of an answer of a model that no recipe limits


@dataclass
class Chat:
    """One or two speakers, who are asked the same."""

    speakers: list[Speaker]
    settings: Settings
    display: Display
    scoring: Scoring | None
    step: int = 0  # keys the noise of the next answer

    def turn(self, text: str) -> None:
        """Ask everybody, and show the answers as they are written. Ctrl-C leaves the turn out of the conversation."""
        before = [(list(speaker.conversation.turns), speaker.conversation.dropped) for speaker in self.speakers]
        try:
            self.display.asked(text, [speaker.label for speaker in self.speakers])
            answers = [self.answer(number, text) for number in range(len(self.speakers))]
        except BaseException:
            for speaker, (turns, dropped) in zip(self.speakers, before, strict=True):
                speaker.conversation.turns, speaker.conversation.dropped = turns, dropped
            self.display.broken()
            raise
        self.step += 1
        self.display.answered(answers)
        for speaker, (_, dropped) in zip(self.speakers, before, strict=True):
            if speaker.conversation.dropped and not dropped:
                self.display.say(f"{speaker.label}: its context is full; the oldest turns are dropped from now on")

    def answer(self, number: int, text: str) -> Answer:
        """One speaker's answer with its figures."""
        speaker = self.speakers[number]
        answer = speaker.answer(text, self.settings, self.step, lambda so_far: self.display.written(number, so_far))
        for other in self.speakers:
            if other is not speaker and other.understands(speaker) and self.settings.temperature > 0:
                theirs = other.logprob(answer.completion, self.settings.temperature)
                answer = answer._replace(kl=answer.logprob - theirs)
        if self.scoring is not None:
            try:
                answer = answer._replace(score=self.scoring.score(speaker, answer.completion))
            except (RLHFError, OSError) as error:
                self.display.say(f"no scores from now on: {error}")
                self.scoring = None
        self.display.noted(number, answer)
        return answer

    def reset(self) -> None:
        """Forget the conversation; the same questions then get the same answers."""
        self.step = 0
        for speaker in self.speakers:
            speaker.conversation.reset()

    def command(self, line: str) -> bool:
        """Obey a line that begins with a slash; False at the end."""
        name, _, value = line.partition(" ")
        if name in ("/quit", "/exit"):
            return False
        if name == "/reset":
            self.reset()
            self.display.say("the conversation begins anew")
        elif name == "/seed" and value.strip().isdigit():
            self.settings.seed, self.step = int(value), 0
            self.display.say(f"seed {self.settings.seed}")
        elif name == "/temperature" and (temperature := positive(value)) is not None:
            self.settings.temperature = temperature
            self.display.say(f"temperature {temperature:g}")
        elif name == "/help":
            self.display.say(HELP)
        else:
            self.display.say(f"{line}: no such command, or a value that it does not take\n{HELP}")
        return True


def positive(text: str) -> float | None:
    """A number from 0 up, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None


def arguments() -> argparse.Namespace:
    """The options; `rlhf chat --help` explains them."""
    parser = argparse.ArgumentParser(prog="python -m stages.chat", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("target", metavar="RUN|MODEL")
    parser.add_argument("--against", metavar="RUN|MODEL")
    parser.add_argument("--stage")
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--max-new-tokens", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--system")
    parser.add_argument("--prompt", action="append", default=[])
    parser.add_argument("--conversation", action="store_true")
    parser.add_argument("--no-scores", action="store_true")
    parser.add_argument("--reward", action="store_true")
    parser.add_argument("--trust-remote-code", action="store_true")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def begin(options: argparse.Namespace, display: Display) -> Chat:
    """Load the models."""
    code = options.trust_remote_code
    targets = [find_target(options.target, options.stage, code)]
    if options.against:
        targets.append(find_target(options.against, trust_remote_code=code))
    speakers = [Speaker(target, options.system) for target in targets]
    generation = targets[0].recipe.ppo.generation
    from_run = targets[0].run is not None
    settings = Settings(
        seed=options.seed,
        temperature=generation.temperature if options.temperature is None else options.temperature,
        max_new_tokens=options.max_new_tokens or (generation.max_new_tokens if from_run else LONGEST),
        top_p=generation.top_p,
    )
    scoring = None if options.no_scores else scoring_of(targets, options.reward, display.say)
    return Chat(speakers, settings, display, scoring)


def scoring_of(targets: list[Target], named: bool, say: Callable[[str], None]) -> Scoring | None:
    """The reward of the first target whose run has one: both are scored alike.

    named: whether a function or a server may be asked that a run's manifest names: a run may be somebody else's, and
    its manifest must neither run code here nor send the conversation away.
    """
    for target in targets:
        if artifact := target.reward:
            used = artifact.manifest.get("use")
            if used is None or named or kind_of(used) == "model":
                return Scoring(artifact, target.recipe)
            say(f"no scores: the reward of {target.label} is the {kind_of(used)} {used}; --reward asks it")
            return None
    return None


def converse(chat: Chat) -> None:
    """Read turns from the terminal until somebody ends it; Ctrl-C stops an answer, or else ends it too."""
    for speaker in chat.speakers:
        if not speaker.tokenization.chat:
            chat.display.say(f"{speaker.label} has no chat template: it continues each text, and remembers none")
    chat.display.say("/help says what else you can do; Ctrl-D ends")
    while True:
        try:
            line = input("\nyou> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if line.startswith("/"):
            if not chat.command(line):
                return
        elif line:
            try:
                chat.turn(line)
            except KeyboardInterrupt:
                chat.display.say("stopped; that turn is forgotten")
            except RLHFError as error:
                chat.display.say(f"error: {error}")


def answer_all(chat: Chat, prompts: Iterator[str], one_conversation: bool) -> None:
    """Answer prompts one after another, each by itself unless they are the turns of one conversation."""
    for text in prompts:
        chat.turn(text)
        if not one_conversation:
            step = chat.step
            chat.reset()
            chat.step = step


def lines_of_input() -> Iterator[str]:
    """Lines of standard input that say something."""
    for line in sys.stdin:
        if line.strip():
            yield line.rstrip("\n")


def main() -> int:
    """Talk; the exit code."""
    options = arguments()
    quiet_libraries()
    interactive = not options.prompt and sys.stdin.isatty()
    display: Display = PlainDisplay()
    if options.json:
        display = JsonDisplay(lambda row: print(json.dumps(row, ensure_ascii=False), flush=True))
    elif sys.stdout.isatty():
        display = TerminalDisplay()
    try:
        chat = begin(options, display)
        if interactive:
            converse(chat)
        else:
            answer_all(chat, iter(options.prompt) if options.prompt else lines_of_input(), options.conversation)
    except RLHFError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever reads us has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
