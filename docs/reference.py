"""Writes docs/reference.md out of docstrings, signatures and the tables of settings (`make reference`).

Signatures and docstrings are read off the source, so that the text is the same under every version of Python.
"""

import ast
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from .. import configuration_recursivemas as configuration
from ..fields_recursivemas import Kind
from ..links_recursivemas import ABLATION_KINDS, INNER_KINDS, OUTER_KINDS
from ..settings_recursivemas import REFUSED
from ..training.arguments import ALIASES, KIND_DEFAULTS, RANGES, SETTINGS, default_of

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference.md"
WIDTH = 100  # of a signature on one line
SECTION = re.compile(r"(Args|Attributes|Returns|Raises):(?: (?P<rest>.+))?")
ENTRY = re.compile(r"(?P<names>\w[\w, ]*): (?P<text>.+)", re.S)
# Of transformers' interface, and nothing that a user calls.
INTERNAL = (
    "extra_repr",
    "init_continuous_batching",
    "get_config_dict",
    "register_for_auto_class",
    "from_dict",
    "solve_batches",
)
# Heading -> (module, names of functions and classes; with a star, their public methods too).
API = {
    "Loading": (
        "system_loader",
        ("load_mas_system", "small_systems", "read_style", "released_styles", "release_settings", "released_config",
         "put_overrides"),
    ),
    "A system": ("modeling_recursivemas", ("RecursiveMASModel*",)),
    "Asking a system": ("answering_recursivemas", ("AnsweringSystem*",)),
    "An agent": ("agent_recursivemas", ("RecursiveMASAgent*",)),
    "What an agent computes": ("thinking_recursivemas", ("ThinkingAgent*", "Rollout")),
    "A result": ("solutions_recursivemas", ("Solution", "Usage")),
    "Settings of a run": ("runs_recursivemas", ("RunSettings",)),
    "Tools": ("tools_recursivemas", ("ToolBox", "calculator")),
    "Links": (
        "links_recursivemas",
        ("InnerLink", "OuterLink", "ResamplingLink", "SoftPromptLink", "CacheLink"),
    ),
    "Inner links without training": ("mixtures_recursivemas", ("ExpectedEmbeddingLink",)),
    "Handing over": ("handover_recursivemas", ("hand_over",)),
    "Pushing": ("pushing_recursivemas", ("Push",)),
}  # fmt: skip
STATUSES = {
    "0": "done; of `check`: the system is ready; of `publish check`: every repository is right",
    "1": "`check`: not ready; `calibrate`: every question needs all rounds; `publish check`: a repository is wrong",
    "2": "an argument or a file cannot be used, or there is not enough memory: the message says what and what to do",
    "130, 143": "stopped by Ctrl-C or SIGTERM; commands that keep answers go on with `--resume`",
}


def page() -> str:
    """The whole page."""
    return "\n\n".join(part.strip("\n") for part in (*_api(), *_styles(), *_settings(), *_training(), *_rest())) + "\n"


