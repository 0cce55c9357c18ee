"""All plots of what was measured. matplotlib is an extra, and imported here only."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from ..errors_recursivemas import InputError
from ..folders_recursivemas import replacing_file
from ..runs_recursivemas import AUTO

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLES = {"latent": ("C0", "o-"), "text": ("C1", "s--")}  # of a mode: colour and line


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches, which draws into files whatever screen there is.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise InputError(
            "There is no plot without matplotlib.", found=error, hint="pip install recursivemas[plots]"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: "Figure", path: Path, dpi: int) -> None:
    with replacing_file(path) as place:
        figure.savefig(place, dpi=dpi)


def plot_evaluation(figures: Sequence[dict[str, Any]], group_by: str | None, path: Path) -> None:
    """Accuracy against rounds, accuracy against the group, and positions generated against rounds, side by side."""
    by_mode: dict[str, list[dict]] = defaultdict(list)
    for row in figures:
        by_mode[row["mode"]].append(row)
    recursive = {mode: rows for mode, rows in by_mode.items() if mode != "alone"}
    figure = new_figure(13, 3.8)
    left, middle, right = figure.subplots(1, 3)
    for mode, rows in recursive.items():
        colour, line = STYLES[mode]
        rows = sorted(rows, key=lambda row: row.get("rounds_used", row["num_rounds"]))
        x, y = [row.get("rounds_used", row["num_rounds"]) for row in rows], [row["accuracy"] for row in rows]
        bars = numpy.abs(numpy.transpose([row["interval"] for row in rows]) - y)
        left.errorbar(x, y, bars, fmt=line, color=colour, capsize=3, label=f"{mode} hand-over")
        right.plot(x, [row["latent_positions"] + row["new_tokens"] for row in rows], line, color=colour, label=mode)
        if mode == "latent":
            text = [row["new_tokens"] for row in rows]
            right.plot(x, text, "o:", color=colour, label="latent: of these, text tokens")
    for row in by_mode.get("alone", []):
        left.axhline(row["accuracy"], color="0.5", linestyle=":", label="decoding agent alone")
    left.set(xlabel="recursion rounds", ylabel="accuracy", ylim=(0, 1.05), title="Accuracy")
    left.legend()
    for row in recursive.get("latent", []):
        groups = {name: correct / total for name, (correct, total) in row["by_group"].items()}
        if all(name.replace(".", "", 1).lstrip("-").isdigit() for name in groups):
            groups = dict(sorted((float(name), accuracy) for name, accuracy in groups.items()))
        middle.plot(list(groups), list(groups.values()), "o-", markersize=3, label=f"r = {row['num_rounds']}")
    middle.set(xlabel=(group_by or "").replace("_", " "), ylim=(0, 1.05), title="Latent hand-over, by question")
    middle.legend()
    right.set(xlabel="recursion rounds", title="Positions generated per question")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_xticks(sorted({n for rows in recursive.values() for row in rows if (n := row["num_rounds"]) != AUTO}))
    right.legend()
    _save(figure, path, 110)


def plot_controls(figures: Sequence[dict[str, Any]], path: Path) -> None:
    """Accuracy of the latents and of what was put in their place, with 95 % intervals, for each number of rounds."""
    rounds = sorted({row["num_rounds"] for row in figures})
    names = list(dict.fromkeys(row["control"] for row in figures))
    figure = new_figure(1.5 + 3.5 * len(rounds), 1 + 0.32 * len(names))
    for axes, num_rounds in zip(figure.subplots(1, len(rounds), squeeze=False)[0], rounds, strict=True):
        rows = {row["control"]: row for row in figures if row["num_rounds"] == num_rounds}
        for place, name in enumerate(names):
            x = rows[name]["accuracy"]
            bars = numpy.abs(numpy.array(rows[name]["interval"]) - x)[:, None]
            axes.errorbar(x, place, xerr=bars, fmt="o", color="0.4" if place else "C0", capsize=3)
        axes.axvline(rows[names[0]]["accuracy"], color="C0", linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
        axes.set(xlabel="accuracy", xlim=(-0.02, 1.02), title=f"r = {num_rounds}")
        axes.invert_yaxis()
    _save(figure, path, 110)


def plot_benchmark(results: dict[str, Any], path: Path) -> None:
    """Accuracy by both scorers with 95 % intervals, and where questions have several answers, pass@k."""
    found, samples = results["figures"][0], results.get("samples")
    figure = new_figure(9 if samples else 4.5, 3.4)
    axes = figure.subplots(1, 2 if samples else 1, squeeze=False)[0]
    for place, (name, prefix) in enumerate((("strict", ""), ("release", "release_"))):
        accuracy = found[f"{prefix}accuracy"]
        bars = numpy.abs(numpy.array(found[f"{prefix}interval"]) - accuracy)[:, None]
        axes[0].bar(place, accuracy, yerr=bars, color=f"C{place}", capsize=4)
        if samples:
            curve = samples[name]["pass_at_k"]
            axes[1].plot([int(k) for k in curve], list(curve.values()), "o-", color=f"C{place}", label=name)
            axes[1].axhline(samples[name]["majority"], color=f"C{place}", linestyle=":")
    axes[0].set_xticks([0, 1], ["strict", "release"])
    axes[0].set(ylabel="accuracy", ylim=(0, 1.02), title=results["settings"]["title"])
    if samples:
        axes[1].set(xlabel="k", ylim=(0, 1.02), title="pass@k (dotted: majority)")
        axes[1].legend()
    _save(figure, path, 110)


def plot_curves(runs: dict[str, dict[str, Any]], path: Path) -> None:
    """Loss and accuracy of the whole system over the steps of several training runs."""
    figure = new_figure(12, 4.5)
    left, right = figure.subplots(1, 2)
    for index, (name, run) in enumerate(runs.items()):
        colour, line = f"C{index % 10}", "-" if index < 10 else ":"
        left.plot(run["steps"], run["loss"], line, color=colour, label=name)
        during = {int(step): accuracy for step, accuracy in run["accuracy_during"].items()}
        right.plot(list(during), list(during.values()), "o" + line, color=colour, markersize=3)
        if "text" in run:
            right.axhline(run["text"][max(run["text"])]["accuracy"], color=colour, linestyle="--", linewidth=0.8)
    left.set(xlabel="step", ylabel="loss", yscale="log", title="Loss of the outer loop")
    right.set(xlabel="step", ylabel="accuracy at r = 2", ylim=(0, 1.03), title="Accuracy (dashed: over text)")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    _save(figure, path, 110)


def plot_gradients(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Gradient norms of each link over the rounds."""
    figure = new_figure(6, 4)
    axes = figure.subplots()
    for name, entry in results.items():
        axes.plot(list(entry["norms"]), list(entry["norms"].values()), marker="o", label=name)
    axes.set(yscale="log", xlabel="round", ylabel="gradient norm")
    axes.set_xticks(sorted({r for entry in results.values() for r in entry["norms"]}))
    axes.legend(fontsize="small")
    _save(figure, path, 150)


