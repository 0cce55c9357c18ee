"""Tests run offline, in a cache of their own, on one thread (fast at this size, and the same everywhere)."""

import atexit
import contextlib
import os
import shutil
import signal
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="recursivemas-tests-")
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from transformers.utils import logging

with contextlib.suppress(ValueError):  # jobs in the background of a script ignore Ctrl-C, and so would what is tested
    signal.signal(signal.SIGINT, signal.default_int_handler)
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
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


@pytest.fixture(scope="session")
def released_clones(tmp_path_factory):
    """The nineteen released repositories in small, as plain folders; tests that change files work on copies."""
    from released import build_clones

    return build_clones(tmp_path_factory.mktemp("clones"))


@pytest.fixture(scope="session")
def released_cache(released_clones, tmp_path_factory):
    """The same repositories as the Hub client caches them; passed as `cache_dir`, they load offline by their names."""
    from released import place_in_cache

    return place_in_cache(released_clones, tmp_path_factory.mktemp("hub"))
