"""The commands of the documentation: every page's blocks of shell commands, the marks before them, and inline ones."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs/api").glob("*.md")])
BLOCK = re.compile(
    r"(?:^<!-- (?P<kind>needs|tested by): (?P<value>.*?) -->\n+)?^```(?:bash|sh)\n(?P<text>.*?)^```", re.M | re.S
)
INLINE = re.compile(r"(?<!`)`((?:python \S+\.py|lime|torchrun|make) [^`]+)`(?!`)")


@dataclass(frozen=True)
class Block:
    """Commands that stand together on a page, with the mark before them: `needs` or `tested by`, and its values."""

    page: Path
    line: int
    kind: str | None
    values: tuple[str, ...]
    commands: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """All of a page."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page,
            text[: found.start("text")].count("\n") + 1,
            found["kind"],
            tuple(value.strip() for value in (found["value"] or "").split(",") if value.strip()),
            tuple(commands(found["text"])),
        )
        for found in BLOCK.finditer(text)
    ]


def commands(text: str) -> list[str]:
    """The commands of a block, without comments, each on one line."""
    lines = [re.sub(r"(^|\s)#.*$", "", line).strip() for line in text.replace("\\\n", " ").splitlines()]
    return [re.sub(r"\s+", " ", part).strip() for line in lines for part in line.split("&&") if part.strip()]


def inline(page: Path) -> list[str]:
    """Commands within a page's sentences."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [" ".join(found.split()) for found in INLINE.findall(prose)]
