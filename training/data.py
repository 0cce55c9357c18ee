"""Training data: questions, what every role should say, and the final answer.

A row is `{"question": text, "targets": {role: text or list of texts, one a round}, "answer": text}`; a text stands
for every round, and `answer` is needed for evaluation only. Where the prompts name fields beside the question, the row
holds their texts too. Rows come from JSON lines, from the release's local form
(`{"data": [...]}`), or from a `datasets` dataset. The release's columns are read as they are (`RELEASE_COLUMNS`);
other column names are given as `columns={"question": ..., field: ..., "answer": ..., role: ...}`. A row may have
columns of its own beside these, which nobody reads; one that looks like the misspelt name of a column that is missing
makes a bad row, and so does a role in `targets` that the system does not have.
"""

import difflib
import json
import os
import sys
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..errors_recursivemas import ConfigError, InputError, shown
from ..evaluation.commands import inputs_of
from ..fields_recursivemas import refuse_unknown
from ..files_recursivemas import find_surrogate, parse_json, read_json, read_lines
from ..modeling_recursivemas import RecursiveMASModel
from ..prompts_recursivemas import Slot, input_fields, phase_of, template_for

# Role -> the columns of the release's data sets that hold what it should say, the first that is there counts.
RELEASE_COLUMNS = {
    "planner": ("plan",),
    "critic": ("refined_plan",),
    "solver": ("answer",),
    "reflector": ("deliberation_reflector", "answer"),
    "toolcaller": ("deliberation_toolcaller", "answer"),
}


class DataError(InputError):
    """Training data with bad rows; the message is the report."""


@dataclass(frozen=True)
class Row:
    """One question.

    Attributes:
        inputs: field -> text, `question` among them.
        targets: role -> what it should say in each round; a tuple of one stands for every round.
        answer: the final answer, where it is known.
        line: line number in its file (or index in its dataset), counted from 1.
    """

    inputs: dict[str, str]
    targets: dict[str, tuple[str, ...]]
    answer: str | None = None
    line: int = 0

    def target(self, role: str, round_index: int) -> str:
        texts = self.targets[role]
        return texts[0] if len(texts) == 1 else texts[round_index - 1]


@dataclass
class Report:
    """What was read: number of rows, and the bad ones by reason."""

    source: str
    rows: int = 0
    bad: dict[str, list[int]] = field(default_factory=dict)

    def add(self, reason: str, line: int) -> None:
        self.bad.setdefault(reason, []).append(line)

    @property
    def bad_rows(self) -> int:
        return sum(map(len, self.bad.values()))

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.rows} rows, {self.bad_rows} bad"]
        for reason, numbers in sorted(self.bad.items(), key=lambda item: -len(item[1])):
            shown = ", ".join(map(str, numbers[:10])) + (", …" if len(numbers) > 10 else "")
            lines.append(f"  {len(numbers)} × {reason} (line {shown})")
        return "\n".join(lines)


def _records(source: str | os.PathLike | Iterable[Mapping]) -> Iterator[tuple[int, Any]]:
    """(line number, object or the error that reading it gave) for everything in a source."""
    if not isinstance(source, str | os.PathLike):
        yield from enumerate(source, start=1)
    elif not (path := Path(source)).is_file() and path.suffix in (".json", ".jsonl"):
        found = "a folder" if path.is_dir() else "nothing"
        raise DataError("Training data cannot be found.", where=source, found=found, expected="a file of rows")
    elif not path.is_file():
        yield from enumerate(_dataset(source), start=1)
    elif path.suffix == ".json":
        content = read_json(path, DataError)
        records = content.get("data") if isinstance(content, dict) else content
        if not isinstance(records, list):
            found = ", ".join(content) if isinstance(content, dict) else type(content).__name__
            raise DataError("A file holds no rows.", where=path, found=found, expected='a list, or {"data": a list}')
        yield from enumerate(records, start=1)
    else:
        for number, line in read_lines(path, DataError):
            if line.strip():
                try:
                    yield number, parse_json(line, DataError, f"{path}, line {number}")
                except DataError as error:
                    yield number, error


