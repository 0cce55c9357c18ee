"""A system whose role declares tools answers with them through every door, runs code only where that was allowed, and
keeps nothing of one request for the next."""

import argparse
import asyncio
import html
import threading

import pytest
from recursivemas import app, mcp_server, serve
from recursivemas.errors_recursivemas import InputError
from recursivemas.evaluation import commands
from recursivemas.serving.queue import Job
from recursivemas.serving.requests import Asked
from recursivemas.toolbox.search import build_index
from test_tools_of_roles import scripted
from tiny import tiny_chain
from transformers import pipeline

QUESTION = "What is 2*3?"
SHORT = ["--max-new-tokens", "160"]


@pytest.fixture
def mas(monkeypatch):
    mas = tiny_chain()
    for module in (commands, app):
        monkeypatch.setattr(module, "load_mas_system", lambda *args, **kwargs: mas)
    return mas


def parsed(command, words):
    parser = argparse.ArgumentParser()
    command.configure(parser)
    return parser.parse_args([*SHORT, *words])


class Loading:
    configure = staticmethod(commands.add_system_arguments)


def through_pipeline(words):
    arguments = parsed(Loading, words)
    mas = commands.load_from_arguments(arguments)
    if (tools := commands.solve_arguments(arguments)["tools"]) is not None:
        mas.tools = tools
    pipe = pipeline("text-generation", model=mas, tokenizer=mas.tokenizer)
    settings = {"max_new_tokens": 160, "num_rounds": 1, "return_full_text": False}
    yield lambda: pipe(QUESTION, **settings)[0]["generated_text"]


def through_server(words):
    solvers = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serve, "listen", lambda solver, *_: solvers.append(solver))
        serve.run(parsed(serve, ["--rounds", "1", "--port", "18654", *words]))
    (solver,) = solvers

    def ask():
        told, done = [], threading.Event()

        def tell(what):
            told.append(what)
            done.set()

        solver.submit(Job(Asked([QUESTION], {}), tell))
        assert done.wait(60) and told[0][0] == "done", told
        return told[0][1][0].text

    yield ask
    solver.close()


def through_page(words):
    (offer,) = app.offers_of(parsed(app, ["--system", "mine", *words]))
    shelf = app.Shelf([offer])
    shelf.take("mine")
    settings = (QUESTION, ["alone"], 1, 1)

    def ask():
        last = [*app.answers(shelf.take("mine"), *settings, **offer.arguments)][-1]
        return html.unescape(last["alone"])

    yield ask


def through_mcp(words):
    from mcp import Client
    from mcp.server import MCPServer

    servers = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MCPServer, "run", lambda server, *_, **__: servers.append(server))
        mcp_server.run(parsed(mcp_server, words))

    async def call():
        async with Client(servers[0]) as client:
            found = await client.call_tool("solve", {"question": QUESTION, "num_rounds": 1, "mode": "alone"})
            return found.structured_content["text"]

    yield lambda: asyncio.run(call())


DOORS = [through_pipeline, through_server, through_page, pytest.param(through_mcp, marks=pytest.mark.slow)]


@pytest.fixture(params=DOORS)
def door(request):
    opened = []

    def open_door(words=()):
        opened.append(request.param(list(words)))
        return next(opened[-1])

    yield open_door
    for each in opened:
        next(each, None)


def test_every_declared_tool_answers_behind_every_door(door, mas, monkeypatch, tmp_path):
    (tmp_path / "harbour.md").write_text("The harbour poem was written by Ada Lind.", encoding="utf-8")
    build_index(tmp_path)
    mas.config.tools = {"solver": ["calculator", "python", "search"]}
    ask = door(["--allow-code", "--search-index", str(tmp_path)])
    for call, result in (
        ("<calculator>2*3</calculator>", "<result>6</result>"),
        ("<python>print(2**10)</python>", "<result>1024</result>"),
        ("<search>harbour</search>", "<result>[1] harbour (harbour.md)\nThe harbour poem was written by Ada Lind."),
    ):
        scripted(mas, monkeypatch, "solver", [[call], ["so"]])
        assert f"{call}{result}" in ask()


def test_no_door_opens_where_a_role_would_run_code_that_nobody_allowed(door, mas, monkeypatch):
    mas.config.tools = {"solver": ["python"]}
    monkeypatch.setattr(type(mas.agents["planner"]), "rollout", None)
    with pytest.raises(InputError, match="nobody allowed") as error:
        door()
    assert "--allow-code" in str(error.value) and "solver" in str(error.value)


def test_no_request_sees_what_another_did(door, mas, monkeypatch):
    mas.config.tools = {"solver": ["python"]}
    ask = door(["--allow-code"])
    said = []
    for program in (
        "kept = 41; open('kept', 'w').write('41')",
        "print('kept' in dir(), __import__('os').path.exists('kept'))",
    ):
        scripted(mas, monkeypatch, "solver", [[f"<python>{program}</python>"], ["so"]])
        said.append(ask())
    assert "<result>2</result>" in said[0] and "<result>False False</result>" in said[1]
    assert said[1].count("<result>") == 1  # calls of one request are not counted to the next


def test_none_are_none_behind_every_door(door, mas, monkeypatch):
    mas.config.tools = {"solver": ["calculator"]}
    ask = door(["--tools", "none"])
    scripted(mas, monkeypatch, "solver", [["<calculator>2*3</calculator>"], ["so"]])
    assert "<result>" not in ask()


def test_the_page_takes_no_tool_where_none_were_named(monkeypatch):
    monkeypatch.setattr(app, "load_mas_system", lambda *args, **kwargs: tiny_chain())
    for words, tools in ((["--tools", "none"], {}), ([], commands.TOOLS["calculator"])):
        (offer,) = app.offers_of(parsed(app, ["--system", "small/sequential", *words]))
        assert offer.arguments["tools"] == tools


def test_a_tool_that_is_named_is_that_of_a_role_that_declares_it(door, mas, monkeypatch):
    mas.config.tools = {"solver": ["calculator"]}
    ask = door(["--tools", "calculator"])
    scripted(mas, monkeypatch, "solver", [["<calculator>2*3</calculator>"], ["so"]])
    assert "<calculator>2*3</calculator><result>6</result>" in ask()
