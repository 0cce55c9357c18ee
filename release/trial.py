"""Loads a system and lets it answer, as a script of its own that `check` runs with limits.

python trial.py ARGUMENTS (JSON: those of `load_mas_system`) -> nothing, and exit status 0 if it answers
"""

import importlib.util
import json
import sys
from pathlib import Path

QUESTION = "What is 17 + 25?"


def main(arguments: dict) -> None:
    spec = importlib.util.spec_from_file_location("system_loader", Path(__file__).parents[1] / "system_loader.py")
    assert spec is not None and spec.loader is not None
    loader = sys.modules["system_loader"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    try:
        mas = loader.load_mas_system(**arguments, local_files_only=True)
        question = dict.fromkeys(mas.input_fields, QUESTION)
        # Every prompt of the default task is rendered and read, every agent thinks, every link is used.
        rounds, steps = min(2, mas.config.most_rounds), min(2, mas.config.latent_steps)
        mas.solve([question], num_rounds=rounds, latent_steps=steps, max_new_tokens=1, tools={})
    except loader.RecursiveMASError as error:
        sys.exit(str(error))
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
