"""The blocks of docs/clients.md, as they are printed, each by its library against a server of a system that ships."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest
from recursivemas.evaluation.commands import named_tools
from recursivemas.serving.queue import Solver
from recursivemas.system_loader import ROOT, load_mas_system
from snippets import code_blocks
from test_serving import served

pytest.importorskip("uvicorn", reason="needs the extra [serve]")
BLOCKS = [block.code for block in code_blocks((ROOT / "docs" / "clients.md").read_text()) if block.skip is None]
# Library -> its block
CLIENTS = {re.findall(r"^(?:from|import) (\w+)", code, re.M)[-1]: code for code in BLOCKS}


@pytest.fixture(scope="module")
def address():
    mas = load_mas_system("small/deliberation")
    with served(Solver(mas, tool_names=["calculator"], make_tools=named_tools), "deliberation") as port:
        yield f"http://127.0.0.1:{port}/v1"


def test_every_block_has_its_library():
    assert list(CLIENTS) == ["openai", "langchain_openai", "litellm", "inspect_ai", "smolagents"]
    assert len(BLOCKS) == len(CLIENTS)


@pytest.mark.slow
@pytest.mark.parametrize("library", CLIENTS)
def test_a_client_is_answered_as_its_block_says(library, address, tmp_path):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"needs {library}, of the extra [clients]")
    own = {"OPENAI_BASE_URL": address, "RECURSIVEMAS_BASE_URL": address, "HF_HUB_OFFLINE": "1"}
    keys = {"OPENAI_API_KEY": "none", "RECURSIVEMAS_API_KEY": "none"}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CLIENTS[library]],
        env={**os.environ, **own, **keys}, cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    answer = "success 1.0" if library == "inspect_ai" else "\\boxed{2632}"
    assert answer in result.stdout, result.stdout
