"""Serve a system over HTTP: chat completions, completions and responses, as OpenAI clients speak them.

Requests that ask alike and wait at the same time are answered together. Beside OpenAI's fields a request may hold
`num_rounds`, `latent_steps`, `mode`, `task`, `tools` and others (docs/serving.md); `/health` and `/metrics` (for
Prometheus) say how the server does. Needs the extra `recursivemas[serve]`.

Examples:
  recursivemas serve
  recursivemas serve --system path/to/system --name mine --port 8812 --device cuda --tools calculator
  curl localhost:8000/v1/chat/completions -H "Content-Type: application/json" \\
    -d '{"messages": [{"role": "user", "content": "3+5*2-4"}], "num_rounds": 2}'
"""

import argparse
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from .errors_recursivemas import InputError
from .evaluation.commands import (
    add_system_arguments,
    declared_tools,
    load_from_arguments,
    named_tools,
    validate_arguments,
)
from .fields_recursivemas import validate_field, whole
from .runs_recursivemas import MODES
from .serving.queue import Solver
from .tools_recursivemas import Tools


def configure(parser: argparse.ArgumentParser) -> None:
    add_system_arguments(parser)
    parser.add_argument(
        "--rounds", type=int, help="recursion rounds where a request says none (default: the system's)"
    )
    parser.add_argument("--mode", choices=MODES, help="where a request says none (default: latent)")
    parser.add_argument("--name", help="what requests call the system (default: its folder's or repository's name)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", default="8000", help="port (default: 8000)")
    parser.add_argument("--queue", type=int, default=1024, help="requests that may wait (default: 1024)")


def run(arguments: argparse.Namespace) -> int:
    port = int(arguments.port) if str(arguments.port).isdecimal() else None
    validate_field(port, whole(1, 65535), "--port", InputError)
    validate_field(arguments.queue, whole(1, 1_000_000), "--queue", InputError)
    validate_arguments(arguments)
    try:
        with socket.create_server((arguments.host, port)):  # free, now at least
            pass
    except OSError as error:
        found = f"{arguments.host}:{port}: {error.strerror or error}"
        what, hint = "The address cannot be listened on.", "choose another --port or --host"
        raise InputError(what, where="--host, --port", found=found, hint=hint) from error
    tools = {"allow_code": arguments.allow_code, "search_index": arguments.search_index}
    named_tools(arguments.tools, **tools)  # what nobody allowed is an error now
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        hint = "pip install recursivemas[serve]"
        raise InputError("Serving needs more packages.", where="recursivemas serve", found=error, hint=hint) from error
    chosen = {"num_rounds": arguments.rounds, "mode": arguments.mode}
    chosen |= {name: getattr(arguments, name) for name in ("latent_steps", "task", "max_new_tokens")}
    mas = load_from_arguments(arguments)
    mas.config.run_settings(**{name: value for name, value in chosen.items() if name != "max_new_tokens"})
    names = [name for name in dict.fromkeys((arguments.tools or "").split()) if name != "none"]
    make: Callable[[str], Tools | None] = partial(named_tools, **tools)
    if mas.tools is not None:  # those that roles declare, where none are named
        names, make = [*mas.tools], lambda chosen: declared_tools({"": chosen.split()}, **tools)
    solver = Solver(
        mas,
        {name: value for name, value in chosen.items() if value is not None},
        tool_names=names,
        make_tools=make,
        batch_size=arguments.batch_size,
        limit=arguments.queue,
    )
    name = arguments.name or name_of(arguments.system)
    print(f'"{name}" is served at http://{arguments.host}:{port}/v1', flush=True)
    listen(solver, name, arguments.host, port)
    return 0


def name_of(system: str) -> str:
    """What a system is called where nobody says: its folder's name, or the repository's."""
    folder = Path(system)
    return folder.resolve().name if folder.is_dir() else system


def listen(solver: Solver, name: str, host: str, port: int | None) -> None:
    """Serves until it is interrupted."""
    server_of(solver, name, host=host, port=port).run()


def server_of(solver: Solver, name: str, **settings: Any) -> Any:
    """The uvicorn server of a system; `settings` are of uvicorn's `Config`."""
    import uvicorn

    from .serving.app import build_app

    class Server(uvicorn.Server):
        async def shutdown(self, *arguments: Any, **more: Any) -> None:
            solver.end()  # or it would wait for long answers
            await super().shutdown(*arguments, **more)

    # Clients keep connections for some seconds and must not find them closed when they ask again.
    settings = {"log_level": "warning", "timeout_keep_alive": 75, "timeout_graceful_shutdown": 2, **settings}
    return Server(uvicorn.Config(build_app(solver, name), **settings))
