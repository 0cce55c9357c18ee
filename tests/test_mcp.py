"""The MCP server, by the official SDK's own client."""

import asyncio
import sys

import pytest
from recursivemas.mcp_server import build_server

QUESTION = "Why?"


def call(server, *calls, progress=None):
    """The results of tool calls, one after another."""
    from mcp import Client

    async def run():
        async with Client(server) as client:
            return [await client.call_tool("solve", each, progress_callback=progress) for each in calls]

    return asyncio.run(run())


@pytest.mark.slow
def test_the_tool_answers_as_solve_does_tells_its_progress_and_hands_on_errors(chain):
    told = []

    async def progress(done, total, message):
        told.append((done, total, message))

    settings = {"num_rounds": 2, "latent_steps": 3}
    right, wrong = call(
        build_server(chain, max_new_tokens=5),
        {"question": QUESTION, **settings},
        {"question": QUESTION, "num_rounds": 0},
        progress=progress,
    )
    (solution,) = chain.solve(QUESTION, max_new_tokens=5, return_latents=True, **settings)
    assert right.structured_content["text"] == solution.text
    assert list(right.structured_content["thoughts"].values()) == list(solution.thoughts.values())
    turns = chain.topology.schedule(2)
    assert told == [(n, len(turns), f"round {r}, {role}") for n, (r, role) in enumerate(turns, 1)]
    assert wrong.is_error and "num_rounds" in wrong.content[0].text


@pytest.mark.slow
def test_a_client_starts_the_command_and_speaks_over_its_standard_streams(chain_folder):
    from mcp import StdioServerParameters

    command = ["-m", "recursivemas.cli", "mcp", "--system", str(chain_folder), "--max-new-tokens", "3"]
    (found,) = call(StdioServerParameters(command=sys.executable, args=command), {"question": QUESTION})
    assert not found.is_error and found.structured_content["usage"]["new_tokens"] <= 3