def _dataset(source: str | os.PathLike) -> Iterable[Any]:
    """A `datasets` dataset: of a folder written by `save_to_disk`, or of the Hub."""
    try:
        import datasets
    except ImportError as error:
        hint = "give a .jsonl or .json file, or pip install recursivemas[train]"
        raise DataError("A data set needs more packages.", where=source, found=error, hint=hint) from error

    if Path(source).is_dir():
        try:
            dataset = datasets.load_from_disk(str(source))
            return dataset["train"] if isinstance(dataset, datasets.DatasetDict) else dataset
        except Exception as error:
            what, found = "A folder holds no data set.", f"{type(error).__name__}: {error}"
            expected = "what `save_to_disk` wrote, with a split `train` where there are several"
            raise DataError(what, where=source, found=found, expected=expected) from error
    try:
        return datasets.load_dataset(str(source), split="train")
    except Exception as error:
        raise DataError(
            "Training data cannot be found.",
            where=str(source),
            found=f"{type(error).__name__}: {error}"[:300],
            expected="a .jsonl or .json file, a folder of `save_to_disk`, or a data set on the Hub",
        ) from error


def _row(
    record: Any,
    line: int,
    roles: Collection[str],
    num_rounds: int,
    columns: Mapping[str, str],
    fields: Collection[str],
    known_roles: Collection[str],
) -> Row | str:
    """The row that a record holds, or the reason why it holds none."""
    if isinstance(record, Exception):
        first, *details = str(record).splitlines()
        found = next((line.partition("found: ")[2] for line in details if line.startswith("  found: ")), "")
        return first + (f" ({found})" if found else "")
    if not isinstance(record, Mapping):
        return f"not an object but {type(record).__name__}"
    inputs = inputs_of(record, fields, columns)
    for name in fields:
        if not isinstance(inputs.get(name), str) or not inputs[name].strip():
            return f"no {name}{_misspelt(record, columns.get(name, name))}"
        if find_surrogate(inputs[name]):
            return f"half a character (a lone surrogate) in {name}"
    given = record.get("targets") or {}
    if not isinstance(given, Mapping):
        return "`targets` is not an object"
    for name in given:
        if name not in roles and (name not in known_roles if known_roles else _near(name, set(roles) - given.keys())):
            hint = _near(name, {*roles, *known_roles} - given.keys())
            return f"an unknown role in `targets`: {shown(name, 40)}" + (f"; did you mean {hint}?" if hint else "")
    targets: dict[str, tuple[str, ...]] = {}
    for role in roles:
        values = [given.get(role), *map(record.get, RELEASE_COLUMNS.get(role, ()))]
        if role in columns:
            values = [record.get(columns[role])]
        value = next((value for value in values if value not in (None, "", [])), None)
        texts: tuple[Any, ...] = tuple(value) if isinstance(value, list | tuple) else (value,)
        texts = () if value is None else texts
        if not texts:
            return f"no target text for {role}{_misspelt(record, columns.get(role, 'targets'))}"
        if not all(isinstance(text, str) and text.strip() for text in texts):
            return f"an empty or non-text target for {role}"
        if find_surrogate(list(texts)):
            return f"half a character (a lone surrogate) in a target for {role}"
        if len(texts) > 1 and len(texts) < num_rounds:
            return f"{len(texts)} target texts for {role}, fewer than {num_rounds} rounds"
        targets[role] = texts
    # Names that count where they are there: what looks like one of them is meant to be it.
    optional = {columns.get("answer", "answer"), *({"targets"} if roles else ())}
    optional |= {name for role in roles if role not in given for name in RELEASE_COLUMNS.get(role, ())}
    for name in optional:
        if problem := _misspelt(record, name, {*fields, *optional, *columns.values()}):
            return f"no {name}{problem}"
    answer = record.get(columns.get("answer", "answer"))
    return Row(inputs, targets, None if answer is None else str(answer), line)


