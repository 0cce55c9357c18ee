"""Model cards: from the configuration, the parts and stored results; every code block runs as printed."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..evaluation.evaluate import markdown
from ..modeling_recursivemas import RecursiveMASModel
from .plan import Plan, Repository

HUB = "https://huggingface.co"
PAPER = "https://arxiv.org/abs/2604.25917"
CITATION = """```bibtex
@article{recursivemas2026,
  title  = {Recursive Multi-Agent Systems},
  year   = {2026},
  eprint = {2604.25917},
  archivePrefix = {arXiv}
}
```"""
METHOD = (
    f"[RecursiveMAS]({PAPER}) lets frozen language models work on a question together and hand over latent thoughts "
    "instead of text. An agent's last hidden state passes its *inner link* and becomes its own next input embedding; "
    "what it thought passes an *outer link* into the next agent's embedding space. The agents form a loop that runs "
    "for several recursion rounds; only the last agent of the last round writes text. Only the links are trained."
)
NEEDS = "Needs `torch` and `transformers` 5.17 or newer."


@dataclass
class Card:
    """The cards of a publication.

    Attributes:
        plan: the publication.
        mas: the system, loaded.
        results: (file, content) of stored results; the only source of figures.
        datasets: Hub data sets that the links were trained on.
    """

    plan: Plan
    mas: RecursiveMASModel
    results: list[tuple[Path, dict]]
    datasets: list[str]

    def save(self, repository: Repository, folder: Path) -> None:
        """Writes README.md, and for the composite the plots that stand beside the results."""
        body = getattr(self, f"_{repository.kind}")(repository)
        sections = [f"# {repository.name}", body, self._repositories(repository)]
        if repository.kind == "composite":
            sections += self._results(folder)
        sections += [f"## Citation\n\n{CITATION}"]
        metadata = self._metadata(repository).to_yaml()
        card = ModelCard(f"---\n{metadata}\n---\n\n" + "\n\n".join(filter(None, sections)) + "\n")
        card.save(folder / "README.md")

    def _metadata(self, repository: Repository) -> ModelCardData:
        plan = self.plan
        if repository.kind == "agent":
            base_model = repository.base_model
        else:
            base_model = [agent.id for agent in plan.agents.values()]
        return ModelCardData(
            license=plan.licence,
            base_model=base_model,
            pipeline_tag="text-generation",
            library_name="transformers",
            tags=["recursivemas", "multi-agent", "latent-reasoning", plan.style],
            datasets=self.datasets or None,
            model_name=repository.name,
            eval_results=self._eval_results() if repository.kind == "composite" else None,
        )

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

    # What each repository is, and how it is used

    def _agent(self, repository: Repository) -> str:
        agent, role = self.mas.agents[repository.role], repository.role
        config = self.mas.config.agents[role]
        weights = config["inner_link"].get("weights")
        tasks = ", ".join(weights["tasks"]) if isinstance(weights, dict) and "tasks" in weights else None
        base = f"[{repository.base_model}]({HUB}/{repository.base_model})" if repository.base_model else None
        table = {
            "Role": role,
            "Base model": base,
            "Architecture": agent.model.config.model_type,
            "Parameters": f"{agent.model.num_parameters():,} (frozen)",
            "Hidden size": agent.hidden_size,
            "Inner link": f"{agent.inner_link.kind}, {_parameters(agent.inner_link)} parameters",
            "Inner links per task": tasks,
        }
        # PEFT, where it is installed, takes the release's adapter_config.json for its own.
        guard = ', adapter_kwargs={"subfolder": "__none__"}' if self.plan.legacy else ""
        guard_note = (
            "\n\n`adapter_kwargs` keeps PEFT, where it is installed, from taking the release's `adapter_config.json` "
            "for its own."
            if self.plan.legacy
            else ""
        )
        question = json.dumps(self.plan.question, ensure_ascii=False)
        return f"""{METHOD}

This repository is the **{role}** of the {self.plan.style} system [{self.plan.composite.id}]({self._url()}): \
the frozen base model with its inner link beside it.

> An agent is a part of a system, not a stand-alone model: alone it is its base model. Load the whole system with
> [{self.plan.composite.name}]({self._url()}).

## Model details

{_two_columns(table)}

## Sample usage

{NEEDS} As an agent, which thinks in latent steps:

```python
import torch
from transformers import AutoModel

agent = AutoModel.from_pretrained("{repository.id}", trust_remote_code=True{guard})
inputs = agent.tokenizer({question}, return_tensors="pt")
with torch.no_grad():
    embeddings = agent.embed(inputs["input_ids"])
    hidden_states = agent.think(embeddings, inputs["attention_mask"], latent_steps=8)
print(hidden_states.shape)  # (batch, latent steps, hidden size)
```