def _api() -> Iterator[str]:
    yield (
        "# Reference\n\nWritten by `make reference` out of docstrings and tables of the code; the guides beside it "
        "say what to use when.\n\n[Python](#python), [styles](#styles), [config.json](#configjson), "
        "[training](#training-settings), [errors and exit statuses](#errors)."
    )
    yield "## Python\n\n```python\nfrom recursivemas import load_mas_system\n```"
    for heading, (module, names) in API.items():
        yield f"### {heading}\n\nIn `{module}`."
        found = {node.name: node for node in _source(module).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        for name in names:
            node = found[name.removesuffix("*")]
            yield _described(node, node.name)
            if name.endswith("*"):
                yield from _methods(node)


def _methods(node: ast.AST) -> Iterator[str]:
    properties = []
    for each in ast.iter_child_nodes(node):
        if not isinstance(each, ast.FunctionDef) or each.name.startswith("_") or each.name in INTERNAL:
            continue
        if any(ast.unparse(decorator) == "property" for decorator in each.decorator_list):
            of = ast.unparse(each.returns) if each.returns else ""
            first = (ast.get_docstring(each) or "").partition("\n\n")[0]
            properties.append((f"`.{each.name}`", f"`{of}`", " ".join(first.split())))
        elif ast.get_docstring(each):
            yield _described(each, f".{each.name}")
    if properties:
        yield _table(("property", "type", "meaning"), properties)


def _styles() -> Iterator[str]:
    yield (
        "## Styles\n\nA style is a JSON file with the keys of the first table, but for `tools` (`styles/*.json`, "
        "`init-links --style FILE`, `read_style`); a system's config.json holds them too."
    )
    style = ("stages", "links", "decoding_role", "prompts", "tools")
    yield _fields({name: configuration.FIELDS[name] for name in style}, _meanings(_config()))
    yield _doc("topology_recursivemas", "Topology") + "\n\n" + _doc("topology_recursivemas", "Link")
    yield "A link of `links`; `source` and `target` are all that a style needs:"
    yield _fields(configuration.LINK_FIELDS)
    yield "Prompts and their markers:\n\n" + _markdown(ast.get_docstring(_source("prompts_recursivemas")) or "")
    yield "Tasks: " + ", ".join(f"`{task}`" for task in configuration.TASKS) + "."
    yield (
        "### Kinds of links\n\nAn inner link makes of an agent's last hidden state its next input embedding, an outer "
        "link of a latent one in the receiver's space. What each computes stands under [Links](#links)."
    )
    rows = [
        (f"`{kind}`", sort, shape.layers, "yes" if shape.residual else "", "yes" if shape.norm else "")
        for sort, kinds in (("inner", INNER_KINDS), ("outer", OUTER_KINDS))
        for kind, shape in kinds.items()
    ]
    yield _table(("kind", "link", "layers", "residual", "LayerNorms"), rows)
    others = {
        "inner": (configuration.EXPECTED_EMBEDDING, configuration.CODEBOOK),
        "outer": (configuration.RESAMPLER, configuration.SOFT_PROMPT, configuration.CACHE),
    }
    yield " ".join(
        f"Further {sort} kinds: {', '.join(f'`{kind}`' for kind in kinds)}." for sort, kinds in others.items()
    )
    names = ", ".join(f"`{name}` ({inner}, {outer})" for name, (inner, outer) in ABLATION_KINDS.items())
    yield f"The names of the paper's ablation are understood as well: {names}."


def _settings() -> Iterator[str]:
    yield (
        "## config.json\n\nFields of `RecursiveMASConfig`. Names and values are judged when a system is loaded; what "
        "is not here is an error, unless transformers writes it."
    )
    config, given = _config(), configuration.RecursiveMASConfig()
    defaults = {name: repr(getattr(given, name)) for name in configuration.FIELDS}
    yield _fields(configuration.FIELDS, _meanings(config), defaults)
    tail = (ast.get_docstring(config) or "").partition("\n`kind` is")[2].partition("\n\nRaises")[0]
    yield "`kind` is" + tail
    for title, fields in {
        "An agent of `agents`": configuration.AGENT_FIELDS,
        "Its `inner_link`": configuration.INNER_LINK_FIELDS,
        "Its `adapter`": configuration.ADAPTER_FIELDS,
        "`weights` of another repository": configuration.WEIGHTS_FIELDS,
        "`settling`": configuration.SETTLING_FIELDS,
    }.items():
        yield f"{title}:\n\n{_fields(fields)}"
    yield (
        "`generation_config.json` beside it holds transformers' generation settings, and may hold the fields of "
        "`RunSettings`. A call's arguments come before its `generation_config`, and that before the system's files. "
        "What a system cannot take:"
    )
    yield _table(("argument", "why"), [(f"`{name}`", why) for name, why in REFUSED.items()])


def _training() -> Iterator[str]:
    yield (
        "## Training settings\n\nOf `recursivemas train inner` and `outer`: in a JSON file (`--config`), as `--set "
        "NAME=VALUE` or as flags. Those of transformers' `TrainingArguments` that are not here are taken as well."
    )
    limits = {name: expected for expected, (_, names) in RANGES.items() for name in names}
    rows = []
    body = _class("training/arguments", "LinkTrainingArguments").body
    for each in [each for each in body if isinstance(each, ast.AnnAssign)]:
        name, holds = ast.unparse(each.target), ast.unparse(each.annotation)
        meaning = SETTINGS[name].metadata.get("help", "see transformers' `TrainingArguments`")
        holds = f"`{holds}`" + (f", {limits[name]}" if name in limits else "")
        rows.append((f"`{name}`", holds, f"`{default_of(name)!r}`", meaning))
    yield _table(("setting", "holds", "default", "meaning"), rows)
    of_kinds = [
        (f"`{kind}`", ", ".join(f"`{name}={value!r}`" for name, value in defaults.items()))
        for kind, defaults in KIND_DEFAULTS.items()
    ]
    yield "Defaults of a kind of run, where they are not these:\n\n" + _table(("kind", "defaults"), of_kinds)
    earlier = ", ".join(f"`{name}` ({', '.join(new)})" for name, new in ALIASES.items())
    yield f"Earlier names that are understood: {earlier}; and `trainer.NAME` for `NAME`."


def _rest() -> Iterator[str]:
    yield "## Errors\n\nWhat they say most, and what to do: [troubleshooting](troubleshooting.md)."
    rows = []
    for node in _source("errors_recursivemas").body:
        if isinstance(node, ast.ClassDef):
            rows.append(
                (f"`{node.name}`", f"`{', '.join(map(ast.unparse, node.bases))}`", ast.get_docstring(node) or "")
            )
    yield _table(("error", "is also", "when"), [(*row[:2], row[2].partition("\n")[0]) for row in rows])
    yield "## Exit statuses\n\n" + _table(("status", "of a command"), STATUSES.items())


def _source(module: str) -> ast.Module:
    return ast.parse((ROOT / f"{module}.py").read_text(encoding="utf-8"))


def _class(module: str, name: str) -> ast.ClassDef:
    return next(node for node in _source(module).body if isinstance(node, ast.ClassDef) and node.name == name)


def _config() -> ast.ClassDef:
    return _class("configuration_recursivemas", "RecursiveMASConfig")


def _doc(module: str, name: str) -> str:
    """The first paragraphs of a class's docstring."""
    return re.split(r"\n\n\w+:\n", ast.get_docstring(_class(module, name)) or "")[0]


def _described(node: ast.FunctionDef | ast.ClassDef, name: str) -> str:
    """Heading, signature and docstring of a function or class."""
    made = node
    if isinstance(node, ast.ClassDef):
        inits = [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
        made = inits[0] if inits else node
    text = f"#### `{name}`\n\n"
    if isinstance(made, ast.FunctionDef):
        text += f"```text\n{_signature(made, name)}\n```\n\n"
    elif any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        fields = [ast.unparse(each) for each in node.body if isinstance(each, ast.AnnAssign)]
        fields = [each for each in fields if not each.startswith("_")]
        text += "```text\n" + "\n".join(fields) + "\n```\n\n"
    return text + _markdown(ast.get_docstring(node) or "")


def _signature(node: ast.FunctionDef, name: str) -> str:
    given = node.args
    plain = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(plain) - len(given.defaults)) + list(given.defaults)
    parts = [_argument(*pair) for pair in zip(plain, defaults, strict=True) if pair[0].arg not in ("self", "cls")]
    parts += [f"*{given.vararg.arg}"] if given.vararg else ["*"] if given.kwonlyargs else []
    parts += [_argument(*pair) for pair in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    parts += [f"**{given.kwarg.arg}"] if given.kwarg else []
    end = ")" if node.returns is None or node.name == "__init__" else f") -> {ast.unparse(node.returns)}"
    line = f"{name}({', '.join(parts)}{end}"
    return line if len(line) <= WIDTH else f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + end


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    text = argument.arg + (f": {ast.unparse(argument.annotation)}" if argument.annotation else "")
    return text if default is None else f"{text} = {ast.unparse(default)}"


def _sections(docstring: str) -> Iterator[tuple[str | None, str]]:
    """(name of the section, text without its indentation) of a docstring; the name of plain paragraphs is `None`."""
    name: str | None = None
    lines: list[str] = []
    for line in [*docstring.splitlines(), None]:
        head = None if line is None else SECTION.fullmatch(line)
        if line is None or head or (name and line and not line.startswith(" ")):
            yield name, inspect.cleandoc("\n" + "\n".join(lines))
            name, lines = (head[1], [head["rest"] or ""]) if head else (None, [line or ""])
        else:
            lines.append(line)


def _entries(text: str) -> Iterator[tuple[str | None, str]]:
    """(names, meaning) of the entries of a section; names are `None` where it is a sentence."""
    for entry in re.split(r"\n(?! )", text.strip("\n")):
        flat = " ".join(entry.split())
        match = ENTRY.fullmatch(flat)
        yield (match["names"], match["text"]) if match else (None, flat)


def _markdown(docstring: str) -> str:
    parts = []
    for name, text in _sections(docstring):
        if name is None or not text.strip():
            parts.append(text)
        elif name == "Returns":
            parts.append(f"Returns: {' '.join(text.split())}")
        else:
            lines = [f"- {_named(names)}: {said}" if names else f"- {said}" for names, said in _entries(text)]
            parts.append(f"{name}:\n\n" + "\n".join(lines))
    return "\n\n".join(part.strip("\n") for part in parts if part.strip())


def _named(names: str) -> str:
    return ", ".join(f"`{name}`" for name in names.split(", "))


def _meanings(node: ast.ClassDef) -> dict[str, str]:
    return {
        name: said
        for section, text in _sections(ast.get_docstring(node) or "")
        if section == "Args"
        for names, said in _entries(text)
        for name in (names or "").split(", ")
    }


def _fields(
    fields: Mapping[str, Kind], meanings: Mapping[str, str] | None = None, defaults: Mapping[str, str] | None = None
) -> str:
    """The table of a table of fields."""
    columns = ("field", "holds", *["default"] * bool(defaults), *["meaning"] * bool(meanings))
    rows = []
    for name, kind in fields.items():
        row = [f"`{name}`", kind.expected]
        row += [f"`{defaults[name]}`"] if defaults else []
        row += [meanings.get(name, "of the decoding agent, filled in")] if meanings else []
        rows.append(row)
    return _table(columns, rows)


def _table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    columns = list(columns)
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", r"\|") for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
