"""Compare two sets of answers to the same questions: paired, with intervals, over all and by group.

A and B are what `recursivemas score` wrote (rows of JSON with "strict" and "release"), or what `evaluate --output` or
`controls --output` stored. A file of more than one setting needs a choice, --a for the first and --b for the second:
this command compares two ways that were chosen beforehand, it never looks for the best one. Rows are of the same
question when their id (or unique_id, task_id, question_id) and "question" are equal, as far as all rows have them.

The difference of the two accuracies (A minus B) stands with its 95 % bootstrap interval over questions and McNemar's
exact p.

Examples:
  recursivemas compare light.jsonl scaled.jsonl --group-by subject
  recursivemas compare mine.json mine.json --a mode=latent num_rounds=2 --b mode=text num_rounds=2
  recursivemas compare judged_a.jsonl judged_b.jsonl --verdict release --json | jq .all.p
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from ..errors_recursivemas import InputError
from ..fields_recursivemas import OBJECT, TRUTH, Kind, list_of, validate_field, validate_fields
from ..files_recursivemas import parse_json, read_bytes, text_of
from .paired import only_right, paired_difference
from .results import read_results

IDENTITIES = ("id", "unique_id", "task_id", "question_id", "question", "row")
Rows = dict[tuple[str, ...], dict[str, Any]]
SETTINGS = ("mode", "control", "num_rounds", "sample", "seed")  # what a file may hold more than one of


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", type=Path, metavar="A", help="judged rows, or stored results")
    parser.add_argument("second", type=Path, metavar="B", help="those of the same questions to compare with")
    for name in "ab":
        parser.add_argument(
            f"--{name}", nargs="+", default=[], metavar="NAME=VALUE",
            help=f"which of {name.upper()}'s rows, where it holds more than one setting",
        )  # fmt: skip
    parser.add_argument(
        "--verdict", choices=("strict", "release"), default="strict", help="which scorer's (default: strict)"
    )
    parser.add_argument("--group-by", metavar="FIELD", help="a field of the rows to compare by")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    first, second = (
        judged(select(read_judged(path), chosen, f"{path} (--{name})"), str(path), arguments.verdict)
        for path, chosen, name in ((arguments.first, arguments.a, "a"), (arguments.second, arguments.b, "b"))
    )
    first_rows, second_rows = by_question(first, second)
    found = compare(first_rows, second_rows, group_by=arguments.group_by, seed=arguments.seed)
    found = {
        "a": {"file": str(arguments.first), "rows": arguments.a},
        "b": {"file": str(arguments.second), "rows": arguments.b},
        "verdict": arguments.verdict,
        "group_by": arguments.group_by,
        **found,
    }
    print(json.dumps(found, ensure_ascii=False) if arguments.json else table(found))
    return 0


def read_judged(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, one for each question and setting, with their verdicts.

    Raises:
        InputError: the file cannot be read, or holds neither judged rows nor results with their questions.
    """
    text = text_of(read_bytes(path, InputError), InputError, path)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise InputError("A file holds no rows.", where=path)
    if len(lines) > 1 and lines[0][1].strip() != "{":
        rows = [parse_json(line, InputError, f"{path}, line {number}") for number, line in lines]
    else:
        whole = parse_json(text, InputError, path)
        if isinstance(whole, dict) and "figures" in whole:
            return _rows_of_figures(read_results(path), path)
        if isinstance(whole, dict) and "rows" in whole:  # of controls
            validate_field(whole["rows"], list_of(OBJECT), f"{path}, rows", InputError)
            names = {"answer": "prediction"}
            return [{names.get(name, name): value for name, value in row.items()} for row in whole["rows"]]
        rows = [whole]
    validate_field(rows, list_of(OBJECT), f"{path}, rows", InputError)
    return rows


def _rows_of_figures(results: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    questions = results.get("questions")
    if not questions:
        raise InputError(
            "The results do not say which questions they are of.",
            where=path,
            expected="questions, as `recursivemas evaluate --output` stores them",
            hint="of a benchmark, give the NAME.jsonl beside its report; else measure again: older results hold none",
        )
    validate_field(questions, list_of(OBJECT), f"{path}, questions", InputError)
    verdicts = Kind(
        lambda value: list_of(TRUTH).holds(value) and len(value) == len(questions), "true or false of each question"
    )
    rows = []
    for index, figure in enumerate(results["figures"], start=1):
        of = {name: figure.get(name, figure.get("right")) for name in ("right", "release")}
        validate_fields(of, dict.fromkeys(of, verdicts), f"{path}, figures, number {index}", InputError)
        setting = {name: figure[name] for name in SETTINGS if name in figure}
        for question, strict, release in zip(questions, of["right"], of["release"], strict=True):
            rows.append({**question, **setting, "strict": strict, "release": release})
    return rows


def select(rows: list[dict[str, Any]], chosen: list[str], where: str) -> list[dict[str, Any]]:
    """The rows of one setting: those with the values that are chosen.

    Raises:
        InputError: a choice is no NAME=VALUE, fits no row, or leaves more than one setting.
    """
    for assignment in chosen:
        name, sign, value = assignment.partition("=")
        there = sorted({str(row[name]) for row in rows if name in row})
        rows = [row for row in rows if name in row and str(row[name]) == value]
        if not sign or not rows:
            raise InputError(
                "No row is of the setting that is chosen.",
                where=where,
                found=assignment,
                expected=f"{name}=" + " or ".join(there) if there and sign else "NAME=VALUE of a field of the rows",
            )
    for name in SETTINGS:
        values = sorted({str(row[name]) for row in rows if name in row})
        if len(values) > 1:
            raise InputError(
                "There is more than one setting to compare.",
                where=where,
                found=f"{name}: {', '.join(values)}",
                hint=f"choose one beforehand: {name}={values[0]}",
            )
    return rows


def judged(rows: list[dict[str, Any]], where: str, verdict: str) -> list[dict[str, Any]]:
    """The rows with the "verdict" that counts.

    Raises:
        InputError: a row has none.
    """
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get(verdict, row.get("right")), bool):
            raise InputError(
                "A row has no verdict.",
                where=f"{where}, row {number}",
                found=row.get(verdict),
                expected=f'"{verdict}": true or false',
                hint="judge the rows first: recursivemas score --metric … < rows.jsonl",
            )
    return [{**row, "verdict": row.get(verdict, row.get("right"))} for row in rows]


