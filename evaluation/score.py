"""Judge finished outputs, strictly and by the public release's rules.

Rows of JSON come on standard input (or from --file): "prediction", what was written (null where nothing was), and
"answer", the right one, or for --metric code the tests of a program. The same rows go out, with "strict" and
"release", true or false, and whatever else they held; a summary goes to standard error. docs/benchmarks.md says how
answers are judged, and shows rows with tests.

Examples:
  recursivemas score --metric math < rows.jsonl > judged.jsonl
  recursivemas score --metric choice --file rows.jsonl --output judged.jsonl
  recursivemas score --metric code --allow-code --file programs.jsonl --output judged.jsonl
  echo '{"prediction": "so \\\\boxed{0.5}", "answer": "\\\\frac{1}{2}"}' | recursivemas score --metric math
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..answers_recursivemas import extract_answer
from ..errors_recursivemas import InputError
from ..files_recursivemas import parse_json, read_bytes, text_of
from ..folders_recursivemas import write_text
from .commands import add_replace_argument, validate_file
from .measure import wilson_interval
from .metrics import JUDGES, f1_score
from .programs import CODE, require_allowed, tests_of


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--metric", choices=JUDGES, required=True, help="when an answer is right")
    parser.add_argument("--allow-code", action="store_true", help="let --metric code run programs, in the sandbox")
    parser.add_argument("--file", type=Path, help="JSON-lines file of the rows (default: standard input)")
    parser.add_argument("--output", type=Path, help="file for the judged rows (default: standard output)")
    add_replace_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    validate_file(arguments.output, arguments.replace)
    require_allowed(arguments.metric, arguments.allow_code, f"--metric {arguments.metric}")
    JUDGES[arguments.metric].require()
    name = str(arguments.file or "standard input")
    stream = getattr(sys.stdin, "buffer", sys.stdin)  # a text, where somebody has put one in its place
    content = read_bytes(arguments.file, InputError) if arguments.file else stream.read()
    text = text_of(content, InputError, name) if isinstance(content, bytes) else content
    rows = list(read_outputs(text.split("\n"), name, arguments.metric))  # all are read before any is judged
    if not rows:
        raise InputError("There is nothing to judge.", where=name, expected="rows with prediction and answer")
    read = list(spelled(rows))
    verdicts = JUDGES[arguments.metric].judge_rows([row["prediction"] for row in read], read)
    judged = [row | verdict for row, verdict in zip(read, verdicts, strict=True)]
    lines = "".join(
        json.dumps(row | verdict, ensure_ascii=False) + "\n" for row, verdict in zip(rows, verdicts, strict=True)
    )
    if arguments.output:
        write_text(arguments.output, lines)
    else:
        print(lines, end="")
    print(summary(judged, arguments.metric), file=sys.stderr)
    return 0


def read_outputs(lines: Iterable[str], name: str, metric: str = "exact") -> Iterator[dict[str, Any]]:
    """The rows of JSON lines; empty lines are passed over.

    Raises:
        InputError: a line is no object with a "prediction" (a text, a number or null) and an "answer" (not null), or
            for the metric `code` tests.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        row = parse_json(line, InputError, where)
        if problem := _problem(row, metric):
            raise InputError(
                "A line is no output with its answer.",
                where=where,
                found=f"{line.strip()[:80]} ({problem})",
                expected='{"prediction": "what was written", "answer": "the right one"}',
            )
        if metric == CODE:
            tests_of(row, where)
        yield row


def _problem(row: Any, metric: str) -> str | None:
    if not isinstance(row, dict):
        return "no object"
    names = ("prediction",) if metric == CODE else ("prediction", "answer")
    for name in names:
        if name not in row:
            return f"no {name}"
        if isinstance(row[name], bool) or not isinstance(row[name], (str, int, float, type(None))):
            return f"{name} is no text"
    empty = "answer" in names and (row["answer"] is None or not str(row["answer"]).strip())
    return "answer is empty" if empty else None


def spelled(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows with numbers in the places of prediction and answer as texts."""
    for row in rows:
        prediction = row["prediction"]
        answer = {"answer": str(row["answer"])} if "answer" in row else {}
        yield row | {"prediction": None if prediction is None else str(prediction)} | answer


def summary(judged: list[dict[str, Any]], metric: str) -> str:
    """How many are right, with 95 % Wilson intervals; for phrases the mean F1; right answers that cannot be read."""
    lines = [f"{len(judged)} outputs, metric {metric}"]
    for name in ("strict", "release"):
        right = sum(row[name] for row in judged)
        low, high = wilson_interval(right, len(judged))
        lines.append(f"  {name:<8}{right} right, {right / len(judged):.3f} ({low:.3f}–{high:.3f})")
    if metric == "f1":
        mean = sum(f1_score(row["prediction"] or "", row["answer"]) for row in judged) / len(judged)
        lines.append(f"  F1      {mean:.3f}")
    if metric == "choice":
        unread = sum(extract_answer(row["answer"], "choice") is None for row in judged)
        lines += [f"  {unread} right answers are no letter: wrong in strict, A in release"] * bool(unread)
    return "\n".join(lines)
