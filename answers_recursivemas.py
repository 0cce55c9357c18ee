"""Finding the answer in a text."""

import re

CODE_BLOCK = re.compile(r"```[^\n]*\n(.*?)```", re.DOTALL)
# task -> (what an answer must hold, the line that opens it where it is missing, how many new tokens follow)
OPENINGS = {
    "math": (r"\boxed{", "\n\nThe final answer is \\boxed{", 16),
    "choice": (r"\boxed{", "\n\nThe final answer is \\boxed{", 16),
    "code": ("```", "\n\nThe final code:\n```python\n", 256),
}
# "a" and "I" are words: small ones count in brackets, or where nothing follows
LETTER = re.compile(
    r"(?i:answer|option|choice)(?i:\s+is)?\s*:?\s*"
    r"(?:\(([A-Ja-j])\)?|([A-Jb-hj]|[ai](?=[ \t]*(?:[.,;\n]|$))))(?![A-Za-z])"
)


def last_boxed(text: str) -> str | None:
    r"""Content of the last complete `\boxed{…}`, braces balanced."""
    for start in reversed([match.end() for match in re.finditer(r"\\boxed\s*\{", text)]):
        depth = 1
        for end in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return text[start:end].strip()
    return None


def extract_answer(text: str, task: str) -> str | None:
    r"""The answer in what the decoding agent wrote; `None` where it gave none (never a guess).

    math: the last `\boxed{…}`. choice: a boxed or stated letter, or the whole text if it is one letter.
    code: the last fenced block. reasoning and default: the last box, else the whole text.
    """
    boxed = last_boxed(text)
    if task == "math":
        return boxed
    if task == "choice":
        candidate = (boxed if boxed is not None else text).strip().strip("().").upper()
        if re.fullmatch(r"[A-J]", candidate):
            return candidate
        stated = LETTER.findall(text)
        return "".join(stated[-1]).upper() if stated else None
    if task == "code":
        blocks = CODE_BLOCK.findall(text)
        return blocks[-1].strip("\n") if blocks else None
    return boxed if boxed is not None else (text.strip() or None)