def by_question(*sides: list[dict[str, Any]]) -> list[Rows]:
    """Question -> row, for both sides: by all fields of `IDENTITIES` that every row has.

    The number of a row counts only where a question is asked twice: the order may differ.

    Raises:
        InputError: rows do not say which question they answer, or a question stands in two rows.
    """
    names = [name for name in IDENTITIES if all(row.get(name) is not None for side in sides for row in side)]
    for fields in ([name for name in names if name != "row"], names):
        found = [{tuple(str(row[name]) for name in fields): row for row in side} for side in sides]
        if fields and all(len(keys) == len(side) for keys, side in zip(found, sides, strict=True)):
            return found
    if not names:
        raise InputError(
            "Rows do not say which question they answer.",
            where="A and B",
            expected=f"a field {' or '.join(IDENTITIES)}",
        )
    raise InputError(
        "A question stands in more than one row.",
        where="A and B",
        found=" and ".join(
            f"{len(side)} rows of {len(keys)} questions" for side, keys in zip(sides, found, strict=True)
        ),
        expected=f"one row a question (told apart by {', '.join(names)})",
        hint="choose one setting or sample with --a and --b, or give the rows an id",
    )


def compare(
    first: Rows,
    second: Rows,
    group_by: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """How much more often the first is right than the second, over "all" questions and in "groups".

    Returns:
        For each: "questions", "accuracy" of both, numbers "only_a" and "only_b" has right, and `paired_difference`.

    Raises:
        InputError: the questions or their right answers differ, or a row lacks the field to group by.
    """
    if first.keys() != second.keys():
        missing = [key for key in first if key not in second], [key for key in second if key not in first]
        raise InputError(
            "The two are of different questions.",
            where="A and B",
            found=f"{len(missing[0])} only in A, {len(missing[1])} only in B, for example "
            + " | ".join(" ".join(keys[0])[:80] for keys in missing if keys),
            expected="the same questions",
        )
    answers = [
        (row["answer"], second[key]["answer"]) for key, row in first.items() if "answer" in row.keys() & second[key]
    ]
    if different := [pair for pair in answers if str(pair[0]) != str(pair[1])]:
        raise InputError(
            "Equal questions have different right answers.",
            where="A and B",
            found=f"{len(different)}, for example {str(different[0][0])[:40]} and {str(different[0][1])[:40]}",
        )
    groups: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for key in first:
        if group_by is None:
            break
        value = first[key].get(group_by, second[key].get(group_by))
        if value is None:
            raise InputError(
                "A row has no such field.", where="--group-by", found=group_by, expected=sorted(first[key])
            )
        groups[str(value)].append(key)

    def of(keys: list[tuple[str, ...]]) -> dict[str, Any]:
        one, other = ([side[key]["verdict"] for key in keys] for side in (first, second))
        only_a, only_b = only_right(one, other)
        return {
            "questions": len(keys),
            "accuracy": {"a": sum(one) / len(keys), "b": sum(other) / len(keys)},
            "only_a": only_a,
            "only_b": only_b,
            **paired_difference(one, other, seed),
        }

    return {"all": of(list(first)), "groups": {name: of(keys) for name, keys in sorted(groups.items())}}


def table(found: dict[str, Any]) -> str:
    """What `compare` found, a line for all questions and each group."""
    lines = [[found["group_by"] or "", "questions", "A", "B", "A − B", "95 % interval", "only A", "only B", "p"]]
    for name, row in [("all", found["all"]), *found["groups"].items()]:
        low, high = row["interval"]
        accuracies = [f"{row['accuracy'][side]:.3f}" for side in "ab"]
        cells = [f"{row['difference']:+.3f}", f"{low:+.3f} to {high:+.3f}", f"{row['only_a']}", f"{row['only_b']}"]
        lines.append([name, str(row["questions"]), *accuracies, *cells, f"{row['p']:.3g}"])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    said = [f"{side.upper()}: {found[side]['file']} {' '.join(found[side]['rows'])}".rstrip() for side in "ab"]
    rows = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines]
    return "\n".join([*said, f"scorer: {found['verdict']}", "", *rows])
