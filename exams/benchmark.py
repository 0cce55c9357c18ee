"""Measure a system on published benchmarks.

NAME is math500, aime25, aime26, gpqa, medqa, mbppplus, livecodebench, hotpotqa, bamboogle, gsm8k or svamp. Questions
come from the Hub (pip install 'recursivemas[benchmark]'), or with --data from a file in the benchmark's own schema
(json, jsonl, parquet, csv). A released system answers with the release's recommended settings; --preset takes these
for any other; every setting can be given. Answers are judged by both scorers, strict and release (docs/benchmarks.md).

With --output, a folder, every benchmark has its report there (NAME.json, .md, .png) and its answers (NAME.jsonl).
Answers are kept as they come: after Ctrl-C, SIGTERM or a kill the same command with --resume goes on. `accelerate
launch` shares the questions among processes, with the same result. Benchmarks of code run programs that a model writes
(in the sandbox, see docs/tools.md), only with --allow-code.

Examples:
  recursivemas benchmark math500 gpqa --system sequential_light --device cuda --output results/light
  recursivemas benchmark aime26 --system sequential_light --samples 10 --seeds 42 43 --output results/light
  recursivemas benchmark mbppplus --system sequential_scaled --allow-code --output results/scaled
  recursivemas benchmark gsm8k --data gsm8k-test.jsonl --limit 100 --controls --system small/smollm2 --output results
  recursivemas benchmark math500 --system sequential_light --override planner=runs/planner --limit 50
  accelerate launch -m recursivemas benchmark math500 --system sequential_scaled --output results/scaled
  lm_eval run --include_path "$(recursivemas benchmark --lm-eval-path)" --tasks recursivemas_math500 --model hf …
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..errors_recursivemas import InputError
from ..evaluation.commands import (
    add_output_arguments,
    add_system_arguments,
    load_from_arguments,
    progress,
    solve_arguments,
    validate_arguments,
    validate_file,
)
from ..evaluation.controls import HAND_OVERS, REAL, among_others
from ..evaluation.plots import plot_benchmark, plot_controls
from ..evaluation.results import provenance
from ..evaluation.rows import asked_of, finished_results, keeping_rows
from ..fields_recursivemas import number, whole
from ..modeling_recursivemas import RecursiveMASModel
from ..system_loader import release_settings, released_styles
from .reading import load_rows
from .reporting import channel, identity, markdown, measured, votes_of_equal_cost, write_reports
from .running import ALONE_VOTED, Pass, Runner, Share, batches_of, files_of_others, rows_of_others
from .scoring import require
from .table import BENCHMARKS, Benchmark, described

LM_EVAL_TASKS = Path(__file__).with_name("lm_tasks")
SAMPLING = {"do_sample": True, "temperature": 0.6, "top_p": 0.95}  # of votes, where nothing else is said
MODES = {HAND_OVERS[name]["mode"]: name for name in (REAL, "text", "alone")}
LIMITS = {
    "limit": whole(1, 1_000_000),
    "samples": whole(1, 1_000),
    "seeds": whole(0, 2**63 - 1),
    "temperature": number(0, 100),
    "top_p": number(0, 1),
    "top_k": whole(0, 1_000_000),
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--data", help="file with rows of the one benchmark (default: from the Hub)")
    parser.add_argument("--limit", type=int, help="only so many questions, from the start")
    parser.add_argument(
        "--preset", help=f"the release's settings of {', '.join(released_styles()['styles'])}, or none"
    )
    parser.add_argument("--samples", type=int, help="answers to each question (default: 1, or the preset's)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42], help="of whole runs (default: 42)")
    parser.add_argument("--rounds", type=int, help="recursion rounds (default: the preset's, or the system's)")
    parser.add_argument("--temperature", type=float, help="0: the likeliest token (default: the preset's or system's)")
    parser.add_argument("--top-p", type=float, help="nucleus (default: the preset's or system's)")
    parser.add_argument("--top-k", type=int, help="0: off (default: the preset's or system's)")
    parser.add_argument("--mode", choices=MODES, default="latent", help="what is handed over (default: latent)")
    parser.add_argument(
        "--complete-answer", action=argparse.BooleanOptionalAction, default=None,
        help="where an answer lacks its box or block, open it and ask once more (default: with a preset)",
    )  # fmt: skip
    parser.add_argument("--controls", action="store_true", help="also see whether the channel carries anything")
    add_output_arguments(parser, "folder for reports and answers")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument(
        "--lm-eval-path", action="store_true", help="print the folder of tasks for lm_eval's --include_path"
    )
    add_system_arguments(parser)
    parser.set_defaults(batch_size=None)


def run(arguments: argparse.Namespace) -> int:
    if arguments.lm_eval_path:
        print(LM_EVAL_TASKS)
        return 0
    chosen = _chosen(arguments)
    share = Share.of_launcher()
    arguments.device = arguments.device or share.device
    loaded: dict[Any, RecursiveMASModel] = {}
    for benchmark in chosen:
        results = _measure(arguments, benchmark, share, loaded)
        if share.rank == 0:
            print(json.dumps(results, ensure_ascii=False) if arguments.json else markdown(results))
    return 0


def _chosen(arguments: argparse.Namespace) -> list[Benchmark]:
    """The benchmarks that are asked for; everything that can be judged without data and system is."""
    if not arguments.names:
        raise InputError("No benchmark is named.", where="recursivemas benchmark", expected=", ".join(BENCHMARKS))
    for name in arguments.names:
        if name not in BENCHMARKS:
            raise InputError("There is no such benchmark.", where="NAME", found=name, expected=", ".join(BENCHMARKS))
    if arguments.data and len(arguments.names) > 1:
        raise InputError("A file holds one benchmark.", where="--data", found=", ".join(arguments.names))
    if arguments.controls and arguments.mode != "latent":
        raise InputError("Controls are compared with latents.", where="--controls", found=f"--mode {arguments.mode}")
    validate_arguments(arguments, LIMITS)
    if len(set(arguments.seeds)) < len(arguments.seeds):
        raise InputError("A seed is given twice.", where="--seeds", found=arguments.seeds)
    chosen = [BENCHMARKS[name] for name in dict.fromkeys(arguments.names)]
    for benchmark in chosen:
        require(benchmark, arguments.allow_code)
        settings_of(arguments, benchmark)
    solve_arguments(arguments)  # tools that may not be used
    return chosen


def settings_of(arguments: argparse.Namespace, benchmark: Benchmark) -> dict[str, Any]:
    """The settings of a run: those that are given, else the preset's; `None` leaves it to the system.

    Returns:
        As `release_settings`, with "preset" and "complete_answer".

    Raises:
        InputError: there is no such preset.
    """
    names = released_styles()["styles"]
    preset = arguments.preset or (arguments.system if arguments.system in names else None)
    found: dict[str, Any] = {
        "num_rounds": None,
        "latent_steps": None,
        "batch_size": 32,
        "samples": 1,
        "generation": {},
    }
    if preset not in (None, "none"):
        if preset not in names:
            raise InputError("There is no such preset.", where="--preset", found=preset, expected=", ".join(names))
        found = release_settings(preset, benchmark.name)
    generation = dict(found["generation"])
    for name in ("temperature", "top_p", "top_k", "max_new_tokens"):
        if getattr(arguments, name) is not None:
            generation[name] = getattr(arguments, name)
    if arguments.temperature is not None:
        generation["do_sample"] = arguments.temperature > 0
    if generation.get("do_sample") is False:
        generation = {name: of for name, of in generation.items() if name not in ("temperature", "top_p", "top_k")}
        found["samples"] = 1
    given = {
        "num_rounds": arguments.rounds,
        **{name: getattr(arguments, name) for name in ("latent_steps", "batch_size", "samples", "complete_answer")},
    }
    found = {**found, "complete_answer": preset not in (None, "none"), "task": arguments.task or benchmark.task}
    found |= {name: of for name, of in given.items() if of is not None}
    return found | {"generation": generation, "preset": preset}


def _measure(
    arguments: argparse.Namespace, benchmark: Benchmark, share: Share, loaded: dict[Any, RecursiveMASModel]
) -> dict[str, Any]:
    settings = settings_of(arguments, benchmark)
    rows = load_rows(benchmark, arguments.data, arguments.limit)
    if arguments.controls:
        rows = among_others(rows)
        settings["batch_size"] = max(2, settings["batch_size"])
    asked = asked_of(arguments, described(rows), free=["names", "limit", "lm_eval_path", "data", "dataset"])
    asked |= {"benchmark": benchmark.name, "settings": settings}
    output = arguments.output / f"{benchmark.name}.json" if arguments.output else None
    if results := finished_results(output, asked, arguments.resume):
        return results
    validate_file(output, arguments.replace or arguments.resume, beside=(".md", ".jsonl"))
    place = share.path(output) if output else None
    with keeping_rows(place, asked, arguments.resume, arguments.replace) as row_file:
        mas = _load(arguments, benchmark, settings["task"], loaded)
        settings["num_rounds"] = settings["num_rounds"] or getattr(mas.generation_config, "num_rounds", None)
        settings["num_rounds"] = settings["num_rounds"] or mas.config.most_rounds
        sampling = settings["generation"].get("do_sample", mas.generation_config.do_sample)
        if not sampling and (settings["samples"] > 1 or len(arguments.seeds) > 1):
            raise InputError(
                "Without sampling all answers to a question are the same.",
                where="--samples" if settings["samples"] > 1 else "--seeds",
                found=settings["samples"] if settings["samples"] > 1 else arguments.seeds,
                hint="give a --temperature above 0",
            )
        options = solve_arguments(arguments) | settings["generation"]
        options |= {name: settings[name] for name in ("num_rounds", "latent_steps", "task", "complete_answer")}
        if options.get("max_new_tokens") is None:
            options.pop("max_new_tokens")
        runner = Runner(
            mas, benchmark, rows, batches_of(rows, settings["batch_size"], arguments.controls), options,
            sampling={} if sampling else SAMPLING, row_file=row_file, share=share,
        )  # fmt: skip
        if row_file and output:
            row_file.of_system(mas)
            runner.keep(row_file.rows)
            if arguments.resume:
                runner.keep(rows_of_others(output, row_file.path, row_file.asked))
        results = {
            **provenance(),
            "settings": _described(arguments, benchmark, settings, mas, len(rows)),
            **_answered(runner, arguments, settings),
            "system": identity(mas),
        }
        if row_file and output and share.rank == 0:
            write_reports(results, runner, output)
            _plot(results, output.with_suffix(".png"))
            row_file.end(output, results)
            for path in files_of_others(output):
                path.unlink(missing_ok=True)
                path.with_name(f"{path.name}.run").unlink(missing_ok=True)
    return results


def _load(
    arguments: argparse.Namespace, benchmark: Benchmark, task: str, loaded: dict[Any, RecursiveMASModel]
) -> RecursiveMASModel:
    """The system for a benchmark; one that is loaded is taken again where its links are not others for this task."""
    released = arguments.system in released_styles()["styles"]
    key = ("code" if task == "code" else "math") if released else None
    if key not in loaded:
        loaded.clear()  # memory holds one
        loaded[key] = load_from_arguments(argparse.Namespace(**{**vars(arguments), "dataset": benchmark.name}))
    return loaded[key]


def _answered(runner: Runner, arguments: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    """Answers everything that is asked for; the figures."""
    seed, control = arguments.seeds[0], MODES[arguments.mode]
    passes = [Pass(control, each, sample) for each in arguments.seeds for sample in range(settings["samples"])]
    if arguments.controls:
        passes += [Pass(name, seed, 0) for name in HAND_OVERS if name != REAL]
    with progress(len(passes) * len(runner.rows), "Answering") as bar:
        runner.on_progress = bar.update
        runner.run(passes)
    results = measured(runner, arguments.seeds, settings["samples"], control)
    if arguments.controls:
        votes = votes_of_equal_cost(runner.mas, runner, seed)
        with progress(votes * len(runner.rows), "Voting") as bar:
            runner.on_progress = bar.update
            runner.run([Pass(ALONE_VOTED, seed, sample) for sample in range(votes)])
        results |= channel(runner, seed, votes)
    return results


def _described(
    arguments: argparse.Namespace, benchmark: Benchmark, settings: dict[str, Any], mas: RecursiveMASModel, size: int
) -> dict[str, Any]:
    """What results say of the questions and of how the system answered them."""
    return {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "dataset": benchmark.dataset,
        "config": benchmark.config,
        "split": benchmark.split,
        "data": Path(arguments.data).name if arguments.data else benchmark.dataset,
        "num_questions": size,
        "of": benchmark.size,
        "group_by": benchmark.group_by,
        "metric": benchmark.metric,
        "system": Path(arguments.system).name if Path(arguments.system).exists() else str(arguments.system),
        "style": mas.config.style,
        "mode": arguments.mode,
        "seeds": arguments.seeds,
        **settings,
        "latent_steps": mas.config.latent_steps if settings["latent_steps"] is None else settings["latent_steps"],
        "latent_halting": mas.config.latent_halting,
        "tools": arguments.tools or mas.config.tools,
        "override": {part.partition("=")[0]: Path(part.partition("=")[2]).name for part in arguments.override},
    }


def _plot(results: dict[str, Any], path: Path) -> None:
    try:
        if "controls" in results:
            plot_controls(results["controls"], path)
        else:
            plot_benchmark(results, path)
    except InputError as error:
        print(error, file=sys.stderr)
