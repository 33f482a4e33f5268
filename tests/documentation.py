"""What the documentation holds: blocks, commands, links and headings of its pages, with their places.

A block of commands is fenced as `sh`; a block of yaml or python whose first line is `# NAME` is a file of that page.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/**/*.md"))
FENCE = re.compile(r"^( *)(`{3,}|~{3,})\s*([\w-]*)")
FILE_NAME = re.compile(r"^# ([\w./-]+\.(?:yaml|py))$", re.M)
COMMENT = re.compile(r"""^((?:[^'"#]|'[^']*'|"[^"]*"|(?<!\s)#)*)\s+#.*$""")
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
REFERENCE = re.compile(r"^\[[^\]]+\]:\s+(\S+)", re.M)


def name_of(page: Path) -> str:
    """A page as the tests call it."""
    return page.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: str
    line: int  # of its first line of text, from 1
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """The file that it is, if its first lines say so."""
        named = FILE_NAME.search("\n".join(self.text.splitlines()[:2]))
        return named[1] if named else None


@dataclass(frozen=True)
class Command:
    """A command as a reader types it, its comment aside."""

    page: str
    line: int
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


@cache
def split(page: Path) -> tuple[list[Block], str]:
    """A page's blocks, and its prose with as many lines as the page."""
    blocks: list[Block] = []
    prose: list[str] = []
    opened: re.Match[str] | None = None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        fence = FENCE.match(line)
        if opened is None and fence:
            opened, first, inside = fence, number + 1, list[str]()
        elif opened is not None and line.strip().startswith(opened[2]):
            text = "".join(f"{row.removeprefix(opened[1])}\n" for row in inside)
            blocks.append(Block(name_of(page), first, opened[3], text))
            opened = None
        elif opened is not None:
            inside.append(line)
        prose.append("" if opened is not None or fence else line)
    assert opened is None, f"{page}: a block is not closed"
    return blocks, "\n".join(prose)


def commands(page: Path) -> list[Command]:
    """The commands of a page, in order; one that goes on over several lines is one."""
    found = []
    for block in split(page)[0]:
        if block.language != "sh":
            continue
        begun: list[str] = []
        for number, line in enumerate(block.text.splitlines(), start=block.line):
            if not begun and (not line.strip() or line.lstrip().startswith("#")):
                continue
            begun.append(line)
            if is_whole(text := "\n".join(begun)):
                found.append(Command(block.page, number - len(begun) + 1, without_comment(text)))
                begun = []
        assert not begun, f"{block.place}: a command does not end"
    return found


def is_whole(text: str) -> bool:
    """Whether a shell would begin to run, rather than ask for another line."""
    checked = subprocess.run(["bash", "-n", "-c", text], capture_output=True, text=True, check=False)
    return not checked.returncode and not checked.stderr and not text.endswith("\\")


def without_comment(text: str) -> str:
    """A command without what is remarked behind it."""
    remarked = None if "\n" in text else COMMENT.match(text)
    return (remarked[1] if remarked else text).strip()


def links(page: Path) -> Iterator[tuple[int, str]]:
    """Line and target of each link and picture."""
    prose = re.sub(r"`[^`\n]*`", lambda code: "_" * len(code[0]), split(page)[1])
    for pattern in (LINK, REFERENCE):
        for match in pattern.finditer(prose):
            yield prose.count("\n", 0, match.start()) + 1, match[1]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub names them."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6}\s+(.+?)\s*#*$", split(page)[1], re.M):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        numbered = [slug, *(f"{slug}-{number}" for number in range(1, 9))]
        found.add(next(name for name in numbered if name not in found))
    return found


def inline(page: Path) -> Iterator[tuple[int, str]]:
    """Line and text of each piece of code in the prose."""
    prose = split(page)[1]
    for match in re.finditer(r"(?<!`)`([^`]+)`(?!`)", prose):
        yield prose.count("\n", 0, match.start()) + 1, " ".join(match[1].split())
