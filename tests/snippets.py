"""The code blocks of a Markdown file, to be run as they are printed."""

import re
from typing import NamedTuple

BLOCK = re.compile(r"^(?:<!-- (?P<skip>needs [^>]*?) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)^```$", re.M | re.S)
RUNNABLE = ("python", "bash")


class Block(NamedTuple):
    """A block of code.

    Attributes:
        language: "python" or "bash".
        code: its text.
        skip: why it cannot run everywhere, from a comment directly above it (`<!-- needs a GPU -->`); else `None`.
    """

    language: str
    code: str
    skip: str | None


def code_blocks(text: str) -> list[Block]:
    """All blocks in a language that can run, in order."""
    blocks = [Block(match["language"], match["code"], match["skip"]) for match in BLOCK.finditer(text)]
    return [block for block in blocks if block.language in RUNNABLE]
