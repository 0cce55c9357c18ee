"""Finding the answer in a text."""

import re
import unicodedata

CODE_BLOCK = re.compile(r"(```+|~~~+)([^\n`]*)\n(.*?)\1", re.DOTALL)
PYTHON = ("", "python", "python3", "py")  # what fences of programs say
DEFINITION = re.compile(r"^(?:async\s+)?(?:def|class)\s", re.MULTILINE)
# task -> (what an answer must hold, the line that opens it where it is missing, how many new tokens follow)
OPENINGS = {
    "math": (r"\boxed{", "\n\nThe final answer is \\boxed{", 16),
    "choice": (r"\boxed{", "\n\nThe final answer is \\boxed{", 16),
    "code": ("```", "\n\nThe final code:\n```python\n", 256),
}
# Thoughts before an answer, as templates of reasoning models mark them.
THOUGHTS = r"(?:think(?:ing)?|thoughts?|reason(?:ing)?)"
BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
# Letters of a choice. "A" and "I" are words too: small ones count in brackets or where nothing follows, and an "I"
# that does something is somebody.
BARE = (
    r"(?:\(\s*[A-Ja-j]\s*\)|\[\s*[A-J]\s*\]|"
    r"(?:[A-HJb-hj]|I(?!\s+(?!is\b|was\b|because\b|since\b|and\b|or\b)[a-z])|[ai](?=[ \t]*(?:[.,;)\n]|$)))(?![\w'’]))"
)
OTHERS = r"(?:\s*(?:,|/|&|\band\b|\bor\b)\s*(?:(?i:maybe|perhaps|possibly|even|also)\s+)?)+"
LETTER = rf"(?P<letter>{BARE})(?P<more>{OTHERS}{BARE}(?!\s+(?:is|was)\b))?"
NOT = (
    r"(?!\s*\)?\s*:?\s*(?i:is|was|would be|can|could|must|seems|looks)?\s*"
    r"(?i:wrong|incorrect|false|not\b|n[o']t\b|ruled out|out\b))"
)
BE = r"(?:\s+(?i:is|was|be|would be|should be|must be|will be|has to be|seems to be|appears to be))"
CALLED = (
    r"(?:\s+(?i:the|my|our|answer|option|choice|letter|final|correct|best|right|therefore|thus|indeed|clearly|likely"
    r"|probably|most|simply))*"
)
STATED = (  # the last of them counts
    rf"\b(?i:answer){CALLED}{BE}?{CALLED}\s*[:=–-]*{CALLED}\s*{LETTER}{NOT}",
    rf"\b(?i:correct|right|best)\s+(?i:option|choice|one){BE}{CALLED}\s*:?\s*{LETTER}{NOT}",
    rf"\b(?i:choose|chose|pick|select|go with|take){CALLED}\s*:?\s*{LETTER}{NOT}",
    rf"\b(?i:so|thus|hence|therefore),?\s+{LETTER}(?=\s*(?:[.!\n]|$))",
    rf"\b(?i:it|this)(?:['’]s|\s+(?:is|must be|has to be|should be))\s+{LETTER}{NOT}",
    rf"\b(?i:not)\s+{BARE}\s*,?\s*(?i:but)\s+{LETTER}{NOT}",
    rf"\b(?i:i\s+(?:think|believe|guess|say))(?:\s+that)?\s+{LETTER}(?=\s*(?:[.!,\n]|$))",
    rf"(?:^|\n)\s*{LETTER}\s*,?\s+(?i:because|since)\b",
    # no other word before it: "Vitamin A is the answer"
    rf"(?:^|[^\w\s'’]\s*|\n\s*|\b(?i:option|choice|answer|letter|so|and|but|that|then|thus|hence|therefore|think|believe"
    rf"|say|clearly|because|since|while|only)\s+){LETTER}(?:[.:)]\s[^.\n]{{1,80}}?)?\s+is{CALLED}\s+"
    r"(?i:correct|right|best|answer)\b",
)
MENTIONED = (rf"\b(?i:option|choice){BE}?\s*:?\s*{LETTER}{NOT}",)  # where none is stated
DRESS = re.compile(
    r"\\(?:text(?:bf|rm|it|sf)?|math(?:bf|rm|it|sf)|mbox|boldsymbol|bf)\b\s*|\\[()\[\],;! ]|"
    r"[*_$`{}~\"“”]|(?<!\w)['‘](?=[A-J]['’])|(?<=\b[A-J])['’](?!\w)|</?answer>|\[(?=\[)|(?<=\])\]"
)
OPTION = re.compile(  # a line that is an option: "C", "(C) aspirin", "c) aspirin", "Option C: aspirin"
    r"(?:(?i:final\s+)?(?i:answer|option|choice)\s*:?\s*)?(?:[(\[]\s*([A-Ja-j])\s*[)\]]|([A-Ja-j])(?=\s*$|[.):](?:\s|$)))"
    r"(?P<rest>.*)"
)


