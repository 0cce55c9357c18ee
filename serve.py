"""Serve a system over HTTP: chat completions, completions and responses, as OpenAI clients speak them.

This is `transformers serve`, pinned to one system. Needs the extra `recursivemas[serve]`.

Examples:
  recursivemas serve
  recursivemas serve --system path/to/system --port 8812 --device cuda
  curl localhost:8000/v1/chat/completions -H "Content-Type: application/json" \\
    -d '{"model": "NAME PRINTED AT START", "messages": [{"role": "user", "content": "3+5*2-4"}]}'
"""

import argparse
import socket
import sys
from pathlib import Path

import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from .configuration_recursivemas import RecursiveMASConfig
from .errors_recursivemas import InputError
from .fields_recursivemas import validate_field, whole
from .folders_recursivemas import settle
from .loading_recursivemas import validate_place
from .modeling_recursivemas import RecursiveMASModel
from .system_loader import ROOT, find_system


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--system", default=str(ROOT), help="folder or Hub repository (default: the shipped system)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", default="8000", help="port (default: 8000)")
    parser.add_argument("--device", default="cpu", help="for example cuda (default: cpu)")


def run(arguments: argparse.Namespace) -> int:
    port = int(arguments.port) if str(arguments.port).isdecimal() else None
    validate_field(port, whole(1, 65535), "--port", InputError)
    validate_place(arguments.device, "device")
    try:
        with socket.create_server((arguments.host, port)):  # free, now at least
            pass
    except OSError as error:
        found = f"{arguments.host}:{port}: {error.strerror or error}"
        what, hint = "The address cannot be listened on.", "choose another --port or --host"
        raise InputError(what, where="--host, --port", found=found, hint=hint) from error
    arguments.system = find_system(arguments.system)
    try:
        from transformers.cli.transformers import main
    except ImportError as error:
        hint = "pip install recursivemas[serve]"
        raise InputError("Serving needs more packages.", where="recursivemas serve", found=error, hint=hint) from error
    # The code that runs is this clone's, never the folder's: Auto classes take what is registered, and the server
    # looks a model's class up in transformers by its name in config.json.
    AutoConfig.register(RecursiveMASConfig.model_type, RecursiveMASConfig, exist_ok=True)
    AutoModelForCausalLM.register(RecursiveMASConfig, RecursiveMASModel, exist_ok=True)
    setattr(transformers, RecursiveMASModel.__name__, AutoModelForCausalLM)
    options = ["--host", arguments.host, "--port", arguments.port, "--device", arguments.device]
    name = str(Path(arguments.system).resolve()) if Path(arguments.system).is_dir() else arguments.system
    if Path(name).is_dir():
        settle(name)  # Auto classes read the settings of what is registered by themselves
    print(f'Requests name the model "{name}".', flush=True)
    sys.argv = ["transformers", "serve", name, *options]
    main()
    return 0