def _near(name: object, known: Collection[str]) -> str | None:
    """The known name that another looks like, if there is one."""
    near = difflib.get_close_matches(str(name)[:100].lower(), [*known], n=1, cutoff=0.75)
    return near[0] if near else None


def _misspelt(record: Mapping, name: str, known: Collection[str] = ()) -> str:
    """What a reason says of a column that looks like one which is missing; nothing where there is none."""
    if record.get(name) is not None:
        return ""
    found = next((other for other in record if other not in known and other != name and _near(other, {name})), None)
    return "" if found is None else f", but a column {shown(found, 40)}; did you mean {name}?"


def read_rows(
    source: str | os.PathLike | Iterable[Mapping],
    roles: Iterable[str] = (),
    num_rounds: int = 1,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    fields: Collection[str] = ("question",),
    known_roles: Collection[str] = (),
) -> tuple[list[Row], Report]:
    """Reads training data.

    Args:
        source: a `.jsonl` or `.json` file, a folder written by `save_to_disk`, the name of a data set on the Hub
            (split `train`), or rows.
        roles: the roles whose target texts are needed; none for questions and answers only.
        num_rounds: rounds that the target texts must cover.
        columns: a field, "answer" or a role -> the column that holds it.
        limit: read at most so many good rows.
        fields: those of a question that are needed (see `Encoder.input_fields`).
        known_roles: all of the system, where they are known.

    Returns:
        The good rows, and the report with the bad ones.

    Raises:
        DataError: there is no such source, or `columns` has an unknown name.
    """
    roles = list(roles)
    names = {"question", "answer", *fields, *roles, *known_roles}
    refuse_unknown(columns or {}, names, "Unknown name in `columns`.", "columns", DataError)
    rows: list[Row] = []
    report = Report(str(source) if isinstance(source, str | os.PathLike) else "rows")
    for line, record in _records(source):
        if limit is not None and len(rows) == limit:
            break
        report.rows += 1
        row = _row(record, line, roles, num_rounds, columns or {}, fields, known_roles)
        if isinstance(row, str):
            report.add(row, line)
        else:
            rows.append(row)
    return rows, report


def write_rows(path: Path, rows: Iterable[Mapping]) -> str:
    """Writes rows as JSON lines; returns the path as settings want it."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def refuse_bad_rows(report: Report, allowed: int = 0) -> None:
    """Raises DataError with the report, if there are more bad rows than allowed or no good one."""
    if report.bad_rows > allowed or report.bad_rows == report.rows:
        raise DataError(
            f"The training data has bad rows. {report}" if report.bad_rows else "The training data holds no row.",
            where=report.source,
            expected=f"at most {allowed} bad rows (`allowed_bad_rows`) and at least one good one",
            hint="correct or remove these rows, or allow them to be left out",
        )


class Part:
    """What one role reads and should say in one round; ids are kept as compact arrays.

    Args:
        pieces: token ids and slots of its prompt.
        target_ids: token ids of its target text, which ends with the agent's end-of-sequence token.
        messages: source role -> token ids of that role's target text, in this role's vocabulary.
    """

    def __init__(self, pieces: list[list[int] | Slot], target_ids: list[int], messages: dict[str, list[int]]) -> None:
        self._pieces = [piece if isinstance(piece, Slot) else array("i", piece) for piece in pieces]
        self._target_ids = array("i", target_ids)
        self._messages = {source: array("i", ids) for source, ids in messages.items()}

    def update(self, digest: Any) -> None:
        """Adds prompt and target to a hash."""
        for piece in self._pieces:
            digest.update(repr(piece).encode() if isinstance(piece, Slot) else piece.tobytes())
        digest.update(self._target_ids.tobytes())

    @property
    def pieces(self) -> list[list[int] | Slot]:
        """The prompt with open slots."""
        return [piece if isinstance(piece, Slot) else piece.tolist() for piece in self._pieces]

    @property
    def text_pieces(self) -> list[list[int]]:
        """The prompt with the other roles' target texts in the slots."""
        return [(self._messages[p.role] if isinstance(p, Slot) else p).tolist() for p in self._pieces]

    @property
    def target_ids(self) -> list[int]:
        return self._target_ids.tolist()

    def length(self, latent_steps: int = 0) -> int:
        """Positions of the prompt and of what follows it: with texts in its slots, or latents where these are more."""
        texts = sum(map(len, self.text_pieces)) + len(self._target_ids)
        latents = sum(latent_steps if isinstance(piece, Slot) else len(piece) for piece in self._pieces)
        return max(texts, latents + max(len(self._target_ids), latent_steps - 1))


