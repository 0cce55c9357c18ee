"""What a benchmark's report says: figures, comparisons, what was measured with what; as JSON, Markdown and a plot."""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ..evaluation.controls import HAND_OVERS, REAL, verdict
from ..evaluation.metrics import f1_score
from ..evaluation.paired import paired_difference
from ..evaluation.results import fingerprint, table
from ..folders_recursivemas import write_text
from ..modeling_recursivemas import RecursiveMASModel
from ..solutions_recursivemas import USAGE
from .running import ALONE_VOTED, Pass, Runner
from .scoring import interval, of_samples, vote
from .table import Benchmark, Row, described

SCORERS = ("strict", "release")
MOST_VOTES = 100


def identity(mas: RecursiveMASModel) -> dict[str, Any]:
    """Which system it is: of every agent its source, size and a hash of its weights; hashes of the links."""
    return {
        "agents": {
            role: {
                "source": mas.config.agents[role]["source"],
                "revision": mas.config.agents[role].get("revision"),
                "parameters": agent.num_parameters(),
                "dtype": str(agent.dtype).removeprefix("torch."),
                "sha256": fingerprint(agent.model.state_dict().items()),
            }
            for role, agent in mas.agents.items()
        },
        "links": {
            **{role: fingerprint(agent.inner_link.state_dict().items()) for role, agent in mas.agents.items()},
            **{name: fingerprint(link.state_dict().items()) for name, link in mas.outer_links.items()},
        },
    }


def figure(benchmark: Benchmark, rows: Sequence[Row], answers: Sequence[Sequence[Mapping[str, Any]]]) -> dict:
    """Accuracy by both scorers and cost, of equally many answers to each question.

    Returns:
        What `measure` returns of a setting, without the single answers: "accuracy" and "interval" are the strict
        scorer's, "release_accuracy" and "release_interval" the release's; of phrases also "f1".
    """
    means = {name: [mean(float(row[name]) for row in each) for each in answers] for name in SCORERS}
    groups: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for row, each in zip(rows, answers, strict=True):
        if benchmark.group_by in row:
            groups[str(row[benchmark.group_by])][0] += sum(answer["strict"] for answer in each)
            groups[str(row[benchmark.group_by])][1] += len(each)
    found = {
        "mode": answers[0][0]["mode"],
        "num_rounds": answers[0][0]["num_rounds"],
        "accuracy": mean(means["strict"]),
        "interval": interval(means["strict"], len(answers[0])),
        "release_accuracy": mean(means["release"]),
        "release_interval": interval(means["release"], len(answers[0])),
        "by_group": dict(groups),
        **{name: mean(mean(row[name] for row in each) for each in answers) for name in ("seconds", *USAGE)},
    }
    if benchmark.metric == "f1":
        scores = (
            f1_score(answer["prediction"], row["answer"])
            for row, each in zip(rows, answers, strict=True)
            for answer in each
        )
        found["f1"] = mean(scores)
    return found


def measured(runner: Runner, seeds: Sequence[int], samples: int, control: str) -> dict[str, Any]:
    """The figure of the hand-over that was measured, over all seeds and samples, and what samples come to."""
    runs = {seed: [runner.of(Pass(control, seed, sample)) for sample in range(samples)] for seed in seeds}
    every = [answers for of_seed in runs.values() for answers in of_seed]
    found = figure(runner.benchmark, runner.rows, list(zip(*every, strict=True)))
    by_seed = {
        str(seed): {scorer: mean(float(row[scorer]) for answers in each for row in answers) for scorer in SCORERS}
        for seed, each in runs.items()
    }
    results: dict[str, Any] = {"figures": [found], "by_seed": by_seed}
    if len(seeds) > 1:
        results["deviation"] = {scorer: stdev(of[scorer] for of in by_seed.values()) for scorer in SCORERS}
    if samples > 1:
        ks = sorted({k for k in (1, 2, 4, 5, 8, 10, 16, 32, 64, 100) if k < samples} | {samples})
        of_seeds = [
            of_samples(runner.benchmark, dict(enumerate(zip(*each, strict=True))), ks) for each in runs.values()
        ]
        results["samples"] = {
            scorer: {
                "pass_at_k": {str(k): mean(of[scorer]["pass_at_k"][str(k)] for of in of_seeds) for k in ks},
                "majority": mean(of[scorer]["majority"] for of in of_seeds),
            }
            for scorer in SCORERS
        }
    return results


def votes_of_equal_cost(mas: RecursiveMASModel, runner: Runner, seed: int) -> int:
    """How often the last agent alone may answer for what the system costs: positions read and written, by weights."""

    def cost(control: str, parameters: float) -> float:
        return parameters * sum(sum(row[name] for name in USAGE) for row in runner.of(Pass(control, seed, 0)))

    sizes = {role: agent.num_parameters() for role, agent in mas.agents.items()}
    system, alone = cost(REAL, mean(sizes.values())), cost("alone", sizes[mas.config.decoding_role])
    return min(MOST_VOTES, max(1, math.ceil(system / alone)))


