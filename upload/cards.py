"""Model cards: templates filled from the configuration, the parts and stored results; code blocks run as printed."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump
from torch import nn

from ..evaluation.results import markdown
from ..modeling_recursivemas import RecursiveMASModel
from ..prompts_recursivemas import as_text
from .licences import Licence, common_licence
from .plan import Options, Plan, Repository

NEEDS = "Needs `torch` and `transformers` 5.19 or newer."


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {"markdown": markdown, "parameters": _parameters, "thousands": "{:,}".format}


@dataclass
class Cards:
    """The cards of a publication."""

    plan: Plan
    mas: RecursiveMASModel
    results: list[tuple[Path, dict[str, Any]]]  # files and contents of stored results: the only source of figures
    options: Options  # datasets, authors, code
    licences: dict[str, Licence]  # role -> of its agent
    training: dict[str, Any]  # settings that the links were trained with

    def save(self, repository: Repository, folder: Path) -> None:
        """Writes README.md; for the composite the plots beside the results, and `.eval_results` of benchmarks."""
        mas, results = self.mas, []
        if repository.kind == "composite":
            for path, content in self.results:
                picture = path.with_suffix(".png")
                if picture.is_file():
                    shutil.copyfile(picture, folder / picture.name)
                results.append({**content, "picture": picture.name if picture.is_file() else None})
                if entries := benchmark_results(content):
                    place = folder / ".eval_results" / f"{content['settings']['benchmark']}.yaml"
                    place.parent.mkdir(exist_ok=True)
                    place.write_text(yaml_dump(eval_result_entries_to_yaml(entries)), encoding="utf-8")
        # A base model is asked one text; the system is asked the fields that its prompts name.
        question = self.plan.question if repository.kind == "composite" else as_text(self.plan.question)
        weights = mas.config.agents[repository.role]["inner_link"].get("weights") if repository.role else None
        card = TEMPLATES.get_template(f"{repository.kind}.md").render(
            plan=self.plan,
            mas=mas,
            repository=repository,
            metadata=self._metadata(repository).to_yaml(),
            needs=NEEDS,
            question=json.dumps(question, ensure_ascii=False),
            tasks=list(weights["tasks"]) if isinstance(weights, dict) and "tasks" in weights else [],
            links=[*mas.outer_links.values(), *(agent.inner_link for agent in mas.agents.values())],
            results=results,
            authors=self.options.authors,
            code=self.options.code,
            training=self.training if repository.kind != "agent" else {},
            licence=self._licence(repository),
        )
        ModelCard(card + "\n").save(folder / "README.md")

    def _metadata(self, repository: Repository) -> ModelCardData:
        agents = [each.id for each in self.plan.repositories[:-2]]
        is_model = repository.kind != "outer_links"  # which nothing loads as one
        library = "peft" if repository.kind == "adapter" else "transformers"
        asked = self.plan.question if repository.kind == "composite" else None
        licence: dict[str, Any] = {**self._licence(repository)}
        return ModelCardData(
            **licence,
            base_model=repository.base_model if repository.role else agents,
            # An agent without weights is none that a pipeline loads.
            pipeline_tag="text-generation"
            if is_model and not (repository.kind == "agent" and repository.base)
            else None,
            library_name=library if is_model else None,
            widget=[{"text": asked}] if isinstance(asked, str) else None,
            tags=["recursivemas", "multi-agent", "latent-reasoning", self.plan.style],
            datasets=self.options.datasets or None,
            model_name=repository.name,
            eval_results=self._eval_results() if repository.kind == "composite" else None,
        )

    def _licence(self, repository: Repository) -> Licence:
        return self.licences[repository.role] if repository.role else common_licence(self.licences.values())

    def _eval_results(self) -> list[EvalResult] | None:
        return [
            EvalResult(
                task_type="text-generation",
                dataset_type=content["settings"].get("dataset", content["settings"]["data"]),
                dataset_name=content["settings"].get("title", content["settings"]["data"]),
                metric_type="accuracy",
                metric_name=f"accuracy{scorer}, {row['num_rounds']} recursion rounds",
                metric_value=round(row[key], 4),
            )
            for _, content in self.results
            for row in content.get("figures", [])  # controls are none
            for scorer, key in scorers_of(content)
            if row["mode"] == "latent"
        ] or None


def scorers_of(content: dict[str, Any]) -> list[tuple[str, str]]:
    """What the scorers of stored results are called on cards, and where their accuracies stand: two of benchmarks."""
    if "benchmark" not in content["settings"]:
        return [("", "accuracy")]
    return [(" (strict scorer)", "accuracy"), (" (the release's rules)", "release_accuracy")]


def benchmark_results(content: dict[str, Any]) -> list[EvalResultEntry]:
    """The entry of a whole benchmark's results for the Hub's leaderboards, in percent; part of one gives none."""
    settings = content["settings"]
    if "benchmark" not in settings or settings["num_questions"] != settings["of"]:
        return []
    row = content["figures"][0]
    if row["mode"] != "latent":
        return []
    answers = f"{settings['samples']} answers a question, seeds {', '.join(map(str, settings['seeds']))}"
    notes = (
        f"strict scorer; by the release's rules {100 * row['release_accuracy']:.2f}; {answers}; {row['num_rounds']}"
        f" recursion rounds, {settings['latent_steps']} latent steps; commit {content['commit']}"
    )
    return [
        EvalResultEntry(
            dataset_id=settings["dataset"],
            task_id=settings["config"] or "default",
            value=round(100 * row["accuracy"], 2),
            date=content["date"],
            notes=notes,
        )
    ]