def plot_fidelity(results: dict[str, dict[str, float]], path: Path) -> None:
    """How near each link's output is to the embedding that it stands for, as bars."""
    figure = new_figure(9, 0.5 + 0.35 * len(results))
    all_axes = figure.subplots(1, 3, sharey=True)
    for axes, key in zip(all_axes, ("nearest_token", "cosine", "scale"), strict=True):
        axes.barh(list(results), [entry[key] for entry in results.values()])
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_title(key.replace("_", " "), fontsize="medium")
    all_axes[0].invert_yaxis()
    _save(figure, path, 150)


def plot_latents(results: Sequence[dict[str, Any]], path: Path) -> None:
    """What travelled while questions were answered: each latent's nearest token, shaded by its cosine to it."""
    lines = [(result["question"], said) for result in results for said in result["latents"]]
    width = max((len(said["tokens"]) for _, said in lines), default=1)
    figure = new_figure(3 + 0.4 * width, 1 + 0.3 * len(lines))
    axes = figure.subplots()
    shades = numpy.full((len(lines), max(1, width)), numpy.nan)
    for row, (_, said) in enumerate(lines):
        for column, (token, cosine) in enumerate(zip(said["tokens"], said["cosines"], strict=True)):
            shades[row, column] = cosine
            axes.text(column, row, token.replace("$", r"\$"), ha="center", va="center", fontsize=8)
    names = [f"round {said['round']}: {said['source']} → {said['target']}" for _, said in lines]
    if len(results) == 1:  # said once
        title = f"{results[0]['question'][:80]}  →  {results[0]['answer']}"
        axes.set_title(title.replace("$", r"\$"), fontsize=10)
    else:
        names = [f"{question[:24]}  {name}" for (question, _), name in zip(lines, names, strict=True)]
    axes.set_yticks(range(len(lines)), [name.replace("$", r"\$") for name in names], fontsize=8)
    axes.set(xlabel="latent step")
    image = axes.imshow(shades, vmin=0, vmax=1, cmap="Blues", alpha=0.4, aspect="auto")
    figure.colorbar(image, label="cosine to the nearest token")
    _save(figure, path, 150)
