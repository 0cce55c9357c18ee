"""The console command `recursivemas`: one subcommand a module, imported only when it is called.

A subcommand's module has `configure(parser)`, which adds its arguments, and `run(arguments)`, which returns the exit
status. Its docstring is its help text; what follows "Examples:" is printed as it stands.
"""

import argparse
import importlib
import json
import os
import re
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

from . import __version__

# name -> (module, what it does)
COMMANDS = {
    "fetch": (".fetch", "bring a small real model"),
    "demo": (".evaluation.demo", "watch the shipped system work"),
    "serve": (".serve", "serve a system to OpenAI clients"),
    "app": (".app", "a page to ask a system and see it think"),
    "mcp": (".mcp_server", "serve a system as a tool of the Model Context Protocol"),
    "solve": (".evaluation.solve", "answer questions with a system"),
    "evaluate": (
        ".evaluation.evaluate",
        "measure accuracy and cost against rounds, text hand-over and one agent alone",
    ),
    "calibrate": (".evaluation.calibrate", "find out when the recursion of a system has settled"),
    "controls": (".evaluation.controls", "see whether what is handed over carries anything"),
    "benchmark": (".exams.benchmark", "measure a system on published benchmarks"),
    "score": (".evaluation.score", "judge finished outputs, strictly and by the release's rules"),
    "compare": (".evaluation.compare", "compare two sets of answers to the same questions"),
    "sandbox": (".sandbox.sandbox", "run a Python program where it can do no harm"),
    "index": (".toolbox.index", "let a system search a folder of texts"),
    "bench": (".benchmarks.bench", "measure speed and memory, side by side"),
    "check": (".release.check", "say whether a system is ready to run here"),
    "convert": (".release.convert", "turn a released system into one repository"),
    "import-prompts": (".release.import_prompts", "make a prompt set out of the public code's prompts"),
    "init-links": (".training.init_links", "make a working system of any agents, without training"),
    "train": (".training.train", "train the links of a system"),
    "trace": (".inspection.trace", "see what the agents read, think and send, question by question"),
    "inspect": (".inspection.inspect", "see gradients, fidelity of links, and what agents say in latents"),
    "publish": (".upload.publish", "stage, check and push a system to the Hugging Face Hub"),
}

HELP = Path(__file__).with_name("cli_help.json")
# Extra -> the packages that it brings.
EXTRAS = {
    "train": {"accelerate", "datasets", "tensorboard"},
    "plots": {"matplotlib"},
    "gguf": {"gguf"},
    "ray": {"ray"},
    "torchao": {"torchao"},
    "serve": {"fastapi", "uvicorn", "starlette", "openai"},
    "app": {"gradio"},
}


def main(argv: list[str] | None = None) -> int:
    """Runs a subcommand; returns its exit status (2 for bad input)."""
    argv = sys.argv[1:] if argv is None else argv
    overview = "\n".join(f"  {name:<16}{what}" for name, (_, what) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="recursivemas",
        usage="recursivemas COMMAND [options]",
        description="Frozen language models that collaborate in latent space.",
        epilog=f"commands:\n{overview}\n\n`recursivemas COMMAND --help` says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    if not argv or argv[0] not in COMMANDS:
        parser.parse_args(argv or ["--help"])
    name, rest = argv[0], argv[1:]
    if rest and rest[-1] in ("-h", "--help") and (text := stored_help([name, *rest[:-1]])) is not None:
        print(text, end="")
        sys.exit(0)
    module, parser = parser_of(name)
    arguments = parser.parse_args(rest)

    from .errors_recursivemas import RecursiveMASError

    try:
        status = module.run(arguments) or 0
        sys.stdout.flush()
        return status
    except RecursiveMASError as error:
        problem = str(error)
    except BrokenPipeError:  # `recursivemas … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
        return 0
    except OSError as error:  # no such file, no room, no permission, …
        problem = f"{error.strerror or error}" + (f"\n  where: {error.filename}" if error.filename else "")
    except (ImportError, RuntimeError) as error:
        if (extra := extra_of(error)) is None:
            raise
        problem = f"{error}\n  what to do: pip install recursivemas[{extra}]"
    except KeyboardInterrupt as error:
        print(f"recursivemas {name}: {str(error) or 'interrupted'}", file=sys.stderr)
        return 128 + getattr(error, "signum", 2)
    except MemoryError:
        problem = "There is not enough memory.\n  what to do: a smaller --batch-size, or a smaller --dtype"
    print(f"recursivemas {name}: {problem}", file=sys.stderr)
    return 2


def parser_of(name: str) -> tuple[ModuleType, argparse.ArgumentParser]:
    """A command's module, and the parser of its arguments."""
    module = importlib.import_module(COMMANDS[name][0], __package__)
    description, _, examples = (module.__doc__ or "").partition("Examples:")
    parser = argparse.ArgumentParser(
        prog=f"recursivemas {name}",
        description=description,
        epilog="examples:" + examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.configure(parser)
    return module, parser


def stored_help(words: list[str]) -> str | None:
    """What `--help` of a command prints, out of cli_help.json: the parsers need torch, which takes seconds to import.

    `None` where it is not stored, or depends on another version of transformers than the one that is here.
    """
    try:
        stored = json.loads(HELP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if words[0] == "train" and stored["transformers"] != version("transformers"):  # shows its settings too
        return None
    return stored["help"].get(" ".join(words))


def help_texts() -> dict[str, str]:
    """What `--help` prints, for every command and its parts; `make help-texts` stores it."""
    texts = {}
    for name in COMMANDS:
        _, parser = parser_of(name)
        texts[name] = parser.format_help()
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                texts |= {f"{name} {part}": parts.format_help() for part, parts in action.choices.items()}
    return texts


def store_help() -> None:
    """Writes cli_help.json, for terminals of 80 columns."""
    os.environ["COLUMNS"] = "80"
    content = {"transformers": version("transformers"), "help": help_texts()}
    HELP.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def extra_of(error: Exception) -> str | None:
    """The extra of this package that an error asks for, if it asks for one."""
    named = re.findall(r"(?:requires?|named|install(?:ed)?:?)\W+(?:the \W*)?`?'?(\w+)", str(error))
    words = {getattr(error, "name", None) or "", *named}
    return next((extra for extra, packages in EXTRAS.items() if words & packages), None)


if __name__ == "__main__":
    sys.exit(main())
