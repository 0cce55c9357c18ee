"""Model cards: templates filled from the configuration, the parts and stored results; code blocks run as printed."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData
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
        """Writes README.md, and for the composite the plots that stand beside the results."""
        mas, results = self.mas, []
        if repository.kind == "composite":
            for path, content in self.results:
                picture = path.with_suffix(".png")
                if picture.is_file():
                    shutil.copyfile(picture, folder / picture.name)
                results.append({**content, "picture": picture.name if picture.is_file() else None})
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
        plan, agents = self.plan, [agent.id for agent in self.plan.agents.values()]
        is_model = repository.kind != "outer_links"  # which no pipeline loads
        composite = repository.kind == "composite"
        licence: dict[str, Any] = {**self._licence(repository)}
        return ModelCardData(
            **licence,
            base_model=repository.base_model if repository.kind == "agent" else agents,
            pipeline_tag="text-generation" if is_model else None,
            library_name="transformers" if is_model else None,
            widget=[{"text": plan.question}] if composite and isinstance(plan.question, str) else None,
            tags=["recursivemas", "multi-agent", "latent-reasoning", plan.style],
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
                dataset_type=content["settings"]["data"],
                dataset_name=content["settings"]["data"],
                metric_type="accuracy",
                metric_name=f"accuracy, {row['num_rounds']} recursion rounds",
                metric_value=round(row["accuracy"], 4),
            )
            for _, content in self.results
            for row in content["figures"]
            if row["mode"] == "latent"
        ] or None
