"""Serve a system as a tool of the Model Context Protocol, for assistants and agent frameworks that speak it.

One tool, `solve`, with the question, recursion rounds, mode and, where the system's prompts name them, further fields;
who asks for progress is told after each agent's turn. Over standard input and output by default, which is how
assistants start a server, or over HTTP. Needs the extra `recursivemas[mcp]`.

Examples:
  recursivemas mcp
  recursivemas mcp --system systems/smollm2
  recursivemas mcp --transport streamable-http --port 8001
"""

import argparse
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from .errors_recursivemas import InputError, RecursiveMASError
from .evaluation.commands import add_system_arguments, load_from_arguments, solve_arguments
from .modeling_recursivemas import RecursiveMASModel

if TYPE_CHECKING:
    from mcp.server import MCPServer


def build_server(mas: RecursiveMASModel, **arguments: Any) -> "MCPServer":
    """The server of a system; questions are answered one after another.

    Args:
        mas: the system.
        arguments: of `solve`, that the client does not choose.

    Raises:
        InputError: the SDK is not installed.
    """
    try:
        import anyio
        from mcp.server import MCPServer
        from mcp.server.mcpserver import Context
        from mcp.server.mcpserver.exceptions import ToolError
    except ImportError as error:
        hint = "pip install recursivemas[mcp]"
        raise InputError("This server needs more packages.", where="mcp", found=error, hint=hint) from error
    from . import __version__

    roles = ", ".join(mas.topology.roles)
    further = [name for name in mas.input_fields if name != "question"]
    description = f"Answers a question by {len(mas.agents)} language models ({roles}) that think together in latents."
    if further:
        description += f" The question's `inputs` are: {', '.join(further)}."
    server = MCPServer("recursivemas", version=__version__, instructions=description)
    one_at_a_time = anyio.Lock()

    async def solve(
        question: str,
        context: Context,
        num_rounds: int | None = None,
        latent_steps: int | None = None,
        mode: Literal["latent", "text", "alone"] = "latent",
        inputs: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """Returns "text", "answer" (out of the text), "thoughts" (what was handed over, read as text) and "usage"."""
        chosen: dict[str, Any] = {"num_rounds": num_rounds, "latent_steps": latent_steps, "mode": mode}
        try:
            turns = len(mas.config.run_settings(**chosen).turns(mas.topology))
            done = 0

            def on_turn(round_index: int, role: str) -> None:
                nonlocal done
                done += 1
                anyio.from_thread.run(context.report_progress, done, turns, f"round {round_index}, {role}")

            asked = {**(inputs or {}), "question": question}
            ask = partial(mas.solve, asked, return_latents=True, on_turn=on_turn, **{**arguments, **chosen})
            async with one_at_a_time:
                (solution,) = await anyio.to_thread.run_sync(ask)
        except RecursiveMASError as error:
            raise ToolError(str(error)) from error
        thoughts = {f"round {r}, {a} to {b}": text for (r, a, b), text in (solution.thoughts or {}).items()}
        found = {"text": solution.text, "answer": solution.answer, "thoughts": thoughts, "usage": solution.usage}
        return found

    solve.__doc__ = f"{description}\n\n{solve.__doc__}"
    server.tool()(solve)
    return server


def configure(parser: argparse.ArgumentParser) -> None:
    add_system_arguments(parser)
    parser.add_argument(
        "--transport", default="stdio", choices=("stdio", "streamable-http"), help="how clients come (default: stdio)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="of HTTP (default: this machine only)")
    parser.add_argument("--port", type=int, default=8001, help="of HTTP (default: 8001)")


def run(arguments: argparse.Namespace) -> int:
    options = {**solve_arguments(arguments), "batch_size": 1}
    del options["latent_steps"]
    server = build_server(load_from_arguments(arguments), **options)
    if arguments.transport == "stdio":
        server.run("stdio")
    else:
        server.run("streamable-http", host=arguments.host, port=arguments.port)
    return 0
