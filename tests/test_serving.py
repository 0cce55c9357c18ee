"""Laws of the server: real clients over the loopback interface, and the queue behind them."""

import asyncio
import contextlib
import http.client
import itertools
import json
import socket
import threading
import time

import pytest
import torch
from recursivemas import cli, serve
from recursivemas.errors_recursivemas import InputError
from recursivemas.evaluation.commands import named_tools
from recursivemas.serving.formats import settled
from recursivemas.serving.metrics import Metrics
from recursivemas.serving.queue import Ended, Job, Solver, _Row
from recursivemas.serving.requests import Asked, read_request

pytest.importorskip("uvicorn", reason="needs the extra [serve]")
openai = pytest.importorskip("openai", reason="needs the extra [serve]")

QUESTIONS = [f"Why {number}?" for number in range(8)]
NAME = "tiny"


class Held:
    """A system whose `solve` waits until it is let go, and keeps what it was asked."""

    def __init__(self, mas):
        self.mas, self.go, self.asked = mas, threading.Event(), []

    def __getattr__(self, name):
        return getattr(self.mas, name)

    def solve(self, questions, **arguments):
        self.asked.append(list(questions))
        assert self.go.wait(60)
        return self.mas.solve(questions, **arguments)


@contextlib.contextmanager
def served(solver, name=NAME):
    """The port of a server that runs."""
    server = serve.server_of(solver, name, port=0)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def port(chain):
    solver = Solver(chain, {"max_new_tokens": 6}, tool_names=["calculator"], make_tools=named_tools)
    with served(solver) as port:
        yield port


@pytest.fixture(scope="module")
def client(port):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0) as client:
        yield client


