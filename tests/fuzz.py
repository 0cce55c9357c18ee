"""Mutations of every kind of file that is read: whatever it holds, what comes out is an answer or an error of ours.

    make fuzz                                       # 20,000 cases, two processes
    python tests/fuzz.py --cases 400 --seed 3       # fewer, others
    python tests/fuzz.py --seed 0 --case 1234       # one case again, with its traceback

Each case mutates one file of a tiny system, a released system, a style, a prompt set, rows, questions, results, a
plan or settings, and reads it as the project does; what loads must answer a question. Cases run in forked processes
with 10 seconds of the processor and a limit of memory each, under an audit hook. A case ends as

    unchanged   what comes out is what the whole file gives
    accepted    something else comes out (another number, another weight)
    refused     a `RecursiveMASError` of bounded length
    foreign     any other exception, or the process died
    hang        more than 10 seconds of the processor, or two minutes of the clock
    code        something ran: a process, a connection, a pickle, code of the folder; or a write outside of it

The last three must not be.
"""

import argparse
import collections
import contextlib
import copy
import functools
import json
import os
import pickle
import random
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from recursivemas.configuration_recursivemas import RecursiveMASConfig
from recursivemas.errors_recursivemas import InputError, RecursiveMASError
from recursivemas.evaluation.compare import by_question, compare, judged, read_judged
from recursivemas.evaluation.compare import select as rows_of_setting
from recursivemas.evaluation.measure import load_rows
from recursivemas.evaluation.metrics import METRICS
from recursivemas.evaluation.results import markdown, read_results, table
from recursivemas.evaluation.rows import RowFile
from recursivemas.evaluation.score import read_outputs, spelled
from recursivemas.evaluation.solve import read_questions
from recursivemas.files_recursivemas import read_lines
from recursivemas.link_building_recursivemas import build_link
from recursivemas.link_files_recursivemas import read_link
from recursivemas.links_recursivemas import InnerLink, OuterLink
from recursivemas.sources_recursivemas import Source, read_tensors
from recursivemas.system_loader import ROOT, load_mas_system, read_style
from recursivemas.training.arguments import read_arguments
from recursivemas.training.checkpoints import (
    finished,
    last_checkpoint,
    seal,
    sealed_losses,
    step_of,
    validate_continuation,
    validate_settings,
)
from recursivemas.training.data import Encoder, read_rows, refuse_bad_rows
from recursivemas.upload.plan import load_plan
from recursivemas.upload.scan import scan
from safetensors.torch import load_file, save, save_file
from transformers.utils import logging

SECONDS = 10  # of the processor, so that a busy machine changes nothing
PATIENCE = 120  # seconds of the clock until a process counts as stuck
MEMORY = 3 << 30  # bytes beside what a process has already
LONGEST = 2500  # characters of an error: what, where, 200 of what was found, expected, hint
KINDS = ("unchanged", "accepted", "refused", "foreign", "hang", "code")
FORBIDDEN = KINDS[3:]

ASKED = {"questions": {"number": 4, "sha256": "0"}, "mode": "latent"}  # of the answers that are kept
RUN = {"system": "x", "data": "y", "output": "out", "max_steps": 5}
STAMP = {"processes": 1, "rows": 4, "texts": "0", "prompts": "0", "frozen": "0"}  # of the run

# ── What is read, and how ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Target:
    """A kind of file: where examples lie in the base folder, what reads them, what mutates them."""

    files: tuple[str, ...]
    read: Callable[[Path, Path], Any]  # (base folder, the file) -> what comes out
    mutate: Callable[[random.Random, Path], str]  # writes the file anew; says what was done
    weight: int = 1


def answers(system: Path) -> Any:
    mas = load_mas_system(str(system))
    return [s.text for s in mas.solve(["Why?"], max_new_tokens=2, do_sample=False)], mas.config.num_rounds


def read_system(base: Path, file: Path) -> Any:
    return answers(base / "system")


def read_a_style(base: Path, file: Path) -> Any:
    config = RecursiveMASConfig(**read_style(file))
    config.agents = {role: {"source": f"agents/{role}"} for role in ("planner", "critic", "solver")}
    return str(config.validate_system())


def read_prompt_set(base: Path, file: Path) -> Any:
    config = the_system(base).config
    return config.run_settings(prompts=file).input_fields(config.topology)


def read_training_rows(base: Path, file: Path) -> Any:
    mas = the_system(base)
    turns = [(1, role) for role in mas.topology.roles]
    rows, report = read_rows(file, mas.topology.roles, fields=Encoder(mas).input_fields(turns))
    refuse_bad_rows(report)
    return [part.target_ids for e in Encoder(mas).examples(rows, [turns], report) for part in e.parts.values()]


