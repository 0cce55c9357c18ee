"""The server, over the loopback interface: clients side by side against one by one, and what it adds to `solve`.

The system is the shipped one (its agents are so small that the server's own work shows). Mixed requests differ in
question, rounds, steps and mode, some are streamed; each answer and its usage are held against those of `solve` alone.
"""

import argparse
import http.client
import json
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from ..evaluation.commands import limit_threads
from ..modeling_recursivemas import RecursiveMASModel
from ..serve import server_of
from ..serving.queue import Solver
from ..solutions_recursivemas import Solution
from ..system_loader import load_mas_system
from ..tasks import TASKS
from .harness import Option, in_turn, now, ratio_row, row

OPTIONS = {
    "clients": Option("that ask side by side", 50, 4),
    "mixed": Option("mixed requests", 1000, 8),
    "rounds": Option("of a question whose client leaves", 600, 50),
    "system": Option("folder or style", "small/sequential", kind=str),
}
SETTINGS: list[dict[str, Any]] = [{}, {"num_rounds": 1}, {"latent_steps": 1}, {"mode": "alone"}]
MOST_OWN_SECONDS, MOST_SECONDS_TO_LEAVE = 0.005, 0.3


class Timed:
    """A system that keeps how long its last `solve` took."""

    def __init__(self, mas: RecursiveMASModel) -> None:
        self.mas, self.seconds = mas, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.mas, name)

    def solve(self, *questions: Any, **arguments: Any) -> list[Solution]:
        started = now()
        solutions = self.mas.solve(*questions, **arguments)
        self.seconds = now() - started
        return solutions


class Client:
    """A connection that stays open."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port)

    def ask(self, question: str, stream: bool = False, **fields: Any) -> tuple[str, int]:
        """The answer, and how many tokens were read for it."""
        body = {"messages": [{"role": "user", "content": question}], "stream": stream, **fields}
        if stream:
            body["stream_options"] = {"include_usage": True}
        self.connection.request("POST", "/v1/chat/completions", json.dumps(body))
        reply = self.connection.getresponse()
        text = reply.read().decode()
        if reply.status != 200:
            raise RuntimeError(text)
        if not stream:
            whole = json.loads(text)
            return whole["choices"][0]["message"]["content"], whole["usage"]["prompt_tokens"]
        lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {")]
        chunks = list(map(json.loads, lines))
        pieces = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"]]
        return "".join(pieces), chunks[-1]["usage"]["prompt_tokens"]

    def leave(self) -> None:
        self.connection.close()


def questions_of(count: int) -> list[str]:
    """So many questions of the shipped system's task."""
    task = TASKS["arithmetic"]
    return [row["question"] for row in task.generate(count, seed=20000)]


def seconds_to_leave(solver: Solver, port: int, question: str, **fields: Any) -> float:
    """From a client's leaving, while its question is worked on, to a model that is free."""
    client = Client(port)
    body = {"messages": [{"role": "user", "content": question}], "latent_halting": False, **fields}
    client.connection.request("POST", "/v1/chat/completions", json.dumps(body))
    while not solver.running:
        time.sleep(0.001)
    time.sleep(0.3)
    if not solver.running:
        raise RuntimeError("the answer came before the client left: more --rounds")
    client.connection.sock.close()
    started = now()
    while solver.running:
        time.sleep(0.001)
    return now() - started


def mixed_answers(mas: RecursiveMASModel, port: int, count: int, clients: int) -> tuple[float, float]:
    """Of so many requests, the share that is answered, and the share that has its own answer."""
    choose = random.Random(0)
    questions = questions_of(max(2, count // 20))
    asked = [(choose.choice(questions), choose.choice(SETTINGS), choose.random() < 0.3) for _ in range(count)]
    expected = {}
    for question, fields, _ in asked:
        key = question, str(fields)
        if key not in expected:
            (solution,) = mas.solve(question, **fields)
            expected[key] = solution.text, solution.usage["prompt_tokens"]
    local = threading.local()

    def ask(each: tuple[str, dict, bool]) -> tuple[bool, bool]:
        question, fields, stream = each
        if not hasattr(local, "client"):
            local.client = Client(port)
        try:
            answer = local.client.ask(question, stream, **fields)
        except Exception:
            return False, False
        return True, answer == expected[question, str(fields)]

    with ThreadPoolExecutor(clients) as pool:
        answered, own = zip(*pool.map(ask, asked), strict=True)
    return sum(answered) / count, sum(own) / count


def measure(arguments: argparse.Namespace) -> tuple[dict, list[dict]]:
    mas = load_mas_system(arguments.system, device=arguments.device)
    limit_threads(mas)
    solver = Solver(timed_mas := cast(Any, Timed(mas)))
    server = server_of(solver, "bench", port=0)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    questions = questions_of(arguments.clients)
    try:
        with ThreadPoolExecutor(arguments.clients) as pool:
            clients = [Client(port) for _ in questions]

            def side_by_side() -> None:
                list(pool.map(lambda client, question: client.ask(question), clients, questions))

            def one_by_one() -> None:
                for question in questions:
                    clients[0].ask(question)

            seconds = in_turn({"side by side": side_by_side, "one by one": one_by_one}, arguments.repeats)

            own = []
            for question in questions:
                started = now()
                clients[0].ask(question)
                own.append(now() - started - timed_mas.seconds)
        leaving: dict[str, Any] = {"num_rounds": arguments.rounds}
        left = [seconds_to_leave(solver, port, questions[0], **leaving) for _ in range(arguments.repeats)]
        leaving["stream"] = True
        streamed = [seconds_to_leave(solver, port, questions[0], **leaving) for _ in range(arguments.repeats)]
        answered, right = mixed_answers(mas, port, arguments.mixed, arguments.clients)
    finally:
        server.should_exit = True
        thread.join()
    rows = [
        ratio_row(f"{arguments.clients} clients", seconds, "one by one", "side by side", ">= 4"),
        row("a request over solve", "seconds", own, {}, f"<= {MOST_OWN_SECONDS}"),
        row("a client leaves", "seconds", left, {}, f"<= {MOST_SECONDS_TO_LEAVE}"),
        row("a client leaves a stream", "seconds", streamed, {}, f"<= {MOST_SECONDS_TO_LEAVE}"),
        row(f"{arguments.mixed} mixed requests, answered", "share", [answered], {}, ">= 1"),
        row(f"{arguments.mixed} mixed requests, with their own answer", "share", [right], {}, ">= 1"),
    ]
    return {"clients": arguments.clients, "mixed": arguments.mixed, "rounds": arguments.rounds}, rows
