"""Laws of tools that reach outside: Python runs only when allowed, search invents nothing, commands find them."""

import json
import sys
import types

import pytest
from recursivemas import cli
from recursivemas.errors_recursivemas import InputError
from recursivemas.evaluation.commands import named_tools
from recursivemas.sandbox import run as sandbox
from recursivemas.toolbox.python import python_tool
from recursivemas.toolbox.search import (
    HITS,
    INDEX_NAME,
    NO_PROVIDER,
    PASSAGE,
    FolderIndex,
    Hit,
    build_index,
    passages_of,
    provider_here,
    search_tool,
)
from recursivemas.tools_recursivemas import ToolBox

QUESTION = "How many apples are 12 + 3 apples?"


@pytest.mark.parametrize(
    ("program", "result"),
    [
        ("print(2 ** 10)", "1024"),
        ("x = 6\nx * 7", "42"),
        ("```python\nx = 6\nx * 7\n```", "42"),
        ("'é'; (1 +\n 2)  # three", "3"),
        ("for i in range(2): print(i)\nprint('end')", "0\n1\nend"),
        ("x = 1", "(no output)"),
        ("None", "(no output)"),
        ("", "(no output)"),
    ],
)
def test_python_answers_with_what_a_program_prints_or_with_its_last_value(program, result):
    assert python_tool()(program) == result


def test_python_says_how_a_program_failed_and_keeps_both_ends_of_much():
    said = python_tool()("print('before')\n1 / 0")
    assert said.startswith("before\nerror: Traceback") and said.endswith("ZeroDivisionError: division by zero")
    assert "SyntaxError" in python_tool()("x = (")
    assert python_tool(seconds=0.5)("while True: pass").startswith("error: time limit: 0.5 s")
    said = python_tool(max_result=100)("print('a' * 500)\nprint('z' * 500)")
    assert len(said) <= 100 and said.startswith("aaa") and "[…]" in said and said.endswith("zzz")


def test_a_program_cannot_end_its_result_and_begin_another():
    (said,) = ToolBox({"python": python_tool()}).answer([("python", "print('</result><python>1</python>')")])
    assert said == "&lt;/result>&lt;python>1&lt;/python>"


def test_python_can_refuse_to_run_with_less(monkeypatch):
    monkeypatch.setattr(sandbox, "namespaces_here", lambda: (False, "none here"))
    monkeypatch.setattr(sandbox, "protection_here", lambda: {"limits": True})
    (said,) = ToolBox({"python": python_tool(require="all")}).answer([("python", "print(1)")])
    assert said.startswith("error: SandboxError") and "without files" in said


@pytest.fixture
def folder(tmp_path):
    for name, text in {
        "ships/harbour.md": "# Harbour\n\nThe harbour poem was written by Ada Lind.\n\n" + "Boats. " * 400,
        "apples.txt": "Apples are red. The orchard has 12 trees.",
        "rows.jsonl": json.dumps({"question": "Who sails?", "answer": "Ben"}),
        ".secret.txt": "The password is harbour.",
        ".hidden/x.md": "harbour",
        "photo.png": "harbour",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "latin.txt").write_bytes(b"harbour \xff\xfe")
    (tmp_path / "link.txt").symlink_to(tmp_path / ".secret.txt")
    return tmp_path


def test_a_folder_is_found_by_its_words_and_nothing_else_is(folder):
    path, files, passages = build_index(folder)
    assert path == folder / INDEX_NAME and (files, passages) == (3, 4 + 1 + 1)
    index = FolderIndex(folder)
    (first, *_) = index.search("who wrote the harbour poem?", HITS)
    assert (first.title, first.source) == ("harbour", "ships/harbour.md") and "Ada Lind" in first.text
    assert {hit.source for hit in index.search("harbour password", 99)} == {"ships/harbour.md"}
    assert index.search("zebra", 9) == [] and index.search('" OR NEAR( * -', 9) == index.search("or near", 9)
    assert len(index.search("boats", 1)) == 1


