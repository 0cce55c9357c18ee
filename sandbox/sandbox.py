"""Run one Python program in the sandbox, and print what it did as JSON.

The command is the permission: the program runs. It sees no network and no file of yours where the machine can hide
them; "protection" says what was in force, and --require refuses to run with less.

Examples:
  recursivemas sandbox program.py
  echo 3 5 | recursivemas sandbox program.py --stdin --seconds 2
  recursivemas sandbox program.py --require all
"""

import argparse
import json
import sys
from pathlib import Path

from ..errors_recursivemas import InputError
from .run import PROTECTIONS, Job, Limits, run_python


def configure(parser: argparse.ArgumentParser) -> None:
    usual = Limits()
    parser.add_argument("file", help="the program; - for standard input")
    parser.add_argument("--stdin", action="store_true", help="the program reads this command's standard input")
    parser.add_argument("--seconds", type=float, default=usual.seconds, help="wall time (default: 10)")
    parser.add_argument("--memory", type=int, default=usual.memory >> 20, help="MiB of memory (default: 1024)")
    parser.add_argument(
        "--require",
        nargs="+",
        default=[],
        choices=[*PROTECTIONS, "all"],
        help="run with no less than this (default: with what the machine has)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints `stdout`, `error`, `seconds` and `protection`; what the program did wrong is no error of the command."""
    if arguments.seconds <= 0 or arguments.memory <= 0:
        raise InputError("A limit is not positive.", where="--seconds, --memory")
    if arguments.stdin and arguments.file == "-":
        raise InputError("Standard input is asked for twice.", where="--stdin", found="file -")
    try:
        source = sys.stdin.read() if arguments.file == "-" else Path(arguments.file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("A program cannot be read.", where=arguments.file, found=error) from error
    stdin = sys.stdin.read() if arguments.stdin else ""
    limits = Limits(seconds=arguments.seconds, memory=arguments.memory << 20)
    require = PROTECTIONS if "all" in arguments.require else arguments.require
    outcome = run_python(Job(source, stdin, limits=limits), require=require)
    shown = {name: getattr(outcome, name) for name in ("stdout", "error", "seconds", "protection")}
    print(json.dumps(shown, ensure_ascii=False))
    return 0
