"""The HTTP application: OpenAI's endpoints, errors as JSON, health and metrics."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from ..errors_recursivemas import ArgumentError, ConfigError, InputError
from ..solutions_recursivemas import Solution
from .formats import FORMATS, Format, event
from .queue import Ended, Job, Left, QueueFull, Solver
from .requests import read_request

if TYPE_CHECKING:
    from starlette.applications import Starlette

MOST_BYTES = 16 * 2**20  # of a request
PATHS = {"/v1/chat/completions": "chat", "/v1/completions": "completions", "/v1/responses": "responses"}
GONE = 499  # the status of a request whose client left, which nobody sees


class Refused(Exception):
    """A request that is not answered: status, message, kind of error."""

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


def refusal(error: BaseException) -> Refused:
    """What a client is told of an error."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, QueueFull):
        return Refused(429, "Too many requests wait for the model. Try again later.", "rate_limit_error")
    if isinstance(error, Ended):
        return Refused(503, "The server ends.", "server_error")
    if isinstance(error, InputError | ConfigError | ArgumentError):
        return Refused(400, str(error))
    return Refused(500, f"{type(error).__name__}: {error}", "server_error")


def error_body(error: Refused) -> dict[str, Any]:
    """The JSON of an error, as OpenAI's clients read it."""
    return {"error": {"message": str(error), "type": error.kind, "param": None, "code": error.status}}


def build_app(solver: Solver, name: str) -> "Starlette":
    """The application.

    Args:
        solver: answers; closed with the application.
        name: of the system, by which requests call it.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
    from starlette.routing import Route

    started = int(time.time())
    metrics = solver.metrics

    def refuse(request: Request, error: BaseException) -> Response:
        refused = refusal(error)
        headers = {"Retry-After": "1"} if refused.status == 429 else None
        return JSONResponse(error_body(refused), refused.status, headers)

    def refuse_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return refuse(request, Refused(error.status_code, f"{request.method} {request.url.path}: {error.detail}"))

    async def read(request: Request) -> Any:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_BYTES:
                raise Refused(413, f"A request has at most {MOST_BYTES} bytes.")
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"The request is no JSON: {error}") from error

    async def answer(request: Request) -> Response:
        kind, began = PATHS[request.url.path], time.perf_counter()

        def finish(status: int) -> None:
            metrics.add("requests_total", endpoint=kind, status=status)
            metrics.add("request_seconds_total", time.perf_counter() - began, endpoint=kind)
            if status == GONE:
                metrics.add("abandoned_total")

        try:
            body = await read(request)
            if isinstance(body, dict) and body.get("model") not in (None, name):
                raise Refused(404, f"There is no model {body['model']!r} here, only {name!r}.")
            asked = read_request(kind, body, solver.mas, solver.tool_names)
            events: asyncio.Queue[tuple] = asyncio.Queue()
            loop = asyncio.get_running_loop()

            def tell(what: tuple) -> None:
                with contextlib.suppress(RuntimeError):  # the loop is closed, with all its clients
                    loop.call_soon_threadsafe(events.put_nowait, what)

            job = Job(asked, tell)
            solver.submit(job)
        except Exception as error:
            response = refuse(request, error)
            finish(response.status_code)
            return response
        watch = asyncio.create_task(departure(request, solver, job, events))
        try:
            first = await events.get()
        except asyncio.CancelledError:  # the server ends
            watch.cancel()
            solver.leave(job)
            raise
        if first[0] in ("error", "gone") or not asked.stream:
            watch.cancel()
            solver.leave(job)
            if first[0] == "done":
                response = JSONResponse(FORMATS[kind](asked, name).whole(first[1]))
            else:
                response = Response(status_code=GONE) if first[0] == "gone" else refuse(request, first[1])
            finish(response.status_code)
            return response

        async def stream() -> AsyncIterator[str]:
            status = GONE
            try:
                async for part in parts(FORMATS[kind](asked, name), first, events):
                    yield part
                status = 200
            except Left:
                pass
            finally:
                watch.cancel()
                solver.leave(job)
                finish(status)

        return StreamingResponse(stream(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    async def models(request: Request) -> Response:
        entry = {"id": name, "object": "model", "created": started, "owned_by": "recursivemas"}
        if (asked := request.path_params.get("model")) is None:
            return JSONResponse({"object": "list", "data": [entry]})
        if asked != name:
            return refuse(request, Refused(404, f"There is no model {asked!r} here, only {name!r}."))
        return JSONResponse(entry)

    async def health(request: Request) -> Response:
        alive = solver.alive
        state = {"status": "ok" if alive else "unhealthy", "model": name, "waiting": solver.length}
        return JSONResponse(state, 200 if alive else 503)

    async def counts(request: Request) -> Response:
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4")

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        solver.close()

    routes = [Route(path, answer, methods=["POST"]) for path in PATHS]
    routes += [Route("/v1/models", models), Route("/v1/models/{model:path}", models)]
    routes += [Route("/health", health), Route("/metrics", counts)]
    handlers: dict[Any, Any] = {HTTPException: refuse_http, Exception: refuse}
    return Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)


async def departure(request: Any, solver: Solver, job: Job, events: "asyncio.Queue[tuple]") -> None:
    """Waits until the client leaves, and says so to the model and to who waits for it."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    solver.leave(job)
    events.put_nowait(("gone",))


async def parts(form: Format, first: tuple, events: "asyncio.Queue[tuple]") -> AsyncIterator[str]:
    """The events of a stream; what waits together is sent together."""
    for part in form.opening():
        yield part
    what = first
    while True:
        kind, *values = what
        if kind == "turn":
            yield form.turn(*values)
        elif kind == "text":
            choice, text = values
            if new := form.more(choice, text):
                yield form.delta(choice, new)
        elif kind == "done":
            solutions: list[Solution] = values[0]
            for choice, solution in enumerate(solutions):
                if new := form.more(choice, form.text_of(choice, solution)[0], whole=True):
                    yield form.delta(choice, new)
            for part in form.closing(solutions):
                yield part
            return
        elif kind == "error":
            yield event(error_body(refusal(values[0])))
            yield event("[DONE]")
            return
        else:
            raise Left
        what = await events.get()