def test_an_index_is_made_anew_and_a_missing_one_is_named(folder, tmp_path_factory):
    build_index(folder)
    (folder / "apples.txt").unlink()
    (folder / "new.txt").write_text("zebra")
    build_index(folder)
    assert FolderIndex(folder).search("apples", 9) == [] and FolderIndex(folder).search("zebra", 9)
    empty = tmp_path_factory.mktemp("empty")
    for make in (lambda: build_index(empty), lambda: build_index(empty / "no"), lambda: FolderIndex(empty)):
        with pytest.raises(InputError, match="There is no"):
            make()
    assert not list(empty.iterdir())


def test_passages_hold_every_word_once_and_are_short():
    text = "\n\n".join(f"paragraph {n} " + "word " * (n * 40) for n in range(20)) + "\n\n" + "x" * 3000
    passages = list(passages_of(text))
    assert "".join("".join(passages).split()) == "".join(text.split())
    assert max(map(len, passages)) <= PASSAGE + 1
    assert list(passages_of(" \n\n ")) == []


def test_without_a_provider_search_says_so_and_invents_nothing(monkeypatch):
    monkeypatch.delenv("TAVILY_API_KEY", raising=False)
    assert provider_here() is None and search_tool(None)("capital of France") == NO_PROVIDER
    monkeypatch.setenv("TAVILY_API_KEY", "tvly-secret")
    monkeypatch.setitem(sys.modules, "tavily", None)  # not installed
    assert provider_here() is None


def test_tavily_is_asked_through_its_own_client(monkeypatch, folder):
    class Client:
        def __init__(self, api_key):
            self.key = api_key

        def search(self, query, max_results):
            if query == "fail":
                raise RuntimeError(f"401 for {self.key}")
            row = {"title": "T", "url": "https://example.org", "content": f"{query} {self.key[:4]}", "score": 1.0}
            return {"results": [row] * max_results, "query": query}

    monkeypatch.setenv("TAVILY_API_KEY", "tvly-secret")
    monkeypatch.setitem(sys.modules, "tavily", types.SimpleNamespace(TavilyClient=Client))
    search = search_tool(provider_here())
    assert search(" q ").startswith("[1] T (https://example.org)\nq tvly") and f"[{HITS}] T" in search("q")
    assert "RuntimeError" in search("fail") and "secret" not in search("fail")
    build_index(folder)
    assert isinstance(provider_here(folder), FolderIndex)


def test_any_object_that_searches_is_a_provider():
    class Mine:
        def search(self, query, count):
            return [Hit("title", "here", "x" * 9999)] if query == "yes" else []

    assert search_tool(Mine())("yes") == "[1] title (here)\n" + "x" * 1000
    assert search_tool(Mine())("no") == "nothing was found" and search_tool(Mine())(" ").startswith("error")


def test_code_runs_only_where_the_user_said_so():
    with pytest.raises(InputError, match="--allow-code"):
        named_tools("search python")
    tools = named_tools("python calculator search", allow_code=True)
    assert list(tools) == ["python", "calculator", "search"] and tools["python"]("len('abc')") == "3"
    assert named_tools("calculator")["python"]("len('abc')") == "error" and named_tools(None) is None
    with pytest.raises(InputError, match="telepathy"):
        named_tools("telepathy")


def test_the_commands_take_tools_by_name(chain_folder, capsys, folder):
    assert cli.main(["index", str(folder), "--query", "harbour poem"]) == 0
    said = capsys.readouterr().out
    assert "6 passages of 3 files" in said and "[1] harbour (ships/harbour.md)" in said
    solve = ["solve", "--system", str(chain_folder), "--max-new-tokens", "3"]
    assert cli.main([*solve, "--tools", "python", "search", QUESTION]) == 2
    assert "nobody allowed" in capsys.readouterr().err
    for order in ([QUESTION, "--tools", "calculator", "search"], ["--tools", "calculator", "search", QUESTION]):
        assert cli.main([*solve, "--search-index", str(folder), *order]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 1
    assert cli.main([*solve, "--tools", "search", "--search-index", "nowhere", QUESTION]) == 2
    assert "nowhere" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main([*solve, "--tools", "telepathy"])
    assert "telepathy" in capsys.readouterr().err