@dataclass(frozen=True)
class Example:
    """What a row is trained on at once.

    Attributes:
        parts: (round, role) -> prompt and target.
    """

    row: Row
    parts: dict[tuple[int, str], Part]


class Encoder:
    """Turns rows into token ids and slots for the agents of a system, as inference does.

    Args:
        mas: the system.
        task: chooses the prompts; default the system's.

    Raises:
        ConfigError: an agent has no end-of-sequence token, which every target ends with.
    """

    def __init__(self, mas: RecursiveMASModel, task: str | None = None) -> None:
        self.mas, self.task = mas, task or mas.config.task
        for role, agent in mas.agents.items():
            if not agent.eos_token_ids:
                raise ConfigError(
                    "An agent has no end-of-sequence token.",
                    where=f"agent {role}, generation_config.json and tokenizer",
                    expected="`eos_token_id`, the token that ends the assistant's turn",
                )

    def input_fields(self, turns: Iterable[tuple[int, str]]) -> list[str]:
        """The fields of a question that the prompts of (round, role) pairs name."""
        return input_fields(self.mas.config.prompts, [(role, self.task, phase_of(r)) for r, role in turns])

    def part(self, row: Row, role: str, round_index: int) -> Part:
        """The prompt of a role in a round, its target, and what the others would tell it over text."""
        phase = phase_of(round_index)
        system, template = template_for(self.mas.config.prompts, role, self.task, phase)
        renderer, agent = self.mas.renderers[role], self.mas.agents[role]
        return Part(
            renderer.pieces(system, template, row.inputs),
            [*renderer.message_ids(row.target(role, round_index)), agent.eos_token_ids[0]],
            {
                link.source: renderer.message_ids(row.target(link.source, round_index - link.feedback))
                for link in self.mas.topology.incoming(role, round_index)
            },
        )

    def examples(
        self,
        rows: list[Row],
        groups: list[list[tuple[int, str]]],
        report: Report,
        max_length: int | None = None,
        quiet: bool = False,
        latent_steps: int = 0,
    ) -> list[Example]:
        """The rows whose every part fits, encoded; the others go into the report.

        Args:
            groups: the (round, role) pairs of one example; a row makes as many examples as there are groups.
            max_length: most positions of prompt and target with texts in the slots; `None` is the agents' own limits.
            quiet: show no progress bar where it takes long.
            latent_steps: that each slot is to hold, and each agent to take.
        """
        limits = {
            role: min(max_length or sys.maxsize, agent.position_limit or sys.maxsize)
            for role, agent in self.mas.agents.items()
        }
        examples = []
        for row in tqdm(rows, desc=f"encoding {report.source}", unit="row", delay=2, leave=False, disable=quiet):
            parts = {(r, role): self.part(row, role, r) for group in groups for r, role in group}
            long = [role for (_, role), part in parts.items() if part.length(latent_steps) > limits[role]]
            if long:
                report.add(f"prompt and target of {long[0]} exceed {limits[long[0]]} positions", row.line)
            else:
                examples += [Example(row, {key: parts[key] for key in group}) for group in groups]
        return examples
