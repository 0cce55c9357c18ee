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
# What joins boxes to one statement: signs, "and", "or" (maybe), the name of a value. Other words part two statements.
BETWEEN_BOXES = re.compile(
    r"(?:[\s$.,;/&|?!*_()•-]|\\[()\[\],;! ]|\\q?quad|\\text\s*\{|\}|\b(?:[a-h]|[ivx]{1,3}|\d)[.)](?=[\s$\\])"
    r"|\b(?i:and|or(?:\s+it)?(?:\s+(?:is|could|might|may|can))?(?:\s+be)?|either|else|maybe|perhaps|possibly|also|even"
    r"|vs|versus|alternatively)\b)*(?:[A-Za-z]\w*\s*=[\s$]*)?"
)
# Another answer beside the last boxes: "\boxed{5} or 7", "7 or \boxed{5}".
OTHER = r"(\$[^$]+\$|[-−]?\d(?:[\d,.]*\d)?(?![\w%])|\(?[A-J]\)?(?!\w))"
OR_BEHIND = re.compile(
    rf"[\s$)*_]*[,(]?\s*(?i:or|maybe|perhaps|possibly)(?:\s+(?i:maybe|perhaps|possibly|also))*\s+{OTHER}"
)
OR_BEFORE = re.compile(rf"(?<!\w){OTHER}\s*,?\s+(?i:or)(?:\s+(?i:maybe|perhaps|possibly|also))*[\s$(*_]+$")
# What stands before and behind an answer that is denied: "not \boxed{5}", "\boxed{5} is wrong", "5 isn't the answer".
NEGATION = r"(?:\bnot\b|n['’]t\b|\bnever\b|\bcannot\b)"
DENIED_BEFORE = re.compile(
    rf"(?i){NEGATION}\s+(?:(?:be|equal|to|the|an?|exactly|option|choice|answer|number|value)\s+)*[$(*_\s]*$"
)
DENIED_BEHIND = re.compile(
    r"(?i)[\s$.,;:!?)\]}*_–—-]*(?:(?:no|wait|oops|sorry|hmm|actually)\W+)*(?:that|this|it)(?:['’]s|\s+is|\s+was)\s+"
    r"(?:wrong|incorrect|false|a\s+mistake|impossible|not\s+(?:right|correct|true|possible|the\s+answer))\b"
    r"|[\s$)\]}*_]*(?:\s[a-z]+){0,2}?\s(?:is|are|was|were|be|seems?|looks?|appears?)"
    r"(?:\s+(?:clearly|definitely|obviously|certainly|probably|simply|just|also))*"
    r"(?:\s+(?:to be\s+)?(?:wrong|incorrect|false|impossible|ruled out|excluded)\b"
    r"|(?:\s+not|n['’]t)\s+(?:the\s+|an?\s+)?(?:right|correct|true|final|answer|solution|possible|valid|it)\b)"
)
# "E. coli" is no option E.
SPECIES = (
    r"\.\s?(?:coli|difficile|pylori|cereus|botulinum|tetani|perfringens|jejuni|albicans|trachomatis|psittaci|diphtheriae"
    r"|anthracis|fragilis|burgdorferi|pertussis|henselae|influenzae|ducreyi|faecalis|faecium|histolytica|dispar|duodenale"
    r"|granulosus|cloacae|neoformans|gattii|immitis|bovis|canis|dermatitidis|granulomatis|elegans|burnetii|e\.)"
)
# Letters of a choice. "A" and "I" are words too: small ones count in brackets or where nothing follows, and an "I"
# that does something is somebody.
BARE = (
    r"(?:\(\s*[A-Ja-j]\s*\)|\[\s*[A-J]\s*\]|"
    r"(?:[A-HJb-hj]|I(?!\s+(?!is\b|was\b|because\b|since\b|and\b|or\b)[a-z])|[ai](?=[ \t]*(?:[.,;?!)\n]|$)))"
    rf"(?![\w'’+#]|-\w|{SPECIES}))"
)
OTHERS = (
    r"(?:\s*(?:,|/|&|\(?\band\b|\(?\bor\b)\s*(?:(?i:maybe|perhaps|possibly|even|also|option|choice"
    r"|(?:that\s+)?(?:the\s+)?(?:correct\s+|right\s+)?answer\s+is)\s+)*)+"
)
LETTER = rf"(?P<letter>{BARE})(?P<more>{OTHERS}{BARE}(?!\s+(?:is|was)\b))?"
# Words that may follow a letter. Another word makes it a name: "the answer is B cells".
FOLLOWING = (
    r"(?:because|since|as|which|who|that|where|when|while|whereas|and|n?or|but|yet|so|then|thus|hence|not|rather|instead"
    r"|is|was|for|from|with|without|of|in|on|at|by|to|via|due|given|based|according|after|before|al?though"
    r"|even|only|alone|here|indeed|definitely|clearly|obviously|certainly|probably|likely|maybe|perhaps|again|too|also"
    r"|the|an|it|we|you|this|these|both|must|should|would|could|can|may|might|will|has|seems|looks|appears|fits|matches"
    r"|follows|works)\b"
)
NOT = (
    r"(?!\s*\)?\s*:?\s*(?i:is|was|would be|can|could|must|seems|looks)?\s*"
    r"(?i:wrong|incorrect|false|not\b|n[o']t\b|ruled out|out\b|if\b|unless\b))"
    rf"(?!(?<=\w)[ \t]+(?!{FOLLOWING})[a-z]{{2,}})"
)
BE = r"(?:\s+(?i:is|was|be|would be|should be|must be|will be|has to be|seems to be|appears to be))"
CALLED = (
    r"(?:\s+(?i:the|my|our|answer|option|choice|letter|final|correct|best|right|therefore|thus|indeed|clearly|likely"
    r"|probably|most|simply))*"
)
STATED = (  # the last of them counts
    rf"\b(?i:answer){CALLED}{BE}?{CALLED}\s*[:=–>→⇒-]*{CALLED}\s*{LETTER}{NOT}",
    rf"\b(?i:correct|right|best)\s+(?i:option|choice|letter|one){BE}{CALLED}\s*:?\s*{LETTER}{NOT}",
    rf"\b(?i:choose|chose|pick|select|go with|take){CALLED}\s*:?\s*{LETTER}{NOT}",
    rf"\b(?i:so|thus|hence|therefore),?\s+{LETTER}(?=\s*(?:[.!\n]|$))",
    rf"\b(?i:no|wait|sorry|oops|actually|correction)\b[\s,.:—–-]+(?i:(?:it['’]s|it\s+is|the\s+answer\s+is|i\s+mean|wait)\s+)?"
    rf"{LETTER}\s*[.!]?\s*(?:\n|$)",
    rf"\b(?i:it|this)(?:['’]s|\s+(?:is|must be|has to be|should be))\s+{LETTER}{NOT}",
    rf"\b(?i:not)\s+{BARE}\s*,?\s*(?i:but)\s+{LETTER}{NOT}",
    rf"\b(?i:i\s+(?:think|believe|guess|say))(?:\s+that)?\s+{LETTER}(?=\s*(?:[.!,\n]|$))",
    rf"(?:^|\n)\s*{LETTER}\s*,?\s+(?i:because|since)\b",
    rf"(?:^|\n)\s*{LETTER}\s*[,(]?\s*(?i:and\s+)?(?i:not|rather than|instead of)\s+{BARE}\)?[.!]?\s*(?:\n|$)",
    # no other word before it: "Vitamin A is the answer"
    rf"(?:^|[^\w\s'’]\s*|\n\s*|\b(?i:option|choice|answer|letter|so|and|but|that|then|thus|hence|therefore|think|believe"
    rf"|say|clearly|because|since|while|only)\s+){LETTER}(?:[.:)]\s[^.\n]{{1,80}}?)?\s+is{CALLED}\s+"
    r"(?i:correct|right|best|answer)\b",
)
MENTIONED = (rf"\b(?i:option|choice|letter){BE}?\s*:?\s*{LETTER}{NOT}",)  # where none is stated
# No letter is chosen in a clause that denies, nor behind what rejects it: "I would not choose B", "I rule out B".
CLAUSE = re.compile(r"(?i)[.,;:!?\n]|\b(?:so|but|then|and|hence|therefore|thus|because|since|while|as)\b")
DENIED = re.compile(
    rf"(?i){NEGATION}|\b(?:hardly|neither|if|unless|suppose|assum\w+|whether|why|doubt|unlikely|impossible)\b"
    r"|^\s*(?:is|was|could|should|might)\b"
)
ALSO = re.compile(r"(?i)\balso\s+(?:be\s+)?(?:an?\s+|the\s+)?(?:correct|right|possible|true|valid|answer)\b")
TAGGED = re.compile(r"(?is)<answer>(.*?)</answer>")
REJECTED = re.compile(
    rf"(?i)(?:\brul\w+\s+out|\b(?:eliminat|exclud|reject|discard|avoid|dismiss)\w*|\bexcept|\bthan|\binstead of"
    r"|\bunlike"
    rf"|\bbut|\b(?:wrong|incorrect|false|worst|bad|worse)|\bsecond\s+best|{NEGATION})\s+(?:the\s+)?$"
)
DRESS = re.compile(
    r"</?(?:b|strong|i|em|u)>|</s>|<\|\w+\|>|<(?=[A-J]>)|(?<=<[A-J])>|[«»]|"
    r"\\(?:text(?:bf|rm|it|sf)?|math(?:bf|rm|it|sf)|mbox|boldsymbol|bf)\b\s*|\\[()\[\],;! ]|"
    r"[*_$`{}~\"“”]|(?<!\w)['‘](?=[A-J]['’])|(?<=\b[A-J])['’](?!\w)|</?answer>|\[(?=\[)|(?<=\])\]"
)
OPTION = re.compile(  # a line that is an option: "C", "(C) aspirin", "c) aspirin", "Option C: aspirin"
    r"(?:(?i:final\s+)?(?i:answer|option|choice)\s*:?\s*)?(?:[(\[]\s*([A-Ja-j])\s*[)\]]|([A-Ja-j])(?=\s*$|[.):\]](?:\s|$)|\s+[-–—]+\s)"
    rf"(?!{SPECIES}))(?P<rest>.*)"
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


def in_tags(text: str) -> str:
    """What stands in the last `<answer>…</answer>` of a text, else that text."""
    found = TAGGED.findall(text)
    return (found[-1] if found else text).strip()


def last_boxes(text: str) -> list[str]:
    r"""Contents of the boxes that a text ends with: the last one and others of the same statement, each once.

    Boxes are one statement where nothing, a comma, "and" or "or" stands between them; where other words do, the last
    counts. None where the statement is denied: "not \boxed{5}", "\boxed{5} is wrong".
    """
    kept = _last_statement(text)
    return list(dict.fromkeys(content for _, _, content in kept))


def beside_boxes(text: str) -> list[str]:
    """Other answers that "or" joins to the boxes that a text ends with: 7 in `\\boxed{5} or 7`."""
    if not (kept := _last_statement(text)):
        return []
    found = OR_BEFORE.search(text[: kept[0][0]][-80:]), OR_BEHIND.match(text[kept[-1][1] :])
    return [match[1] for match in found if match]


def _last_statement(text: str) -> list[tuple[int, int, str]]:
    """The boxes of `last_boxes`, as `boxes` gives them."""
    found = boxes(text)
    kept = found[-1:]
    for before, after in zip(reversed(found[:-1]), reversed(found[1:]), strict=True):
        if before[1] > after[0] or not BETWEEN_BOXES.fullmatch(text[before[1] : after[0]]):
            break
        kept.insert(0, before)
    if kept and (DENIED_BEFORE.search(text[: kept[0][0]][-80:]) or DENIED_BEHIND.match(text[kept[-1][1] :])):
        return []
    return kept


def boxed_answer(text: str) -> str | None:
    """The boxes that a text ends with, see `last_boxes`, several joined by commas; `None` where there is none."""
    found = last_boxes(text)
    return ", ".join(found) if found else None


def option_letter(text: str) -> str | None:
    """The letter that a line is, however it is dressed: `**C**`, `\\text{(C)}`, "C) aspirin"; else `None`."""
    line = DRESS.sub("", text).lstrip("> \t-–•*#=→⇒∴✓✔✅☑").rstrip(" \t?!;,✓✔✅☑")
    found = OPTION.fullmatch(line)
    rest = found["rest"].lstrip(".)]: -–—") if found else ""
    several = re.match(r"[,/&+|]|(?:and|or)\b|[(\[]\s*[A-Ja-j]\s*[)\]]|[A-J]\b\W*$", rest) or re.search(
        r"\b(?i:no|wait|actually|sorry|oops)\b\W+(?:\w+\W+){0,3}?[A-J]\b\W*$", rest
    )
    return (found[1] or found[2]).upper() if found and not several else None


def stated_letter(text: str) -> str | None:
    """The letter that a text chooses, boxed or stated or a line of its own; `None` where it names none, or several."""
    text = unicodedata.normalize("NFKC", text).replace("\u200b", "")  # bold letters and encircled ones are letters
    text = in_tags(text)
    boxed = last_boxes(text)
    letters = {option_letter(content) for content in boxed}
    if letters - {None}:
        letters |= {option_letter(content) for content in beside_boxes(text)} - {None}
        return letters.pop() if len(letters) == 1 else None
    if any(re.fullmatch(rf"\W*(?i:either\s+)?{LETTER}\W*", DRESS.sub("", content)) for content in boxed):
        return None  # more than one
    plain = DRESS.sub("", text)
    if re.fullmatch(r"[A-Ja-j]", alone := plain.strip(" ()[].:;,?!。【】\n")):
        return alone.upper()
    written = [line for line in text.splitlines() if line.strip()]
    if len(written) > 1:  # "B?\nNo."
        written = [line for line in written if not line.rstrip(" *_").endswith("?")]
    if ALSO.search(plain):
        return None
    lines = {letter for line in written if (letter := option_letter(line))}
    for patterns in (STATED, MENTIONED):
        matches = [
            match
            for pattern in patterns
            for match in re.finditer(pattern, plain)
            if not (
                REJECTED.search(before := plain[max(0, match.start() - 200) : match.start()])
                or (patterns is STATED and DENIED.search(CLAUSE.split(before)[-1]))
            )
        ]
        if matches:
            last = max(matches, key=lambda match: match.start("letter"))
            if DENIED_BEHIND.match(plain[last.end("letter") :]):
                return None
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
    it is dressed. code: see `program`. reasoning and default: the last box, else the whole text. Boxes of one
    statement are one answer, with commas, see `last_boxes`.
    """
    text = without_thoughts(text)
    if task == "choice":
        return stated_letter(text)
    if task == "code":
        return program(text)
    boxed = boxed_answer(text)
    if task == "math":
        return boxed
    return boxed if boxed is not None else (text.strip() or None)