def read_evaluation_rows(base: Path, file: Path) -> Any:
    rows = load_rows(str(file), 100, 0)
    return [(row["question"], row["answer"]) for row in rows]


def read_question_file(base: Path, file: Path) -> Any:
    mas, questions = the_system(base), read_questions((line for _, line in read_lines(file, InputError)), file)
    mas.config.run_settings().validate_questions(questions, mas.topology)
    return [mas.renderers["solver"].pieces(None, "<|question|>", question) for question in questions]


def read_stored_results(base: Path, file: Path) -> Any:
    results = read_results(file)
    return table(results["figures"]), markdown(results)


def read_judged_rows(base: Path, file: Path) -> Any:
    chosen = ["mode=latent"] if file.name == "results.json" else []
    rows = judged(rows_of_setting(read_judged(file), chosen, "A"), "A", "strict")
    return compare(*by_question(rows, rows))


def read_outputs_to_judge(base: Path, file: Path) -> Any:
    lines = (line.decode("utf-8", "surrogateescape") for _, line in read_lines(file, InputError))
    return [METRICS["exact"].judge(row["prediction"], row["answer"]) for row in spelled(read_outputs(lines, "A"))]


def read_kept_answers(base: Path, file: Path) -> Any:
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("kept.jsonl", "kept.jsonl.run"):
            if not os.path.lexists(base / name):
                continue
            copy = shutil.copytree if (base / name).is_dir() else functools.partial(shutil.copy, follow_symlinks=False)
            copy(base / name, Path(scratch, name))
        with RowFile(Path(scratch, "kept.jsonl"), ASKED, resume=True) as row_file:
            return row_file.rows, row_file.kept({"mode": "latent"})


def read_run(base: Path, file: Path) -> Any:
    folder = base / "run"
    checkpoint = last_checkpoint(folder)
    validate_settings(read_arguments(None, flags=RUN, kind="outer"), folder)
    validate_continuation(folder, checkpoint, STAMP, {"link"})
    losses = sealed_losses(checkpoint) if checkpoint else None
    return checkpoint and step_of(checkpoint), losses, finished(folder, checkpoint, 5)


def read_staged_plan(base: Path, file: Path) -> Any:
    return str(load_plan(file.parent))


def read_training_settings(base: Path, file: Path) -> Any:
    return read_arguments(file, flags={"output": "out"}, kind="outer").settings()


def read_staged_files(base: Path, file: Path) -> Any:
    return scan(base / "scanned")


def read_pickled_link(base: Path, file: Path) -> Any:
    link = build_link(read_tensors(str(file), file.name), where=file.name, in_features=8, kind="ln_res_adapter")
    return link(torch.ones(1, 8)).tolist()


def read_manifests(base: Path, file: Path) -> Any:
    place, found = {"source": str(base / "pickled")}, []
    for name, key, width in (("planner", None, None), ("planner_to_solver", "outer_12", 6)):
        tensors, where, kind = read_link(Source(str(base)), place, name, "math", key)
        found.append(repr(build_link(tensors, where=where, in_features=8, out_features=width, kind=kind)))
    return found


@functools.cache
def the_system(base: Path) -> Any:
    return load_mas_system(str(base / "system"))


# ── Mutations ────────────────────────────────────────────────────────────────────────────────────────────────────────

VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 7, 10**9, 10**12, 10**30, -(10**30), 0.5, 1.0, 1e308, -0.0),
    *(float("nan"), float("inf"), "", "x", "1", "true", "\ud800", "a\ud800b", "\x00", "a\u2028b", "\ufeffa"),
    *("../../etc", "/etc/passwd", "file:///etc/passwd", "a" * 100_000, "{{ 1/0 }}", "__class__"),
    *([], {}, [[]], [None], ["x"], [5], [True], [1, 2, 3], [{}], list(range(1000))),
    *({"a": 1}, {"": {}}, {"tasks": 5}, {"tasks": {}}, {"source": 5}),
]


def paths_of(value: Any, path: tuple = ()) -> Iterator[tuple]:
    yield path
    if isinstance(value, dict | list):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for key, entry in itertools_head(entries, 200):
            yield from paths_of(entry, (*path, key))


def itertools_head(entries: Any, count: int) -> list:
    return [entry for entry, _ in zip(entries, range(count), strict=False)]


def misspelt(chance: random.Random, name: str) -> str:
    place = chance.randrange(len(name)) if name else 0
    return chance.choice([
        name[:place] + name[place + 1 :], name[:place] + name[place : place + 1] + name[place:], name + "s",
        name[: place + 1] + "_" + name[place + 1 :], name.upper(), name[::-1], name + " ", "x",
    ])  # fmt: skip


