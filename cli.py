"""The console command `recursivemas`: one subcommand a module, imported only when it is called.

A subcommand's module has `configure(parser)`, which adds its arguments, and `run(arguments)`, which returns the exit
status. Its docstring is its help text; what follows "Examples:" is printed as it stands.
"""

import argparse
import importlib
import sys

# name -> (module, what it does)
COMMANDS = {
    "fetch": (".fetch", "bring a small real model"),
    "demo": (".evaluation.demo", "watch the shipped system work"),
    "serve": (".serve", "serve a system to OpenAI clients"),
    "solve": (".evaluation.solve", "answer questions with a system"),
    "evaluate": (
        ".evaluation.evaluate",
        "measure accuracy and cost against rounds, text hand-over and one agent alone",
    ),
    "controls": (".evaluation.controls", "see whether what is handed over carries anything"),
    "sandbox": (".sandbox.sandbox", "run a Python program where it can do no harm"),
    "index": (".toolbox.index", "let a system search a folder of texts"),
    "bench": (".benchmarks.bench", "measure speed and memory, side by side"),
    "check": (".release.check", "say whether a system is ready to run here"),
    "convert": (".release.convert", "turn a released system into one repository"),
    "import-prompts": (".release.import_prompts", "make a prompt set out of the public code's prompts"),
    "init-links": (".training.init_links", "make a working system of any agents, without training"),
    "train": (".training.train", "train the links of a system"),
    "inspect": (".inspection.inspect", "see gradients, fidelity of links, and what agents say in latents"),
    "publish": (".upload.publish", "stage, check and push a system to the Hugging Face Hub"),
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
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    if not argv or argv[0] not in COMMANDS:
        parser.parse_args(argv or ["--help"])
    name, rest = argv[0], argv[1:]
    module = importlib.import_module(COMMANDS[name][0], __package__)
    description, _, examples = (module.__doc__ or "").partition("Examples:")
    parser = argparse.ArgumentParser(
        prog=f"recursivemas {name}",
        description=description,
        epilog="examples:" + examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.configure(parser)
    arguments = parser.parse_args(rest)

    from .errors_recursivemas import RecursiveMASError

    try:
        return module.run(arguments) or 0
    except RecursiveMASError as error:
        print(f"recursivemas {name}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `recursivemas … | head`
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
