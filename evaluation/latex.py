"""Answers as they are written: what only dresses them is dropped, what is in brackets stays together."""

import re
import unicodedata
from collections.abc import Callable

FORMULA = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|(?<![\\$])\$((?:\\\$|[^$])+?)(?<!\\)\$", re.DOTALL)
UNICODE = {
    "−": "-", "–": "-", "—": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "π": r"\pi ",
    "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ",
    "∅": r"\emptyset ", "±": r"\pm ", "°": r"^\circ ", "º": r"^\circ ", "²": "^2", "³": "^3", "½": r"\frac{1}{2}",
    "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "θ": r"\theta ",
    "α": r"\alpha ", "β": r"\beta ", "ℝ": r"\mathbb{R}", "⟨": r"\langle ", "⟩": r"\rangle ", "\u00a0": " ",
    "\u2009": " ",    "\u202f": " ", "％": "%", "，": ",", "（": "(", "）": ")", "＝": "=", "′": "'", "’": "'",
    "“": "", "”": "",
    "≈": r"\approx ", "⁻": "^-", "{,}": ",", "√": r"\sqrt", "－": "-", "⁄": "/", "﹣": "-", "‑": "-",
    "⅛": r"\frac{1}{8}",
    "⅜": r"\frac{3}{8}", "⅝": r"\frac{5}{8}", "⅞": r"\frac{7}{8}", "⅕": r"\frac{1}{5}", "⅖": r"\frac{2}{5}",
    "⅗": r"\frac{3}{5}", "⅘": r"\frac{4}{5}", "⅙": r"\frac{1}{6}", "⅚": r"\frac{5}{6}",
}  # fmt: skip
SUBSTITUTIONS: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"\\(?:displaystyle|textstyle|limits|nolimits|bigskip|hline|phantom\{[^{}]*\}|label\{[^{}]*\})", ""),
    (r"\\(?:left|right|bigl|bigr|Bigl|Bigr|biggl|biggr|big|Big|bigg|Bigg|middle)(?![A-Za-z])\s*\.?", ""),
    (r"\\[dtc]frac", r"\\frac"),
    (r"\\dbinom|\\tbinom", r"\\binom"),
    (r"\\(?:text(?:bf|rm|it|sf|normal|tt)?|mbox|hbox|mathrm|mathsf|mathtt|operatorname)\*?\s*\{", r"\\text{"),
    (r"\\frac\s*\{\s*\\text\s*\{([^{}]*)\}\s*\}\s*\{\s*\\text\s*\{([^{}]*)\}\s*\}", r"\\text{\1/\2}"),
    (r"(?i)^\\text\s*\{\s*(?:(?:the|final|answer|is)\s*)*:?\s*\}", ""),
    (r"\\(?:text)?color\s*\{[^{}]*\}", ""),
    (r"(?<=\d)\s*(?:\\text\s*\{\s*to\s*\}|(?<=\s)to(?=\s))\s*(?=\d)", ":"),
    (
        r"\\begin\s*\{(cases|aligned|align\*?|gathered)\}([^&]*?)\\end\s*\{\1\}",
        lambda m: m[2].strip(" \\").replace(r"\\", ","),
    ),
    (r"\\(?:leq|leqslant|leqq)(?![A-Za-z])", r"\\le "),
    (r"\\(?:geq|geqslant|geqq)(?![A-Za-z])", r"\\ge "),
    (r"\\neq(?![A-Za-z])", r"\\ne "),
    (r"\\lt(?![A-Za-z])", "<"),
    (r"\\gt(?![A-Za-z])", ">"),
    (r"<=", r"\\le "),
    (r">=", r"\\ge "),
    (r"!=", r"\\ne "),
    (r"\\(?:lbrace|lbrack)(?![A-Za-z])", lambda m: r"\{" if "brace" in m[0] else "["),
    (r"\\(?:rbrace|rbrack)(?![A-Za-z])", lambda m: r"\}" if "brace" in m[0] else "]"),
    (r"\\(?:varnothing|O(?![A-Za-z]))", r"\\emptyset "),
    (r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ|\\degree(?![A-Za-z])|\\textdegree|\{\}\^\\circ", r"\\text{°}"),
    (r"\\(?:dots|ldots|cdots)(?![A-Za-z])", r"\\dots "),
    (r"\\%", "%"),
    (r"\\(?:\$|textdollar(?![A-Za-z])|USD)", r"\\text{$}"),
    (r"\\text\s*\{\s*\\text\s*\{([^{}]*)\}\s*\}", r"\\text{\1}"),
    (r"\\(?:euro|texteuro)(?![A-Za-z])(?:\{\})?|€", r"\\text{€}"),
    (r"\\(?:pounds|textsterling)(?![A-Za-z])|£", r"\\text{£}"),
    (r"[¥₹]", lambda m: rf"\text{{{m[0]}}}"),
    (r"(?<=\d)'(?=\d{3}(?!\d))", ","),  # 1'000
    (  # 1.234.567 and 1.234,50, in Europe; 1.234 is a decimal
        r"(?<![\d.,])[1-9]\d{0,2}(?:(?:\.\d{3}){2,}(?:,\d+)?|\.\d{3},\d{1,2})(?![\d.,]|\s*,)",
        lambda m: m[0].replace(".", "").replace(",", "."),
    ),
    (r"(?<=\d)(?:,?(?<!\\)\\[,!;: ]|,\s*\\!|~|\{,\}|[ ])\s*(?=\d{3}(?![\d/]))", ","),  # thousands, in every dress
    (r"(?<!\\)\\[,!;:> ]|~|\\q?quad(?![A-Za-z])|\\(?:thin|med|thick|neg|en)?space(?![A-Za-z])", " "),
    (r"\\hspace\*?\{[^{}]*\}", " "),
    (r"\*\*", "^"),
    (r"(?<=\d)\s*[xX]\s*(?=10\s*\^)", r"\\times "),
    (r"\\frac\s+([A-Za-z\d])\s*([A-Za-z\d])", r"\\frac{\1}{\2}"),
    (r"(?<=\d)\s*\^\s*\{?\s*(?:\\text\s*\{\s*)?(st|nd|rd|th)\s*\}?\s*\}?(?![A-Za-z])", r"\\text{\1}"),
    (r"^\\text\s*\{\s*([A-Z](?:\s*(?:,|and|or|&)+\s*[A-Z])+)\s*\}$", r"\1"),
    (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
    (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
    (r"\\frac\s*(\{[^{}]*\})\s*(\w)", r"\\frac\1{\2}"),
    (r"(?<![A-Za-z\\])sqrt(?![A-Za-z])", r"\\sqrt"),
    (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"\\sqrt\s*(\d+)", r"\\sqrt{\1}"),
    (r"\\sqrt\s+(\w)", r"\\sqrt{\1}"),
    (r"(?<![A-Za-z\\])(?:infinity|infty|oo|inf)(?![A-Za-z])", r"\\infty "),
    (r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi "),
    (r"(?<![A-Za-z\\])U(?=\s*[\[(])(?<=[\])] U)", r"\\cup "),
    (r"\\text\s*\{\s*(-?\s*\\infty)\s*\}", r"\1"),
    (r"\\colon|\\mathbin\{:\}", ":"),
]  # fmt: skip
COMPILED = [(re.compile(pattern), new) for pattern, new in SUBSTITUTIONS]


def unwrapped(text: str, name: str) -> str:
    r"""A text without the commands `\name{…}`, whose contents stay."""
    while (found := re.search(rf"\\{name}\s*(?=\{{)", text)) and (end := closing(text, found.end())) is not None:
        text = text[: found.start()] + text[found.end() + 1 : end] + text[end + 1 :]
    return text


def clean(text: str) -> str:
    """An answer without what only dresses it: markers of formulas, sizes, spaces, fonts, and a full stop."""
    text = re.sub(r"(?<=\d)(?:\.{3,}|…)", r"\\dots ", text.strip().removeprefix("="))
    text = re.sub("[\U0001d400-\U0001d7ff]", lambda match: unicodedata.normalize("NFKC", match[0]), text)
    formulas = list(FORMULA.finditer(text))
    if formulas:
        text = FORMULA.sub(lambda match: next(part for part in match.groups() if part is not None), text)
    text = re.sub(r"^(-?)(US)?\$(?=-?[\d.])", r"\1\2\\text{$}", text)  # 36 dollars, not a formula
    text = re.sub(r"(?<=\d)\s*\$$", r"\\text{$}", text.strip())
    text = END.sub("", text.strip("*_` \t\n"))
    text = re.sub(r"^([\"'])([^\"']*)\1$", r"\2", text)
    for name in FONTS:
        text = unwrapped(text, name)
    for old, new in UNICODE.items():
        text = text.replace(old, new)
    for pattern, replacement in COMPILED:
        text = pattern.sub(replacement, text)
    text = re.sub(r"^\s*(?:\\approx|approximately|about|around|roughly|exactly|only|or|and)(?![A-Za-z])\s*", "", text)
    text = END.sub("", text.strip())
    text = re.sub(r"^\\text\s*\{([^{}]*\d[^{}]*)\}$", r"\1", text)
    while text.startswith("{") and closing(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
        if len(split(text, ",")) > 1 and not re.fullmatch(r"[\d,]*\d,\d{3}(?:\.\d+)?", text):
            return rf"\{{{text}\}}"  # a set in plain text
    return text


END = re.compile(r"(?:\s|(?<!\\)[.,;:?]|\\\\(?=\s*$))+$")
FONTS = ("mathbf", "boldsymbol", "bm", "mathit", "bold", "pmb", "mathnormal", "ensuremath", "underline", "vec")
OPENING = {"(": ")", "[": "]", "{": "}", r"\{": r"\}", r"\langle": r"\rangle"}
TOKEN = re.compile(r"\\(?:[A-Za-z]+|.)|.", re.DOTALL)


def closing(text: str, start: int) -> int | None:
    """Where the last character of the bracket stands that closes the one at `start`; any bracket closes any other."""
    depth = 0
    for match in TOKEN.finditer(text, start):
        if match[0] in ("(", "[", "{", r"\{", r"\langle"):
            depth += 1
        elif match[0] in (")", "]", "}", r"\}", r"\rangle"):
            depth -= 1
            if depth == 0:
                return match.end() - 1
    return None


def split(text: str, separators: str) -> list[str]:
    """The parts of a text between separators (a regular expression) that stand outside of all brackets."""
    parts, depth, begin, position = [], 0, 0, 0
    pattern = re.compile(separators)
    while position < len(text):
        token = TOKEN.match(text, position)
        assert token
        if depth == 0 and (found := pattern.match(text, position)) and found[0]:
            parts.append(text[begin:position])
            begin = position = found.end()
            continue
        depth += (token[0] in OPENING) - (token[0] in OPENING.values())
        if token[0] in (r"\begin", r"\end"):
            depth += 1 if token[0] == r"\begin" else -1
        position = token.end()
    return [part.strip() for part in [*parts, text[begin:]]]