def without_thoughts(text: str) -> str:
    """What stands outside of a reasoning model's thoughts (`<think>…</think>`); thoughts that never end hide the rest.

    An end without a start ends thoughts that the chat's template has opened.
    """
    text = re.sub(rf"(?is)<({THOUGHTS})>.*?</\1>", " ", text)
    text = re.split(rf"(?i)</{THOUGHTS}>", text)[-1]
    return re.split(rf"(?i)<{THOUGHTS}>", text)[0]


def boxes(text: str) -> list[tuple[int, int, str]]:
    r"""Start, end and content of every complete `\boxed{…}` or `\fbox{…}`, braces balanced, by their starts."""
    found = []
    for match in BOX.finditer(text):
        depth = 1
        for brace in re.finditer(r"\\.|[{}]", text[match.end() :]):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)  # `\{` is a sign, not a brace
            if depth == 0:
                end = match.end() + brace.start()
                found.append((match.start(), end + 1, text[match.end() : end].strip()))
                break
    return found


def last_boxed(text: str) -> str | None:
    r"""Content of the last complete `\boxed{…}`, braces balanced."""
    found = boxes(text)
    return found[-1][2] if found else None


def option_letter(text: str) -> str | None:
    """The letter that a line is, however it is dressed: `**C**`, `\\text{(C)}`, "C) aspirin"; else `None`."""
    line = DRESS.sub("", text).strip().lstrip("> ")
    found = OPTION.fullmatch(line)
    several = found and re.match(r"\s*(?:,|/|&|and\b|or\b|[(\[]\s*[A-Ja-j]\s*[)\]])", found["rest"])
    return (found[1] or found[2]).upper() if found and not several else None


def stated_letter(text: str) -> str | None:
    """The letter that a text chooses, boxed or stated or a line of its own; `None` where it names none, or several."""
    text = unicodedata.normalize("NFKC", text)  # bold letters and encircled ones are letters
    boxed = last_boxed(text)
    if boxed is not None:
        if letter := option_letter(boxed):
            return letter
        if re.fullmatch(rf"\W*(?i:either\s+)?{LETTER}\W*", DRESS.sub("", boxed)):
            return None  # more than one
    plain = DRESS.sub("", text)
    if re.fullmatch(r"[A-Ja-j]", plain.strip(" ()[].:!\n")):
        return plain.strip(" ()[].:!\n").upper()
    lines = {letter for line in text.splitlines() if (letter := option_letter(line))}
    for patterns in (STATED, MENTIONED):
        matches = [match for pattern in patterns for match in re.finditer(pattern, plain)]
        if matches:
            last = max(matches, key=lambda match: match.start("letter"))
            return None if last["more"] else last["letter"].strip("()[] ").upper()
        if len(lines) == 1:
            return lines.pop()
    return None


def program(text: str) -> str | None:
    """The program in a text: its last complete fenced block, but that of an example which follows definitions.

    Blocks that say to be no Python (`text`, `output`, …) count only where there is no other.
    """
    blocks = [(language, code.strip("\n")) for _, language, code in CODE_BLOCK.findall(text)]
    python = [code for language, code in blocks if language.strip().lower() in PYTHON] or [code for _, code in blocks]
    defining = [code for code in python if DEFINITION.search(code)]
    return (defining or python or [None])[-1]


def extract_answer(text: str, task: str) -> str | None:
    r"""The answer in what the decoding agent wrote; `None` where it gave none (never a guess).

    Thoughts (`<think>…</think>`) are no answer. math: the last `\boxed{…}`. choice: a boxed or stated letter, however
    it is dressed. code: see `program`. reasoning and default: the last box, else the whole text.
    """
    text = without_thoughts(text)
    if task == "choice":
        return stated_letter(text)
    if task == "code":
        return program(text)
    boxed = last_boxed(text)
    if task == "math":
        return boxed
    return boxed if boxed is not None else (text.strip() or None)