As the base model that it is:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{repository.id}"{guard})
tokenizer = AutoTokenizer.from_pretrained("{repository.id}")
inputs = tokenizer({question}, return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=16)
print(tokenizer.decode(output[0], skip_special_tokens=True))
```{guard_note}"""

    def _outer_links(self, repository: Repository) -> str:
        rows = []
        for link in self.mas.topology.links:
            module = self.mas.outer_links[link.name]
            direction = "feedback" if link.feedback else "forward"
            widths = f"{module.in_features} → {module.out_features}"
            rows.append([f"`{link.name}`", direction, module.kind, widths, _parameters(module)])
        return f"""{METHOD}

This repository holds the outer links of the {self.plan.style} system [{self.plan.composite.id}]({self._url()}).

> Outer links connect the agents of one system; they are no language model. Load the whole system with
> [{self.plan.composite.name}]({self._url()}).

## Model details

{_table(["Link", "Direction", "Kind", "Width", "Parameters"], rows)}

`links.json` says the same for programs, and names the file of each link.

## Sample usage

{NEEDS} One link by itself:

```python
import json

import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
from transformers.dynamic_module_utils import get_class_from_dynamic_module

repository = "{repository.id}"
build_link = get_class_from_dynamic_module("links_recursivemas.build_link", repository)
with open(hf_hub_download(repository, "links.json")) as file:
    entry = json.load(file)["links"][0]
weights = entry["weights"]
filename = weights if isinstance(weights, str) else next(iter(weights["tasks"].values()))
link = build_link(
    load_file(hf_hub_download(repository, filename)),
    where=filename,
    kind=entry["kind"],
    in_features=entry["in_features"],
    out_features=entry["out_features"],
)
print(link(torch.zeros(1, 8, entry["in_features"])).shape)  # (batch, latent steps, width of the target)
```"""

    def _composite(self, repository: Repository) -> str:
        config, plan = self.mas.config, self.plan
        rows = []
        for stage_number, stage in enumerate(self.mas.topology.stages, start=1):
            for role in stage:
                agent = self.mas.agents[role]
                part = f"[{plan.agents[role].name}]({HUB}/{plan.agents[role].id})"
                size = f"{agent.model.num_parameters():,}"
                rows.append([stage_number, role, part, agent.model.config.model_type, size, agent.hidden_size])
        trained = sum(sum(p.numel() for p in link.parameters()) for link in self.mas.outer_links.values())
        trained += sum(sum(p.numel() for p in a.inner_link.parameters()) for a in self.mas.agents.values())
        table = {
            "Style": plan.style,
            "Role that writes": config.decoding_role,
            "Recursion rounds": config.num_rounds,
            "Latent steps": config.latent_steps,
            "Parameters of all links": f"{trained:,}",
            "Agents": "in this repository" if plan.self_contained else "referenced at pinned revisions",
        }
        question = json.dumps(plan.question, ensure_ascii=False)
        folder = repository.name
        return f"""{METHOD}

This repository is the whole **{plan.style}** system: load it, and its agents and links come along.

## Model details

{_two_columns(table)}

{_table(["Stage", "Role", "Agent", "Architecture", "Parameters", "Hidden size"], rows)}

> The agents are parts of this system, not stand-alone models.

## Sample usage

{NEEDS}

```python
from transformers import AutoModelForCausalLM

mas = AutoModelForCausalLM.from_pretrained("{repository.id}", trust_remote_code=True)
for solution in mas.solve([{question}], num_rounds={config.num_rounds}):
    print(solution.text, solution.usage["latent_positions"])
```

As an ordinary text-generation model:

```python
from transformers import pipeline

pipe = pipeline("text-generation", model="{repository.id}", trust_remote_code=True)
chat = [{{"role": "user", "content": {question}}}]
print(pipe(chat, max_new_tokens=64)[0]["generated_text"][-1]["content"])
```

From a copy of the repository:

```bash
hf download {repository.id} --local-dir {folder}
```

```python
import sys

sys.path.insert(0, "{folder}")
from system_loader import load_mas_system

mas = load_mas_system()
print({{role: agent.hidden_size for role, agent in mas.agents.items()}})
print(mas.solve([{question}])[0].text)
```"""

    # What all cards share

    def _url(self) -> str:
        return f"{HUB}/{self.plan.composite.id}"

    def _repositories(self, repository: Repository) -> str:
        rows = [
            [f"[{other.name}]({HUB}/{other.id})" if other != repository else f"{other.name} (this one)", other.note]
            for other in self.plan.repositories
        ]
        return (
            f"## Collection\n\nThe repositories of the system, together in the collection *{self.plan.collection}* of "
            f"[{self.plan.namespace}]({HUB}/{self.plan.namespace}):\n\n{_table(['Repository', 'What it is'], rows)}"
        )

    def _results(self, folder: Path) -> list[str]:
        sections = []
        for path, content in self.results:
            settings = content["settings"]
            text = (
                f"`{settings['data']}`, {settings['num_questions']} questions, measured on {content['date']} with "
                f"{settings['latent_steps']} latent steps; positions and tokens are per question. `text` is the same "
                f"agents handing over text, `alone` the role that writes without the others.\n\n{markdown(content)}"
            )
            picture = path.with_suffix(".png")
            if picture.is_file():
                shutil.copyfile(picture, folder / picture.name)
                text += f"\n\n![accuracy and cost]({picture.name})"
            sections.append(text)
        return ["## Results", *sections] if sections else []


def _parameters(module) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()):,}"


def _table(head: list[str], rows: list[list]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _two_columns(table: dict[str, object]) -> str:
    """A table of names and values; entries without a value are left out."""
    return _table(["", ""], [[name, value] for name, value in table.items() if value is not None])