def mutated_json(chance: random.Random, content: Any) -> tuple[str, str]:
    """JSON content -> the text of a mutation of it, and what was done."""
    content = copy.deepcopy(content)
    done = []
    deep = '"deep"'
    duplicate = None
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        paths = list(paths_of(content))
        path = chance.choice(paths)
        if not path:
            path = chance.choice(paths)
        if not path:
            value = chance.choice(VALUES)
            done.append(f"all := {value!r:.40}")
            content = value
            continue
        *front, last = path
        parent = content
        for key in front:
            parent = parent[key]
        what = chance.choice(("value",) * 6 + ("delete", "rename", "add", "swap", "wrap", "like", "deep", "twice"))
        if what == "value":
            parent[last] = copy.deepcopy(chance.choice(VALUES))
        elif what == "delete":
            del parent[last]
        elif what == "rename" and isinstance(parent, dict):
            parent[misspelt(chance, last)] = parent.pop(last)
        elif what == "add" and isinstance(parent, dict):
            name = chance.choice([misspelt(chance, last), "unknown", "__class__", "", "a" * 10_000])
            parent[name] = copy.deepcopy(chance.choice([*VALUES, parent[last]]))
        elif what == "swap":
            other = content
            for key in chance.choice(paths):
                other = other[key] if isinstance(other, dict | list) and _has(other, key) else other
            parent[last] = copy.deepcopy(other)
        elif what == "wrap":
            parent[last] = chance.choice([[parent[last]], {"a": parent[last]}, {last: parent[last]}])
        elif what == "like":  # the same, written as another type
            value = parent[last]
            parent[last] = chance.choice(
                [str(value), [value], float(value) if isinstance(value, int) else repr(value)]
            )
        elif what == "deep":
            brackets = chance.choice(("[]", "{}"))
            depth = chance.choice((200, 2000, 100_000))
            opening = brackets[0] if brackets == "[]" else '{"a":'
            parent[last] = "\x01deep"
            deep = opening * depth + "1" + brackets[1] * depth
        elif what == "twice":
            duplicate = last
        done.append(f"{what} {'/'.join(map(str, path))}"[:80] + f" := {_at(parent, last)!r:.40}")
    text = json.dumps(content, ensure_ascii=chance.random() < 0.5).replace('"\\u0001deep"', deep)
    if isinstance(duplicate, str):
        key = json.dumps(duplicate) + ": "
        text = text.replace(key, f"{key}{json.dumps(chance.choice(VALUES))}, {key}", 1)
    return text, "; ".join(done)


def _has(value: Any, key: Any) -> bool:
    return key in value if isinstance(value, dict) else isinstance(key, int) and key < len(value)


def _at(value: Any, key: Any) -> Any:
    return value[key] if _has(value, key) else "(none)"


def write_text(file: Path, text: str) -> None:
    file.write_bytes(text.encode("utf-8", errors="surrogatepass"))


