"""The documents keep their word: every block of code in them runs as it is printed."""

import shutil

import pytest
from loopback_hub import LoopbackHub, Worker
from recursivemas.system_loader import ROOT
from snippets import code_blocks
from tiny import tiny_base


def run_blocks(document, worker):
    """Runs all blocks of a document in order; returns the reasons of those that cannot run everywhere."""
    skipped = []
    for block in code_blocks((ROOT / document).read_text(encoding="utf-8")):
        if block.skip:
            skipped.append(block.skip)
            continue
        status, output = worker.block(block.language, block.code)
        assert status == 0, f"{document}\n{block.code}\n{output}"
    return skipped


@pytest.mark.slow
def test_the_blocks_of_the_readme_run_in_a_clone(tmp_path):
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "runs", "build")
    clone = shutil.copytree(ROOT, tmp_path / "clone", ignore=ignored)
    with LoopbackHub() as hub, Worker(hub, clone) as worker:
        assert len(run_blocks("README.md", worker)) == 7


@pytest.mark.slow
def test_the_blocks_of_the_publishing_guide_run(tmp_path):
    """On a Hub that holds tiny models under the names of the guide."""
    with LoopbackHub() as hub:
        for seed, (name, architecture) in enumerate(
            (("Qwen/Qwen3-0.6B", "qwen3"), ("meta-llama/Llama-3.2-1B-Instruct", "llama"))
        ):
            for part in tiny_base(architecture, seed):
                part.save_pretrained(tmp_path / name)
            hub.add(name, tmp_path / name)
        with Worker(hub, tmp_path / "reader") as worker:
            assert len(run_blocks("docs/publishing.md", worker)) == 1
        assert "my-org/Additions" in hub.repos
