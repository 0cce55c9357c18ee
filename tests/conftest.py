"""Tests run offline, in a cache of their own, on one thread (fast at this size, and the same everywhere)."""

import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="recursivemas-tests-")
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from transformers.utils import logging

torch.set_num_threads(1)
logging.disable_progress_bar()


@pytest.fixture(scope="session")
def chain():
    """A sequential system of three architectures; tests must not change it."""
    from tiny import tiny_chain

    return tiny_chain()


@pytest.fixture(scope="session")
def chain_folder(chain, tmp_path_factory):
    """The same system on disk; tests that change files work on a copy."""
    folder = tmp_path_factory.mktemp("systems") / "chain"
    chain.save_pretrained(folder)
    return folder