def mutate_bytes(chance: random.Random, file: Path) -> str:
    content = file.read_bytes()
    what = chance.choice(
        ("cut", "flip", "insert", "repeat", "empty", "bom", "utf-16", "latin-1", "nul", "junk", "cr", "folder", "gone",
         "loop", "pickle", "separators")
    )  # fmt: skip
    place = chance.randrange(len(content) + 1)
    if what == "cut":
        content = content[:place]
    elif what == "flip":
        damaged = bytearray(content)
        for _ in range(chance.choice((1, 1, 2, 10))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        content = bytes(damaged)
    elif what == "insert":
        content = (
            content[:place] + chance.choice([b"\xff", b"\x00", b"[", b"}", b'"', b"\xed\xa0\x80"]) + content[place:]
        )
    elif what == "repeat":
        content += content
    elif what == "empty":
        content = chance.choice([b"", b" ", b"\n", b"null", b"[]", b"{}", b"0", b'""'])
    elif what == "bom":
        content = b"\xef\xbb\xbf" + content
    elif what == "utf-16":
        content = content.decode("utf-8", "replace").encode(chance.choice(["utf-16", "utf-16-be", "utf-32"]))
    elif what == "latin-1":
        content = content[:place] + "é".encode("latin-1") + content[place:]
    elif what == "nul":
        content = bytes(chance.choice([1, 100]))
    elif what == "junk":
        content = chance.randbytes(chance.choice([1, 8, 100, 1000]))
    elif what == "cr":
        content = content.replace(b"\n", chance.choice([b"\r\n", b"\r"]))
    elif what == "pickle":
        content = pickle.dumps(Evil(), chance.choice([0, 2, 4]))
    elif what == "separators":
        content = content.replace(b" ", chance.choice(["\u2028", "\x0c", "\x85", "\x1c"]).encode())
    file.unlink()
    if what == "folder":
        file.mkdir()
    elif what == "loop":
        file.symlink_to(file.name)
    elif what != "gone":
        file.write_bytes(content)
    return what


def mutate_json(chance: random.Random, file: Path) -> str:
    if chance.random() < 0.2:
        return mutate_bytes(chance, file)
    text, done = mutated_json(chance, json.loads(file.read_text(encoding="utf-8")))
    write_text(file, text)
    return done


def mutate_lines(chance: random.Random, file: Path) -> str:
    if chance.random() < 0.3:
        return mutate_bytes(chance, file)
    lines = file.read_text(encoding="utf-8").split("\n")[:-1]
    place = chance.randrange(len(lines))
    text, done = mutated_json(chance, json.loads(lines[place]))
    lines[place] = text
    write_text(file, "\n".join(lines) + chance.choice(["", "\n", "\r\n"]))
    return f"line {place + 1}: {done}"


def mutate_text(chance: random.Random, file: Path) -> str:
    if chance.random() < 0.5:
        return mutate_bytes(chance, file)
    lines = ("{x | x > 2}", "{", '{"question": 5}', "\u2028", "\r", "a\tb", '{"question": "a"}')
    text = chance.choice(lines) + "\n"
    write_text(file, text)
    return f"{text!r}"


TEMPLATES = """\
hello
{{ 1/0 }}
{{ 5 }}
{% if %}
{{ messages + 1 }}
{% include 'x' %}
{{ undefined.x.y }}
{{ lipsum(9) }}
{{ 'a' * 10**10 }}
{{ messages|tojson }}
{{ messages[7].content }}
{{ raise_exception('no') }}
{{ strftime_now('%Y', 1, 2) }}
{{ messages|map(attribute='content')|join }}
{{ ''.__class__.__mro__[1].__subclasses__() }}
{{ cycler.__init__.__globals__.os.system('touch CANARY') }}
{% for i in range(999999999) %}x{% endfor %}
{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}
{% set x = messages.append(1) %}{{ messages[0].content }}
{% for m in messages %}{{ m['content'][0] }}{% endfor %}
{% for m in messages %}{{ m.content|int }}{% endfor %}
{% for m in messages %}{{ m.content|upper }}{% endfor %}
{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}
""".splitlines()


def mutate_template(chance: random.Random, file: Path) -> str:
    if chance.random() < 0.3:
        return mutate_bytes(chance, file)
    text = chance.choice(TEMPLATES)
    write_text(file, text)
    return text


class Evil:
    """Unpickled, it runs a command."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch CANARY",)


def mutate_safetensors(chance: random.Random, file: Path) -> str:
    what = chance.choice(("bytes", "length", "header", "header", "tensors", "tensors", "tensors"))
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    if what == "bytes":
        return mutate_bytes(chance, file)
    if what == "length":
        length = chance.choice([0, 1, length - 1, length + 1, len(content), 2**31, 2**63, 2**64 - 1])
        file.write_bytes(struct.pack("<Q", length) + content[8:])
        return f"header of {length} bytes"
    if what == "header":
        text, done = mutated_json(chance, json.loads(content[8 : 8 + length]))
        header = text.encode("utf-8", errors="surrogatepass")
        file.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])
        return f"header: {done}"
    tensors = load_file(file)
    name = chance.choice(sorted(tensors))
    tensor = tensors[name].clone()
    what = chance.choice(
        [
            "drop",
            "rename",
            "nan",
            "inf",
            "half",
            "double",
            "int",
            "bool",
            "more",
            "less",
            "axis",
            "add",
            "empty",
            "complex",
            "scalar",
            "huge",
        ]
    )
    if what == "drop":
        del tensors[name]
    elif what == "rename":
        tensors[misspelt(chance, name)] = tensors.pop(name)
    elif what in ("nan", "inf"):
        if tensor.is_floating_point() and tensor.numel():
            tensor.view(-1)[chance.randrange(tensor.numel())] = float(what)
        tensors[name] = tensor
    elif what in ("half", "double", "int", "bool"):
        types = {"half": torch.float16, "double": torch.float64, "int": torch.int32, "bool": torch.bool}
        tensors[name] = tensor.to(types[what])
    elif what == "complex":
        tensors[name] = tensor.float().to(torch.complex64)
    elif what == "more":
        tensors[name] = torch.cat([tensor, tensor])
    elif what == "less":
        tensors[name] = tensor[:-1].clone()
    elif what == "axis":
        tensors[name] = tensor[None].clone()
    elif what == "add":
        tensors[misspelt(chance, name)] = tensor
    elif what == "empty":
        tensors[name] = torch.empty(0)
    elif what == "scalar":
        tensors[name] = torch.tensor(1.0)
    elif what == "huge":
        tensors[name] = tensor * 1e30 if tensor.is_floating_point() else tensor
    file.write_bytes(save({key: value.contiguous() for key, value in tensors.items()}, {"format": "pt"}))
    return f"{what} {name}"


DAMAGES: dict[str, Callable[[torch.Tensor], Any]] = {
    "sparse": lambda tensor: tensor.to_sparse(),
    "meta": lambda tensor: tensor.to("meta"),
    "number": lambda tensor: 5,
    "none": lambda tensor: None,
    "double": lambda tensor: tensor.double(),
    "half": lambda tensor: tensor.half(),
    "int": lambda tensor: tensor.int(),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "list": lambda tensor: tensor.tolist(),
    "nested": lambda tensor: {"a": tensor},
    "view": lambda tensor: tensor.t() if tensor.ndim == 2 else tensor[::2],
    "nan": lambda tensor: tensor * float("nan"),
    "evil": lambda tensor: Evil(),
    "parameter": torch.nn.Parameter,
    "grad": lambda tensor: tensor.requires_grad_(),
    "quantized": lambda tensor: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
}


def mutate_pickle(chance: random.Random, file: Path) -> str:
    if chance.random() < 0.3:
        return mutate_bytes(chance, file)
    tensors = torch.load(file, weights_only=True)
    name = chance.choice(sorted(tensors))
    what, value = chance.choice(list(DAMAGES.items()))
    tensors[name] = value(tensors[name])
    others = [list(tensors.values()), {5: tensors[name]}, {"state_dict": tensors}, tensors[name], Evil()]
    whole = chance.choice([tensors] * 5 + others)
    torch.save(whole, file)
    return f"{what} {name}, {type(whole).__name__}"


# ── The files ────────────────────────────────────────────────────────────────────────────────────────────────────────

TARGETS = {
    "configuration": Target(("system/config.json",), read_system, mutate_json, 5),
    "generation settings": Target(("system/generation_config.json",), read_system, mutate_json, 3),
    "agent settings": Target(
        ("system/agents/planner/config.json", "system/agents/solver/config.json",
         "system/agents/planner/generation_config.json", "system/agents/solver/generation_config.json"),
        read_system, mutate_json, 3,
    ),
    "tokenizers": Target(
        ("system/agents/planner/tokenizer.json", "system/agents/solver/tokenizer.json",
         "system/agents/solver/tokenizer_config.json"),
        read_system, mutate_json, 3,
    ),
    "templates": Target(
        ("system/agents/planner/chat_template.jinja", "system/agents/solver/chat_template.jinja"),
        read_system, mutate_template, 2,
    ),
    "weights": Target(
        ("system/agents/planner/model.safetensors", "system/agents/solver/model.safetensors"),
        read_system, mutate_safetensors, 2,
    ),
    "links": Target(
        ("system/links/planner.safetensors", "system/links/planner_to_solver.safetensors"),
        read_system, mutate_safetensors, 3,
    ),
    "released links": Target(("pickled/adapter.pt",), read_pickled_link, mutate_pickle, 2),
    "released manifests": Target(
        ("pickled/adapter_config.json", "pickled/innerlink_config.json", "pickled/outerlink_config.json"),
        read_manifests, mutate_json, 2,
    ),
    "styles": Target(("style.json",), read_a_style, mutate_json, 3),
    "prompt sets": Target(("prompts.json",), read_prompt_set, mutate_json, 3),
    "training rows": Target(("rows.jsonl",), read_training_rows, mutate_lines, 3),
    "training rows, JSON": Target(("rows.json",), read_training_rows, mutate_json, 2),
    "evaluation rows": Target(("questions.jsonl",), read_evaluation_rows, mutate_lines, 2),
    "questions": Target(("asked.jsonl",), read_question_file, mutate_lines, 2),
    "questions, text": Target(("questions.txt",), read_question_file, mutate_text, 1),
    "results": Target(("results.json",), read_stored_results, mutate_json, 3),
    "judged rows": Target(("judged.jsonl",), read_judged_rows, mutate_lines, 2),
    "judged results": Target(("results.json",), read_judged_rows, mutate_json, 2),
    "outputs to judge": Target(("judged.jsonl",), read_outputs_to_judge, mutate_lines, 2),
    "kept answers": Target(("kept.jsonl",), read_kept_answers, mutate_lines, 2),
    "what was asked": Target(("kept.jsonl.run",), read_kept_answers, mutate_json, 1),
    "runs": Target(
        ("run/training_config.json", "run/stamp.json", "run/result.json", "run/checkpoint-5/whole.json",
         "run/checkpoint-5/trainer_state.json"),
        read_run, mutate_json, 3,
    ),
    "plans": Target(("staged/plan.json",), read_staged_plan, mutate_json, 3),
    "training settings": Target(("settings.json",), read_training_settings, mutate_json, 3),
    "staged files": Target(
        ("scanned/config.json", "scanned/README.md", "scanned/links.safetensors", "scanned/outerlink_config.json"),
        read_staged_files, mutate_bytes, 2,
    ),
}  # fmt: skip


def build_base(base: Path) -> None:
    """Writes one right example of every kind of file."""
    from tiny import tiny_chain

    roles = ("planner", "solver")
    mas = tiny_chain({"planner": "qwen3", "solver": "llama"}, num_rounds=2, latent_steps=2)
    mas.save_pretrained(base / "system")
    shutil.copy(ROOT / "styles" / "sequential.json", base / "style.json")
    write_json(base / "prompts.json", mas.config.prompts)
    rows = [
        {"question": f"What is {i}?", "targets": {role: f"{role} {i}" for role in roles}, "answer": str(i), "level": i}
        for i in range(4)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (base / "rows.jsonl").write_text(lines, encoding="utf-8")
    write_json(base / "rows.json", {"data": rows})
    asked = [{"question": row["question"], "answer": row["answer"]} for row in rows]
    (base / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
    only = [{"question": row["question"]} for row in rows]
    (base / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in only), encoding="utf-8")
    (base / "questions.txt").write_text("Why?\nWhat is it?\n", encoding="utf-8")
    figure = {
        "mode": "latent", "num_rounds": 2, "accuracy": 0.5, "interval": [0.1, 0.9], "by_group": {"1": [1, 2]},
        "seconds": 0.1, "prompt_tokens": 9.0, "latent_positions": 4.0, "slot_positions": 4.0, "new_tokens": 2.0,
        "answers": ["1", None], "right": [True, False],
    }  # fmt: skip
    settings = {"style": "test", "data": "arithmetic", "num_questions": 2, "seed": 0, "group_by": "level"}
    figures = [figure, {**figure, "mode": "alone"}]
    asked = [{"row": row, "question": f"What is {row}?", "level": row} for row in range(2)]
    stored = {"date": "2026-01-01", "commit": None, "settings": settings, "figures": figures, "questions": asked}
    write_json(base / "results.json", stored)
    made = [
        {"prediction": f"{i}", "answer": "1", "strict": i == 1, "release": True, **row} for i, row in enumerate(rows)
    ]
    (base / "judged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    kept = [{"row": row, "mode": "latent", "text": "1", "usage": {"new_tokens": 1}} for row in range(4)]
    (base / "kept.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    write_json(base / "kept.jsonl.run", ASKED)
    build_run(base / "run")
    (base / "staged").mkdir()
    repositories = [
        {"id": f"org/Tiny-{name}", "kind": kind, "note": name, "role": role, "base_model": None}
        for name, kind, role in (
            *(("Planner", "agent", "planner"), ("Outerlinks", "outer_links", "")),
            ("All", "composite", ""),
        )
    ]
    plan = {
        "system": "/somewhere", "namespace": "org", "style": "test", "collection": "Tiny", "question": "Why?",
        "release_layout": False, "self_contained": False, "licence": "mit", "repositories": repositories,
        "format_version": 2,
    }  # fmt: skip
    write_json(base / "staged" / "plan.json", plan)
    settings = {"system": "x", "data": "y", "max_steps": 4, "learning_rate": 1e-3, "betas": [0.9, 0.99], "columns": {}}
    write_json(base / "settings.json", settings | {"report_to": "none", "trainer": {"logging_steps": 5}})
    link = InnerLink("ln_res_adapter", 8)
    (base / "pickled").mkdir()
    torch.save(link.state_dict(), base / "pickled" / "adapter.pt")
    write_json(base / "pickled" / "adapter_config.json", {"adapter_type": "ln_res_adapter"})
    write_json(base / "pickled" / "innerlink_config.json", {"tasks": {"math": {"adapter.pt": "adapter.pt"}}})
    outer, name = OuterLink("outer_ln_res_adapter", 8, 6), "Planner-Solver-Outerlink.pt"
    torch.save(outer.state_dict(), base / "pickled" / name)
    stated = {"adapter_type": "outer_ln_res_adapter", "in_dim": 8, "out_dim": 6}
    adapters = [{"legacy_key": "outer_12", "filename": name, **stated}]
    write_json(base / "pickled" / "outerlink_config.json", {"tasks": {"math": {"adapters": adapters}}})
    (base / "scanned").mkdir()
    save_file(link.state_dict(), base / "scanned" / "links.safetensors")
    write_json(base / "scanned" / "config.json", {"style": "test", "agents": {}})
    (base / "scanned" / "README.md").write_text("# A card\n", encoding="utf-8")
    write_json(base / "scanned" / "outerlink_config.json", {"adapters": [{"filename": "links.safetensors"}]})


def build_run(folder: Path) -> None:
    """A training run of five steps that ended."""
    checkpoint = folder / "checkpoint-5"
    checkpoint.mkdir(parents=True)
    save_file({"link": torch.zeros(2)}, checkpoint / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"step": 5}, checkpoint / name)
    write_json(checkpoint / "trainer_state.json", {"global_step": 5, "log_history": [{"loss": 1.0, "step": 5}]})
    seal(checkpoint, (5.0, 5))
    write_json(folder / "training_config.json", read_arguments(None, flags=RUN, kind="outer").settings())
    write_json(folder / "stamp.json", STAMP)
    write_json(folder / "result.json", {"step": 5, "loss": 1.0})


def write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content), encoding="utf-8")


# ── Running cases ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Outcome:
    """How a case ended."""

    case: int
    target: str
    kind: str
    done: str  # the mutation
    found: str = ""  # the error


class Hang(BaseException):
    """A case took too long."""


def name_of(case: int, targets: list[str]) -> str:
    weighted = [name for name in targets for _ in range(TARGETS[name].weight)]
    return weighted[case % len(weighted)]


def run_case(seed: int, case: int, name: str, base: Path, right: Any, events: list[str]) -> Outcome:
    chance = random.Random(f"{seed} {case}")
    target = TARGETS[name]
    file = base / chance.choice(target.files)
    whole = file.read_bytes()
    done, found, kind = "", "", ""
    try:
        done = f"{file.relative_to(base)}: {target.mutate(chance, file)}"
        events.clear()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            kind = "unchanged" if target.read(base, file) == right else "accepted"
        except RecursiveMASError as error:
            kind, found = "refused", str(error)
            if len(found) > LONGEST:
                kind, found = "foreign", f"an error of {len(found)} characters: {found}"
        except Hang:
            kind, found = "hang", last_frame()
        except BaseException as error:
            kind, found = "foreign", f"{type(error).__name__}: {error!s:.150} | {last_frame()}"
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        if events:
            kind, found = "code", "; ".join(events[:3])
    finally:
        restore(file, whole)
    return Outcome(case, name, kind, done, found)


def last_frame() -> str:
    frames = traceback.extract_tb(sys.exc_info()[2])
    ours = [f for f in frames if "recursivemas" in f.filename and Path(f.filename).name != Path(__file__).name]
    return " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in [frames[-1], *reversed(ours[-2:])])


def restore(file: Path, whole: bytes) -> None:
    if file.is_symlink() or file.is_file():
        file.unlink()
    elif file.is_dir():
        shutil.rmtree(file)
    file.write_bytes(whole)


def watch(base: Path, events: list[str]) -> None:
    """Notes (and where it can, stops) what reading a file must never do, for the rest of this process."""
    inside = (str(base), tempfile.gettempdir(), os.devnull)
    started = (
        "os.system",
        "os.exec",
        "os.posix_spawn",
        "os.fork",
        "subprocess.Popen",
        "socket.connect",
        "pickle.find_class",
    )

    def hook(event: str, arguments: tuple) -> None:
        if event in started:
            events.append(f"{event} {arguments!r:.100}")
            raise RuntimeError(f"stopped: {event}")
        if event == "exec" and str(base) in getattr(arguments[0], "co_filename", ""):
            events.append(f"code of the folder: {arguments[0].co_filename}")
        if event == "open" and isinstance(arguments[0], str) and isinstance(arguments[1], str):
            writes = set(arguments[1]) & set("wax+")
            if writes and not os.path.abspath(arguments[0]).startswith(inside):
                events.append(f"a write to {arguments[0]}")

    sys.addaudithook(hook)


def work(seed: int, cases: list[int], names: list[str], base: Path, right: dict[str, Any], pipe: int) -> None:
    """A process: runs cases and writes a line before and after each."""

    def hang(*_: Any) -> None:
        raise Hang

    signal.signal(signal.SIGPROF, hang)
    size = (
        int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if sys.platform == "linux" else 0
    )
    if size:
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    events: list[str] = []
    watch(base, events)
    os.chdir(base)
    logging.set_verbosity(logging.CRITICAL)
    warnings.simplefilter("ignore")
    with open(pipe, "w", encoding="utf-8") as out:
        for case in cases:
            name = name_of(case, names)
            print(json.dumps({"start": case}), file=out, flush=True)
            outcome = run_case(seed, case, name, base, right[name], events)
            print(json.dumps(vars(outcome)), file=out, flush=True)


def run(seed: int, cases: list[int], base: Path, names: list[str] | None = None, processes: int = 1) -> list[Outcome]:
    """Runs cases in forked processes on copies of a base folder (`build_base`); a process that dies is replaced."""
    names = names or list(TARGETS)
    right = {}
    for name in names:
        target = TARGETS[name]
        right[name] = target.read(base, base / target.files[0])
    the_system.cache_clear()
    outcomes: list[Outcome] = []
    running: dict[int, dict[str, Any]] = {}

    def start(number: int, mine: list[int]) -> None:
        folder = base.with_name(f"{base.name}-{number}")
        if not folder.exists():
            shutil.copytree(base, folder)
        reading, writing = os.pipe()
        if (child := os.fork()) == 0:
            status = 1
            try:
                os.close(reading)
                with open(os.devnull, "w") as nothing:
                    os.dup2(nothing.fileno(), 1)
                    if not os.environ.get("FUZZ_DEBUG"):
                        os.dup2(nothing.fileno(), 2)
                work(seed, mine, names, folder, right, writing)
                status = 0
            finally:
                os._exit(status)
        os.close(writing)
        running[reading] = {
            "child": child, "number": number, "left": mine, "current": None, "since": time.monotonic(), "text": b"",
        }  # fmt: skip

    for number in range(processes):
        start(number, cases[number::processes])
    while running:
        ready, _, _ = select.select(list(running), [], [], 1)
        for pipe in list(running):
            state = running[pipe]
            ended = False
            if pipe in ready:
                block = os.read(pipe, 1 << 16)
                *lines, state["text"] = (state["text"] + block).split(b"\n")
                for line in map(json.loads, lines):
                    state["since"] = time.monotonic()
                    if "start" in line:
                        state["current"] = line["start"]
                    else:
                        outcomes.append(Outcome(**line))
                        state["left"], state["current"] = state["left"][1:], None
                ended = not block
            hung = time.monotonic() - state["since"] > PATIENCE
            if not (ended or hung):
                continue
            if hung:
                os.kill(state["child"], signal.SIGKILL)
            _, status = os.waitpid(state["child"], 0)
            os.close(pipe)
            del running[pipe]
            left = state["left"]
            if state["current"] is not None:
                kind = "hang" if hung else "foreign"
                name = name_of(left[0], names)
                outcomes.append(Outcome(left[0], name, kind, "", f"the process ended with status {status}"))
                left = left[1:]
                shutil.rmtree(base.with_name(f"{base.name}-{state['number']}"))
            if left:
                start(state["number"], left)
    return outcomes


def report(outcomes: list[Outcome]) -> str:
    """Counts by kind of file, and what must not be, the same place in the code once."""
    counts = collections.Counter((outcome.target, outcome.kind) for outcome in outcomes)
    lines = [f"{'':<22}" + "".join(f"{kind:>11}" for kind in KINDS)]
    for name in [*TARGETS, "all"]:
        numbers = [sum(n for (t, k), n in counts.items() if k == kind and name in (t, "all")) for kind in KINDS]
        if any(numbers):
            lines.append(f"{name:<22}" + "".join(f"{number:>11}" for number in numbers))
    wrong: dict[str, list[Outcome]] = collections.defaultdict(list)
    for outcome in outcomes:
        if outcome.kind in FORBIDDEN:
            wrong[outcome.kind + " " + outcome.found.rpartition(" | ")[2]].append(outcome)
    for place, same in sorted(wrong.items(), key=lambda item: -len(item[1])):
        first = same[0]
        lines.append(f"{len(same)} × {place:.160}\n    case {first.case}, {first.done:.160}\n    {first.found:.200}")
    return "\n".join(lines)


@contextlib.contextmanager
def base_folder() -> Iterator[Path]:
    """A folder with an example of every kind of file, for as long as it is needed."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        os.environ["HF_HOME"] = os.path.join(scratch, "hub")
        base = Path(scratch, "base")
        base.mkdir()
        build_base(base)
        yield base


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--target", nargs="+", choices=TARGETS, help="only these kinds of files")
    parser.add_argument("--case", type=int, help="only this case, in this process")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    names = arguments.target or list(TARGETS)
    with base_folder() as base:
        started = time.monotonic()
        cases = list(range(arguments.cases)) if arguments.case is None else [arguments.case]
        outcomes = run(arguments.seed, cases, base, names, arguments.processes if arguments.case is None else 1)
        print(report(outcomes))
        if arguments.case is not None:
            print(*outcomes, sep="\n")
        print(f"{len(outcomes)} cases of seed {arguments.seed} in {time.monotonic() - started:.0f} s")
    return int(any(outcome.kind in FORBIDDEN for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
