"""What people see of a task, as a Label Studio configuration: the prompt, two responses side by side, the question.

Keys 1, 2 and 3 answer it. Ratings and a reason are optional. Written for Label Studio 1.23.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

from rlhf.errors import ConfigError

QUESTION, REASON = "preference", "reason"
CHOICES = {"A": "1", "B": "2", "tie": "3"}  # and their keys
STARS = 5
SIDES = ("a", "b")
MOST_DIMENSIONS = 8
STYLE = """
.rlhf-prompt, .rlhf-response {white-space: pre-wrap; overflow-wrap: anywhere; overflow-y: auto; padding: 10px 12px;
  border: 1px solid #b8b8b8; border-radius: 6px}
.rlhf-prompt {max-height: 34vh; background: rgba(128, 128, 128, 0.08)}
.rlhf-pair {display: grid; grid-template-columns: 1fr 1fr; gap: 14px; align-items: start; margin-top: 6px}
.rlhf-response {max-height: 52vh}
.rlhf-row {display: grid; grid-template-columns: 11em 1fr 1fr; gap: 14px; align-items: center}
"""


def page(dimensions: Sequence[str] = ()) -> str:
    """The configuration. dimensions: what each response may be rated by, such as helpfulness."""
    responses = "".join(
        f'<View><Header size="5" value="Response {side.upper()}"/>'
        f'<View className="rlhf-response"><Text name="response_{side}" value="$response_{side}"/></View></View>'
        for side in SIDES
    )
    choices = "".join(f'<Choice value="{choice}" hotkey="{key}"/>' for choice, key in CHOICES.items())
    return (
        f"<View><Style>{STYLE}</Style>\n"
        '<Header size="5" value="Prompt"/>'
        '<View className="rlhf-prompt"><Text name="prompt" value="$prompt"/></View>\n'
        f'<View className="rlhf-pair">{responses}</View>\n'
        '<Header size="5" value="Which response is better? (keys 1, 2, 3)"/>'
        f'<Choices name="{QUESTION}" toName="prompt" choice="single-radio" required="true" '
        f'requiredMessage="Choose A, B or tie" showInLine="true">{choices}</Choices>\n'
        f"{_ratings(dimensions)}"
        f'<TextArea name="{REASON}" toName="prompt" placeholder="Why? (optional)" rows="2" maxSubmissions="1" '
        'editable="true"/></View>'
    )


def _ratings(dimensions: Sequence[str]) -> str:
    if not dimensions:
        return ""
    cells = "".join(f'<View><Header size="6" value="{side.upper()}"/></View>' for side in SIDES)
    rows = [f'<View className="rlhf-row"><View/>{cells}</View>']
    for name in dimensions:
        stars = "".join(
            f'<View><Rating name="{rating_name(name, side)}" toName="response_{side}" maxRating="{STARS}"/></View>'
            for side in SIDES
        )
        label = f'<View><Header size="6" value={quoteattr(name.replace("_", " ").capitalize())}/></View>'
        rows.append(f'<View className="rlhf-row">{label}{stars}</View>')
    return "".join(f"{row}\n" for row in rows)


def rating_name(dimension: str, side: str) -> str:
    """The name of a rating in annotations."""
    return f"{dimension}_{side}"


def check_dimensions(dimensions: Sequence[str]) -> tuple[str, ...]:
    """Names that can be rated by. Raises ConfigError for others."""
    for name in dimensions:
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name) or name in ("response", QUESTION, REASON, "prompt"):
            raise ConfigError(f"--rate {name}: not a name to rate by; give a word such as helpfulness")
    if len(set(dimensions)) < len(dimensions) or len(dimensions) > MOST_DIMENSIONS:
        raise ConfigError(f"--rate: give each name once, and {MOST_DIMENSIONS} at most")
    return tuple(dimensions)


def missing_controls(config: str, dimensions: Sequence[str]) -> list[str]:
    """What a project's configuration lacks of ours: a page that somebody has edited may ask another question."""
    try:
        root = ElementTree.fromstring(config)
    except ElementTree.ParseError:
        return [QUESTION]
    names = {element.get("name"): element for element in root.iter() if element.get("name")}
    wanted = [*(f"response_{side}" for side in SIDES), QUESTION]
    wanted += [rating_name(name, side) for name in dimensions for side in SIDES]
    lacking = [name for name in wanted if name not in names]
    shown = {f"response_{side}": f"$response_{side}" for side in SIDES}
    lacking += [name for name, value in shown.items() if name in names and names[name].get("value") != value]
    if QUESTION in names:
        offered = {choice.get("value") for choice in names[QUESTION].iter("Choice")}
        lacking += [] if offered == set(CHOICES) else [QUESTION]
    return lacking