def request(port, path, body=None, method=None):
    """(status, text) of a raw request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    data = body if body is None or isinstance(body, str | bytes) else json.dumps(body)
    connection.request(method or ("GET" if body is None else "POST"), path, data)
    reply = connection.getresponse()
    text = reply.read().decode()
    connection.close()
    return reply.status, text


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def user(text):
    return [{"role": "user", "content": text}]


def chat(client, question=QUESTIONS[0], extra=None, **fields):
    """The reply to a question."""
    return client.chat.completions.create(model=NAME, messages=user(question), extra_body=extra, **fields)


def text_of(reply):
    return reply.choices[0].message.content


def counts(port):
    """name with labels -> value, of /metrics."""
    lines = [line for line in request(port, "/metrics")[1].splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_every_way_of_asking_gets_what_solve_answers(client, chain):
    question = QUESTIONS[0]
    (expected,) = chain.solve(question, max_new_tokens=6)
    assert expected.text
    assert text_of(chat(client)) == expected.text
    assert client.completions.create(model=NAME, prompt=question).choices[0].text == expected.text
    assert client.responses.create(model=NAME, input=question).output_text == expected.text
    parts = [{"type": "text", "text": question[:3]}, {"type": "text", "text": question[3:]}]
    reply = client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": parts}])
    assert text_of(reply) == expected.text
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME


def test_streams_join_to_the_answer_and_show_the_turns(client, chain, port):
    (expected,) = chain.solve(QUESTIONS[0], max_new_tokens=6)
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}, extra={"tools": []}))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    pieces = [delta.content for delta in deltas if delta.content]
    assert "".join(pieces) == expected.text and len(pieces) > 1
    turns = [delta.reasoning_content.split(",")[:2] for delta in deltas if hasattr(delta, "reasoning_content")]
    assert [(int(each[0].split()[1]), each[1].strip()) for each in turns] == chain.topology.schedule(2)[:-1]
    assert chunks[-2].choices[0].finish_reason == "length" and chunks[-1].usage.latent_positions > 0
    chunks = client.completions.create(model=NAME, prompt=QUESTIONS[0], stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected.text
    events = list(client.responses.create(model=NAME, input=QUESTIONS[0], stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == expected.text
    assert events[-1].response.output_text == expected.text
    _, raw = request(port, "/v1/completions", {"prompt": QUESTIONS[0], "stream": True})
    assert ": round 1, planner, " in raw and raw.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    "settings",
    [
        {"num_rounds": 3},
        {"latent_steps": 2},
        {"mode": "alone"},
        {"mode": "text", "message_tokens": 3},
        {"latent_steps": 0, "max_new_tokens": 3},
    ],
    ids=str,
)
def test_settings_are_plain_fields_and_usage_counts_all_agents(client, chain, settings):
    (expected,) = chain.solve(QUESTIONS[0], **{"max_new_tokens": 6} | settings)
    for extra in (settings, {"generation_config": settings}, {"generation_config": json.dumps(settings)}):
        reply = chat(client, extra=extra)
        assert text_of(reply) == expected.text
        used = reply.usage
        assert used.prompt_tokens == expected.usage["prompt_tokens"]
        assert used.completion_tokens == expected.usage["new_tokens"]
        assert used.total_tokens == used.prompt_tokens + used.completion_tokens
        assert used.latent_positions == expected.usage["latent_positions"]
        assert used.slot_positions == expected.usage["slot_positions"]


def test_fields_of_openai_mean_what_they_say(client, chain):
    (whole,) = chain.solve(QUESTIONS[0], max_new_tokens=6)
    (short,) = chain.solve(QUESTIONS[0], max_new_tokens=2)
    assert text_of(chat(client, max_tokens=2)) == text_of(chat(client, max_completion_tokens=2)) == short.text
    assert chat(client, max_tokens=2).choices[0].finish_reason == "length"
    stop = whole.text[-2:]
    assert text_of(chat(client, stop=stop)) == whole.text[: whole.text.index(stop)]
    assert chat(client, stop=[stop]).choices[0].finish_reason == "stop"
    streamed = chat(client, stop=stop, stream=True, extra={"tools": []})
    text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
    assert text == whole.text[: whole.text.index(stop)]
    several = client.completions.create(model=NAME, prompt=QUESTIONS[:2], n=2, echo=True).choices
    first, second = (solution.text for solution in chain.solve(QUESTIONS[:2], max_new_tokens=6))
    expected = [QUESTIONS[0] + first] * 2 + [QUESTIONS[1] + second] * 2
    assert [choice.text for choice in several] == expected
    assert text_of(chat(client, temperature=0, user="me", n=1, presence_penalty=0)) == whole.text
    drawn = {text_of(chat(client, temperature=9.0, seed=seed, max_tokens=6)) for seed in (1, 2, 3)}
    assert len(drawn) > 1
    for seed in (1, 2):
        before = torch.get_rng_state()
        first, second = (text_of(chat(client, temperature=9.0, seed=seed, max_tokens=6)) for _ in range(2))
        assert first == second and torch.equal(torch.get_rng_state(), before)


WRONG = {
    "num_rounds 0": ({"num_rounds": 0}, "num_rounds"),
    "num_rounds true": ({"num_rounds": True}, "num_rounds"),
    "a mode": ({"mode": "foo"}, "latent, text, alone"),
    "a typing error": ({"num_round": 1}, "did you mean `num_rounds`"),
    "prompts": ({"generation_config": {"prompts": {}}}, "cannot choose"),
    "a file": ({"prompts": "/etc/passwd"}, "unknown key"),
    "other questions": ({"generation_config": {"control": "other_question"}}, "cannot choose"),
    "broken settings": ({"generation_config": "{"}, "not valid JSON"),
    "a list of settings": ({"generation_config": "[]"}, "generation_config"),
    "max_tokens 0": ({"max_tokens": 0}, "max_tokens"),
    "max_tokens x": ({"max_tokens": "x"}, "max_tokens"),
    "hot": ({"temperature": "hot"}, "temperature"),
    "cold": ({"temperature": -1}, "temperature"),
    "an empty stop": ({"stop": ""}, "stop"),
    "logprobs": ({"logprobs": True}, "logprobs"),
    "a token": ({"logit_bias": {"x": 1}}, "logit_bias"),
    "functions": ({"tools": [{"type": "function"}]}, "tools[0]"),
    "a tool": ({"tools": ["python"]}, "no such tool"),
    "json": ({"response_format": {"type": "json_object"}}, "response_format"),
    "no messages": ({"messages": []}, "messages"),
    "messages as text": ({"messages": "hi"}, "messages"),
    "an empty question": ({"messages": user("  ")}, "question"),
    "nothing said": ({"messages": user(None)}, "no text"),
    "a number": ({"messages": user(3)}, "no text"),
    "a robot": ({"messages": [{"role": "robot", "content": "x"}]}, "role"),
    "an image": ({"messages": user([{"type": "image_url", "image_url": {"url": "data:"}}])}, "no text"),
    "another field": ({"inputs": {"facts": "x"}}, "facts"),
    "too long": ({"messages": user("why " * 3000)}, "positions"),
}


@pytest.mark.parametrize(("fields", "said"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_answered_is_an_error_of_the_client_with_our_message(port, fields, said):
    for stream in (False, True):
        body = {"model": NAME, "messages": user(QUESTIONS[0]), **fields, "stream": stream}
        status, text = request(port, "/v1/chat/completions", body)
        error = json.loads(text)["error"]
        assert status == 400 and said in error["message"] and error["type"] == "invalid_request_error"


def test_requests_that_are_none_are_refused_as_json(port, client):
    for body in ("{garbage", "", "[]", b"\xff\xfe\x00", '"x"', "[" * 100_000):
        status, text = request(port, "/v1/chat/completions", body)
        assert status == 400 and json.loads(text)["error"]["message"]
    assert request(port, "/v1/chat/completions", b" " * (17 * 2**20))[0] == 413
    assert request(port, "/v1/nonsense")[0] == 404 and request(port, "/v1/chat/completions")[0] == 405
    with pytest.raises(openai.NotFoundError, match="gpt"):
        client.chat.completions.create(model="gpt", messages=user("x"))
    assert json.loads(request(port, "/health")[1])["status"] == "ok"


def test_requests_that_ask_alike_are_answered_together_and_a_full_queue_says_so(chain):
    held = Held(chain)
    solver = Solver(held, {"max_new_tokens": 4}, batch_size=4, limit=7)
    replies = {}

    def ask(question, **fields):
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0) as client:
            replies[question] = text_of(chat(client, question, fields))

    def start(question, **fields):
        there = len(held.asked) + solver.length
        thread = threading.Thread(target=ask, args=(question,), kwargs=fields)
        thread.start()
        while len(held.asked) + solver.length == there:
            time.sleep(0.005)
        return thread

    with served(solver) as port:
        threads = [start("first")]
        for question in QUESTIONS[:7]:
            threads.append(start(question, **({"num_rounds": 1} if question == QUESTIONS[2] else {})))
        status, text = request(port, "/v1/chat/completions", {"messages": user("x")})
        assert status == 429 and json.loads(text)["error"]["type"] == "rate_limit_error"
        held.go.set()
        for thread in threads:
            thread.join()
        seen = counts(port)
    alike = [QUESTIONS[index] for index in (0, 1, 3, 4)]
    assert held.asked == [["first"], alike, [QUESTIONS[2]], QUESTIONS[5:7]]
    for question, text in replies.items():
        rounds = 1 if question == QUESTIONS[2] else 2
        assert text == chain.solve(question, max_new_tokens=4, num_rounds=rounds)[0].text
    assert seen["recursivemas_batches_total"] == 4 and seen["recursivemas_questions_total"] == 8
    assert seen['recursivemas_requests_total{endpoint="chat",status="429"}'] == 1
    assert seen["recursivemas_queue_length"] == 0 and seen["recursivemas_latent_steps_total"] > 0
    assert seen['recursivemas_role_seconds_total{role="planner"}'] > 0


def test_a_question_that_fails_does_not_hurt_the_others_of_its_batch(chain):
    held, told = Held(chain), {}
    solver = Solver(held, {"max_new_tokens": 4})
    done = [threading.Event() for _ in range(3)]

    def tell(index):
        return lambda what: (told.__setitem__(index, what), done[index].set())

    for index, question in enumerate(["first", "why " * 3000, QUESTIONS[0]]):
        solver.submit(Job(Asked([question], {}), tell(index)))
    held.go.set()
    assert all(event.wait(60) for event in done)
    solver.close()
    assert told[1][0] == "error" and isinstance(told[1][1], InputError)
    assert told[2][1][0].text == chain.solve(QUESTIONS[0], max_new_tokens=4)[0].text
    with pytest.raises(Ended):
        solver.submit(Job(Asked(["x"], {}), print))


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"mode": "text", "message_tokens": 200}], ids=str)
def test_a_client_that_leaves_frees_the_model(port, fields):
    body = {"messages": user(QUESTIONS[0]), "num_rounds": 400, "latent_steps": 50, **fields}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
    while counts(port)["recursivemas_questions_running"] == 0:
        time.sleep(0.005)
    if fields.get("stream"):
        assert connection.getresponse().read(1)
    gone = counts(port).get("recursivemas_abandoned_total", 0)
    connection.sock.close()
    connection.close()
    status, _ = request(port, "/v1/chat/completions", {"messages": user(QUESTIONS[1])})
    assert status == 200
    while counts(port).get("recursivemas_abandoned_total", 0) == gone:
        time.sleep(0.005)


def test_a_client_that_leaves_the_queue_is_not_answered(chain):
    held = Held(chain)
    solver = Solver(held, {"max_new_tokens": 2})
    told = []
    jobs = [Job(Asked([question], {}, key=question), told.append) for question in QUESTIONS[:3]]
    for job in jobs:
        solver.submit(job)
    solver.leave(jobs[1])
    held.go.set()
    while len(told) < 2:
        time.sleep(0.005)
    solver.close()
    assert held.asked == [[QUESTIONS[0]], [QUESTIONS[2]]]


def test_a_step_may_end_a_run_and_is_told_of_every_latent_and_token(chain):
    steps = []
    (solution,) = chain.solve(QUESTIONS[0], on_step=lambda: steps.append(1), max_new_tokens=5)
    assert len(steps) == solution.usage["latent_positions"] + solution.usage["new_tokens"]
    steps.clear()
    (solution,) = chain.solve(QUESTIONS[0], mode="text", on_step=lambda: steps.append(1), max_new_tokens=5)
    assert len(steps) == solution.usage["new_tokens"]

    def leave():
        steps.append(1)
        if len(steps) == 3:
            raise KeyError("left")

    for mode in ("latent", "text", "alone"):
        steps.clear()
        with pytest.raises(KeyError, match="left"):
            chain.solve(QUESTIONS[0], mode=mode, on_step=leave, max_new_tokens=5)
        assert len(steps) == 3


def test_a_solution_says_whether_its_text_was_cut_off(chain):
    (cut,) = chain.solve(QUESTIONS[0], max_new_tokens=3)
    token = chain.tokenizer(cut.text, add_special_tokens=False)["input_ids"][-1]
    (ended,) = chain.solve(QUESTIONS[0], max_new_tokens=3, eos_token_id=[token])
    assert (cut.finish_reason, ended.finish_reason) == ("length", "stop")


def test_concurrent_mixed_requests_each_get_their_own_answer(port, chain):
    """Questions differ in length, so that what was read tells them apart."""
    settings = [{}, {"num_rounds": 1}, {"mode": "alone"}, {"stream": True}]
    asked = [("why" * (number // 4 + 1), settings[number % 4]) for number in range(20)]
    expected = []
    for question, fields in asked:
        own = {name: value for name, value in fields.items() if name != "stream"}
        (solution,) = chain.solve(question, max_new_tokens=6, **own)
        expected.append((solution.text, solution.usage["prompt_tokens"]))
    assert len(set(expected)) == 15

    async def run():
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0) as client:

            async def ask(question, fields):
                fields = {"tools": [], **fields}
                stream = {"stream": fields.pop("stream", False), "stream_options": {"include_usage": True}}
                reply = await client.chat.completions.create(
                    model=NAME, messages=user(question), extra_body=fields, **stream
                )
                if not stream["stream"]:
                    return text_of(reply), reply.usage.prompt_tokens
                chunks = [chunk async for chunk in reply]
                pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
                return "".join(pieces), chunks[-1].usage.prompt_tokens

            return await asyncio.gather(*(ask(question, fields) for question, fields in asked))

    assert asyncio.run(run()) == expected


def test_a_text_that_grows_token_by_token_is_the_whole_text(chain):
    agent = chain.agents[chain.config.decoding_role]
    for text in ("Grüße, 你好 🤖🤖!", " a  b\n\n c", "x"):
        pieces = []
        row = _Row(Job(Asked([text], {}), lambda what, pieces=pieces: pieces.append(what[2])), 0)
        ids = agent.tokenizer(text, add_special_tokens=False)["input_ids"]
        for token in [*ids, agent.eos_token_ids[0]]:
            row.take([token], agent.decode, set(agent.eos_token_ids))
        assert pieces[-1] == agent.decode(ids) and not row.open
        assert all(later.startswith(piece) for piece, later in itertools.pairwise(pieces))


def test_a_growing_text_is_sent_up_to_what_may_become_its_end():
    assert settled("ab<", ("<end>",)) == "ab" and settled("ab<x", ("<end>",)) == "ab<x"
    assert settled("ab<end>cd", ("<end>",)) == "ab" and settled("ab", ()) == "ab"
    assert settled("aab", ("abc", "bd")) == "a"


def test_counts_are_written_as_prometheus_reads_them():
    metrics = Metrics()
    metrics.add("requests_total", endpoint='a"b\\c\n', status=200)
    assert 'recursivemas_requests_total{endpoint="a\\"b\\\\c\\n",status="200"} 1\n' in metrics.text()
    parser = pytest.importorskip("prometheus_client.parser")
    names = {family.name for family in parser.text_string_to_metric_families(metrics.text())}
    assert "recursivemas_queue_length" in names


def test_who_may_call_which_tools_is_the_servers_choice(chain):
    body = {"messages": user("x")}
    there = ("calculator", "search")
    assert read_request("chat", body, chain, there).tools is None
    assert read_request("chat", {**body, "tools": ["search"]}, chain, there).tools == ("search",)
    told = threading.Event()
    given = []
    solver = Solver(chain, {"max_new_tokens": 2}, tool_names=["calculator"], make_tools=given.append)
    for tools in (None, (), ("calculator",)):
        told.clear()
        solver.submit(Job(Asked(["x"], {}, tools=tools), lambda what: told.set()))
        assert told.wait(60)
    solver.close()
    assert given == ["calculator"]


def test_a_server_that_ends_does_not_wait_for_a_long_answer(chain):
    told, begun = [], threading.Event()
    solver = Solver(chain, {"max_new_tokens": 2})
    arguments = {"num_rounds": 400, "latent_steps": 50}
    for question in QUESTIONS[:2]:
        asked = Asked([question], arguments, stream=True, key=question)
        solver.submit(Job(asked, lambda what: (told.append(what), begun.set())))
    assert begun.wait(60)
    solver.close()
    assert [what[0] for what in told if what[0] != "turn"] == ["error", "error"] and not solver.alive


def test_options_of_the_command_count_where_requests_say_nothing(chain_folder, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(serve, "listen", lambda solver, name, *_: (seen.append((solver, name)), solver.close()))
    options = ["--rounds", "1", "--latent-steps", "2", "--max-new-tokens", "3"]
    options += ["--tools", "calculator", "--queue", "5"]
    command = ["serve", "--system", str(chain_folder), "--port", str(free_port())]
    assert cli.main([*command, *options]) == 0
    ((solver, name),) = seen
    assert name == chain_folder.name and solver.limit == 5 and solver.tool_names == ("calculator",)
    assert solver.arguments == {"num_rounds": 1, "latent_steps": 2, "max_new_tokens": 3}
    assert cli.main([*command, "--tools", "python"]) == 2
    assert "--allow-code" in capsys.readouterr().err and len(seen) == 1