def channel(runner: Runner, seed: int, votes: int) -> dict[str, Any]:
    """The controls of the channel on the benchmark's questions: figures compared with the latents, and verdicts."""
    real = [row["strict"] for row in runner.of(Pass(REAL, seed, 0))]
    figures = []
    for name in HAND_OVERS:
        answers = runner.of(Pass(name, seed, 0))
        found = figure(runner.benchmark, runner.rows, [[row] for row in answers]) | {"control": name}
        if name != REAL:
            found["better"] = paired_difference(real, [row["strict"] for row in answers])
        figures.append(found)
    cast = list(zip(*(runner.of(Pass(ALONE_VOTED, seed, sample)) for sample in range(votes)), strict=True))
    elected = [(each, vote(runner.benchmark, [row["prediction"] for row in each])) for each in cast]
    chosen = [
        each[place or 0] | ({"strict": False, "release": False} if place is None else {}) for each, place in elected
    ]
    found = figure(runner.benchmark, runner.rows, [[row] for row in chosen]) | {"control": ALONE_VOTED, "votes": votes}
    found |= {name: sum(row[name] for each in cast for row in each) / len(cast) for name in ("seconds", *USAGE)}
    found["better"] = paired_difference(real, [row["strict"] for row in chosen])
    figures.append(found)
    low, high = found["better"]["interval"]
    said = (
        f"as much compute: alone, {votes} samples and a vote {found['accuracy']:.2f}, latents"
        f" {found['better']['difference']:+.2f} [{low:.2f}, {high:.2f}], p = {found['better']['p']:.3f}"
    )
    return {"controls": figures, "verdicts": [verdict(figures, figures[0]["num_rounds"]), said]}


def answer_lines(runner: Runner) -> str:
    """All answers as JSON lines, judged: what `recursivemas score` judges again, and `compare` compares."""
    rows = described(runner.rows)
    lines = []
    for key in sorted(runner.done, key=lambda each: (list(each.run), each.row)):
        answer = {**rows[key.row], **runner.done[key]}
        lines.append(json.dumps(answer, ensure_ascii=False) + "\n")
    return "".join(lines)


def markdown(results: Mapping[str, Any]) -> str:
    """A report for people."""
    settings, found = results["settings"], results["figures"][0]
    lines = [f"# {settings['title']}: {settings['style'] or settings['system']}", ""]
    each = f"{settings['samples']} answers each, seeds {', '.join(map(str, settings['seeds']))}"
    lines += [f"{settings['num_questions']} questions of `{settings['data']}`, {each}.", ""]
    lines += ["| scorer | accuracy | 95 % interval |" + " majority |" * ("samples" in results)]
    lines += ["|---" * (3 + ("samples" in results)) + "|"]
    for scorer, prefix in (("strict", ""), ("release", "release_")):
        low, high = found[f"{prefix}interval"]
        line = f"| {scorer} | {found[f'{prefix}accuracy']:.3f} | {low:.3f}–{high:.3f} |"
        lines.append(line + (f" {results['samples'][scorer]['majority']:.3f} |" if "samples" in results else ""))
    if "deviation" in results:
        spread = ", ".join(f"{scorer} {of:.4f}" for scorer, of in results["deviation"].items())
        lines += ["", f"Standard deviation over seeds: {spread}."]
    if "f1" in found:
        lines += ["", f"Mean F1: {found['f1']:.3f}."]
    if "samples" in results:
        ks = list(results["samples"]["strict"]["pass_at_k"])
        lines += ["", "| pass@k |" + "".join(f" {k} |" for k in ks), "|---" * (len(ks) + 1) + "|"]
        for scorer in SCORERS:
            lines.append(f"| {scorer} |" + "".join(f" {results['samples'][scorer]['pass_at_k'][k]:.3f} |" for k in ks))
    if found["by_group"]:
        lines += ["", f"| {settings['group_by']} | right | of |", "|---|---|---|"]
        lines += [f"| {name} | {right} | {total} |" for name, (right, total) in sorted(found["by_group"].items())]
    cost = ", ".join(f"{found[name]:.1f} {name.replace('_', ' ')}" for name in (*USAGE, "seconds"))
    lines += ["", f"A question costs {cost}."]
    if "controls" in results:
        lines += ["", "## Does the channel carry anything", "", *(f"- {said}" for said in results["verdicts"])]
        lines += ["", "```text", table(results["controls"]), "```"]
    lines += ["", "## What was measured", "", "| | |", "|---|---|"]
    shown = {
        **settings,
        "date": results["date"],
        "commit": results["commit"],
        **results["versions"],
        **results["machine"],
    }
    lines += [f"| {name} | {_cell(of)} |" for name, of in shown.items() if of not in (None, [], {})]
    lines += [f"| agent {role} | {_cell(of)} |" for role, of in results["system"]["agents"].items()]
    lines += [f"| link {name} | {of} |" for name, of in results["system"]["links"].items()]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.replace("|", "\\|")


def write_reports(results: Mapping[str, Any], runner: Runner, output: Path) -> None:
    """Writes what stands beside the JSON file: the report as Markdown, and all answers."""
    write_text(output.with_suffix(".md"), markdown(results))
    write_text(output.with_suffix(".jsonl"), answer_lines(runner))
