"""The public release in small: nineteen repositories in exactly its layout, in a real Hub cache.

Names, files, keys and manifests are written down here once more, apart from the table that the loader uses. Weights
are random, sizes tiny, architectures and tokenizers real.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from recursivemas.links_recursivemas import InnerLink, OuterLink
from recursivemas.small_systems.tokenizers import save_tokenizer
from tiny import tiny_base

ORGANIZATION = "RecursiveMAS"


@dataclass(frozen=True)
class Agent:
    """A released agent: repository, model type, width at tiny size, and how this one is stored."""

    repository: str
    architecture: str
    width: int
    template_in_config: bool = False
    max_shard_size: str = "5GB"


@dataclass(frozen=True)
class Style:
    """A released system. `links` is legacy key -> (source, target); `tasks` is empty where nothing is per task."""

    agents: dict[str, Agent]
    outer_links: str
    links: dict[str, tuple[str, str]]
    tasks: tuple[str, ...] = ()


CHAIN = {"outer_12": ("planner", "critic"), "outer_23": ("critic", "solver"), "outer_31": ("solver", "planner")}
PER_TASK = ("math", "code")
STYLES = {
    "sequential_light": Style(
        {
            "planner": Agent("Sequential-Light-Planner-Qwen3-1.7B", "qwen3", 32),
            "critic": Agent("Sequential-Light-Critic-Llama3.2-1B", "llama", 48, template_in_config=True),
            "solver": Agent("Sequential-Light-Solver-Qwen2.5-Math-1.5B", "qwen2", 64),
        },
        "Sequential-Light-Outerlinks",
        CHAIN,
        PER_TASK,
    ),
    "sequential_scaled": Style(
        {
            "planner": Agent("Sequential-Scaled-Planner-Gemma3-4B", "gemma3", 40),
            "critic": Agent("Sequential-Scaled-Critic-Llama3.2-3B", "llama", 48, max_shard_size="40KB"),
            "solver": Agent("Sequential-Scaled-Solver-Qwen3.5-4B", "qwen3_5", 24),
        },
        "Sequential-Scaled-Outerlinks",
        CHAIN,
        PER_TASK,
    ),
    "mixture": Style(
        {
            "math": Agent("Mixture-Math-DeepSeek-R1-Distill-Qwen-1.5B", "qwen2", 64),
            "code": Agent("Mixture-Code-Qwen2.5-Coder-3B", "qwen2", 32),
            "science": Agent("Mixture-Science-BioMistral-7B", "mistral", 56),
            "summarizer": Agent("Mixture-Summarizer-Qwen3.5-2B", "qwen3_5", 24),
        },
        "Mixture-Outerlinks",
        {
            "outer_1s": ("math", "summarizer"),
            "outer_2s": ("code", "summarizer"),
            "outer_3s": ("science", "summarizer"),
            "outer_s1": ("summarizer", "math"),
            "outer_s2": ("summarizer", "code"),
            "outer_s3": ("summarizer", "science"),
        },
    ),
    "distillation": Style(
        {
            "expert": Agent("Distillation-Expert-Qwen3.5-9B", "qwen3_5", 32),
            "learner": Agent("Distillation-Learner-Qwen3.5-4B", "qwen3_5", 24),
        },
        "Distillation-Outerlinks",
        {"outer_el": ("expert", "learner"), "outer_le": ("learner", "expert")},
        PER_TASK,
    ),
    "deliberation": Style(
        {
            "reflector": Agent("Deliberation-Reflector-Qwen3.5-4B", "qwen3_5", 24),
            "toolcaller": Agent("Deliberation-Toolcaller-Qwen3.5-4B", "qwen3_5", 24),
        },
        "Deliberation-Outerlinks",
        {"outer_rt": ("reflector", "toolcaller"), "outer_tr": ("toolcaller", "reflector")},
    ),
}


def build_agent(folder: Path, agent: Agent, tasks: tuple[str, ...], seed: int, dtype: torch.dtype) -> None:
    """Full weights and tokenizer of a base model, with its inner links beside them."""
    model, tokenizer = tiny_base(agent.architecture, seed, agent.width)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size=agent.max_shard_size)
    save_tokenizer(tokenizer, folder)
    if agent.template_in_config:
        config = json.loads((folder / "tokenizer_config.json").read_text())
        config["chat_template"] = (folder / "chat_template.jinja").read_text()
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        (folder / "chat_template.jinja").unlink()
    (folder / "adapter_config.json").write_text(json.dumps({"adapter_type": "ln_res_adapter"}))
    names = {task: f"adapter({task}).pt" for task in tasks} or {None: "adapter.pt"}
    for number, (_, name) in enumerate(names.items()):
        torch.manual_seed(100 * seed + number)
        torch.save(InnerLink("ln_res_adapter", agent.width).to(dtype).state_dict(), folder / name)
    if tasks:
        manifest = {"tasks": {task: {"adapter.pt": name} for task, name in names.items()}}
        (folder / "innerlink_config.json").write_text(json.dumps(manifest, indent=2))


def build_outer_links(folder: Path, style: Style, name: str, dtype: torch.dtype) -> None:
    """The outer links of a system with their manifest, per task or flat."""
    folder.mkdir(parents=True)
    tasks = {}
    for number, task in enumerate(style.tasks or (None,)):
        tasks[task] = []
        for key, (source, target) in style.links.items():
            filename = f"{source.title()}-{target.title()}-Outerlink{f'({task})' if task else ''}.pt"
            in_dim, out_dim = style.agents[source].width, style.agents[target].width
            torch.manual_seed(int(hashlib.sha256(f"{name}{key}{number}".encode()).hexdigest()[:8], 16))
            link = OuterLink("outer_ln_res_adapter", in_dim, out_dim)
            torch.save(link.to(dtype).state_dict(), folder / filename)
            adapter = {"legacy_key": key, "filename": filename}
            if name != "deliberation":  # the last three fields may be missing
                adapter |= {"adapter_type": "outer_ln_res_adapter", "in_dim": in_dim, "out_dim": out_dim}
            tasks[task].append(adapter)
    if style.tasks:
        manifest = {"tasks": {task: {"adapters": adapters} for task, adapters in tasks.items()}}
    else:
        manifest = {"format_version": 1, "paradigm": name, "adapters": tasks[None]}
    (folder / "outerlink_config.json").write_text(json.dumps(manifest, indent=2))


def build_clones(root: Path, styles: tuple[str, ...] = tuple(STYLES)) -> Path:
    """All repositories of some systems as plain folders `root/<repository>`."""
    for name in STYLES:
        if name not in styles:
            continue
        style = STYLES[name]
        dtype = torch.bfloat16 if name == "mixture" else torch.float32
        for index, agent in enumerate(style.agents.values()):
            build_agent(root / agent.repository, agent, style.tasks, index, dtype)
        build_outer_links(root / style.outer_links, style, name, dtype)
    return root


def place_in_cache(clones: Path, cache: Path, organization: str = ORGANIZATION) -> Path:
    """Lays the repositories out as the Hub client does: blobs, refs, and snapshots of links to the blobs."""
    for repository in sorted(path for path in clones.iterdir() if path.is_dir()):
        commit = hashlib.sha1(repository.name.encode()).hexdigest()
        place = cache / f"models--{organization}--{repository.name}"
        snapshot = place / "snapshots" / commit
        for folder in (place / "blobs", place / "refs", snapshot):
            folder.mkdir(parents=True)
        (place / "refs" / "main").write_text(commit)
        for file in sorted(path for path in repository.iterdir() if path.is_file()):
            blob = place / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
            if not blob.exists():
                shutil.copyfile(file, blob)
            (snapshot / file.name).symlink_to(Path("..", "..", "blobs", blob.name))
    return cache
