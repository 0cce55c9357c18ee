"""Pre-train one agent of a small system from nothing, with ordinary next-token loss on (chat prompt, target text).

    python -m recursivemas.training.pretrain --system sequential --role planner --output agents/planner

The output is a complete ordinary model folder (config.json, generation_config.json, tokenizer, model.safetensors in
float32) and `pretraining.json` with the command's settings and the exact match per prompt and level of difficulty.
A new small system is a new row of SYSTEMS.
"""

import argparse
import json
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..system_loader import PromptRenderer, RecursiveMASConfig, Slot, remote_module
from .objectives import IGNORE_INDEX
from .tasks import TASKS
from .tokenizers import build_tokenizer, save_tokenizer

MARKER = remote_module("prompts_recursivemas").MARKER


@dataclass(frozen=True)
class AgentSpec:
    """One agent to be trained from nothing; `config` holds further fields of its transformers config."""

    model_type: str
    tokenizer_family: str
    tokenizer_seed: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int = 3
    head_dim: int = 32
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SystemSpec:
    """A small system: the module of its task (see `recursivemas.training.tasks`) and its agents by role."""

    task: str
    agents: dict[str, AgentSpec]

    def task_module(self) -> ModuleType:
        return TASKS[self.task]


SYSTEMS: dict[str, SystemSpec] = {
    "sequential": SystemSpec(
        task="arithmetic",
        agents={
            "planner": AgentSpec("qwen3", "qwen3", 1, hidden_size=128, intermediate_size=320),
            "critic": AgentSpec("llama", "llama3", 2, hidden_size=96, intermediate_size=256),
            "solver": AgentSpec("qwen2", "qwen2", 3, hidden_size=160, intermediate_size=320),
        },
    ),
    "mixture": SystemSpec(
        task="registers",
        agents={
            "adder": AgentSpec("qwen2", "qwen2", 11, hidden_size=96, intermediate_size=256, num_hidden_layers=2),
            "subtracter": AgentSpec(
                "llama", "llama3", 12, hidden_size=128, intermediate_size=256, num_hidden_layers=2
            ),
            "multiplier": AgentSpec("qwen3", "qwen3", 13, hidden_size=96, intermediate_size=256, num_hidden_layers=2),
            "summarizer": AgentSpec("qwen3", "qwen3", 14, hidden_size=128, intermediate_size=320),
        },
    ),
    "distillation": SystemSpec(
        task="facts",
        agents={
            "expert": AgentSpec("qwen3", "qwen3", 21, hidden_size=128, intermediate_size=384),
            "learner": AgentSpec("llama", "llama3", 22, hidden_size=96, intermediate_size=192, num_hidden_layers=2),
        },
    ),
    "deliberation": SystemSpec(
        task="variables",
        agents={
            "reflector": AgentSpec("qwen3", "qwen3", 31, hidden_size=96, intermediate_size=256, num_hidden_layers=4),
            "toolcaller": AgentSpec("qwen2", "qwen2", 32, hidden_size=96, intermediate_size=256),
        },
    ),
}


def prompt_renderer(tokenizer: PreTrainedTokenizerBase, role: str) -> PromptRenderer:
    """The renderer that a system with default settings would use for the role."""
    return PromptRenderer(tokenizer, role, RecursiveMASConfig().chat_template_kwargs)


def encode_examples(
    renderer: PromptRenderer, prompts: dict[str, Any], examples: Sequence[dict[str, Any]]
) -> list[tuple[list[int], list[int]]]:
    """(prompt ids, target ids) of every example; `prompts` is the role's prompt set, the target ends with eos.

    Messages stand in their slots as they do in `mode="text"`. What an example has "said" already follows the prompt
    and is not learnt; each of its texts is tokenized by itself.
    """
    pairs = []
    for example in examples:
        prompt = []
        pieces = renderer.pieces(prompts["system"], prompts["default"][example["prompt"]], example["question"])
        for piece in pieces:
            is_slot = isinstance(piece, Slot)
            prompt += renderer.message_ids(example["messages"][piece.role]) if is_slot else piece
        for text in example.get("said", ()):
            prompt += renderer.message_ids(text)
        pairs.append((prompt, [*renderer.message_ids(example["target"]), renderer.tokenizer.eos_token_id]))
    return pairs


def training_batch(pairs: Sequence[tuple[list[int], list[int]]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Right-padded `input_ids`, `attention_mask` and `labels` (batch, length); only targets carry labels."""
    length = max(len(prompt) + len(target) for prompt, target in pairs)
    input_ids = torch.full((len(pairs), length), pad_token_id)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    for row, (prompt, target) in enumerate(pairs):
        end = len(prompt) + len(target)
        input_ids[row, :end] = torch.tensor(prompt + target)
        attention_mask[row, :end] = 1
        labels[row, len(prompt) : end] = torch.tensor(target)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def build_model(spec: AgentSpec, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A randomly initialised causal language model in float32 with tied embeddings."""
    num_heads = spec.hidden_size // spec.head_dim
    config = AutoConfig.for_model(
        spec.model_type,
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": spec.hidden_size,
            "intermediate_size": spec.intermediate_size,
            "num_hidden_layers": spec.num_hidden_layers,
            "num_attention_heads": num_heads,
            "num_key_value_heads": num_heads,
            "head_dim": spec.head_dim,
            "max_position_embeddings": 1024,
            "initializer_range": spec.hidden_size**-0.5,
            "tie_word_embeddings": True,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **spec.config,
        },
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def silence_unused_tokens(model: PreTrainedModel, used_ids: set[int]) -> None:
    """Keep the embeddings of tokens that the training text never contains tiny (std 1e-3) and untrained.

    Outer links may start from a ridge regression between the embeddings that two agents share. Rows that mean nothing
    (most of the 256 bytes) would disturb it; the tied output head would even push them all in one direction.
    """
    embeddings = model.get_input_embeddings().weight
    used = torch.zeros(embeddings.shape[0], 1)
    used[sorted(used_ids)] = 1.0
    with torch.no_grad():
        embeddings.copy_(torch.where(used.bool(), embeddings, 1e-3 * torch.randn_like(embeddings)))
    embeddings.register_hook(lambda gradient: gradient * used)


@torch.no_grad()
def exact_match(
    model: PreTrainedModel,
    renderer: PromptRenderer,
    prompts: dict[str, Any],
    examples: Sequence[dict[str, Any]],
    group_by: str,
    batch_size: int = 256,
) -> dict[str, dict[int, float]]:
    """Share of examples answered exactly by greedy decoding, by prompt and by level (the field `group_by`)."""
    model.eval()
    tokenizer = renderer.tokenizer
    pairs = encode_examples(renderer, prompts, examples)
    hits: dict[str, dict[int, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for start in range(0, len(pairs), batch_size):
        batch = pairs[start : start + batch_size]
        inputs = tokenizer.pad(
            {"input_ids": [prompt for prompt, _ in batch]}, padding_side="left", return_tensors="pt"
        )
        longest = max(len(target) for _, target in batch)
        new_ids = model.generate(**inputs, max_new_tokens=longest)[:, inputs["input_ids"].shape[1] :].tolist()
        for example, (_, target), found in zip(examples[start : start + batch_size], batch, new_ids, strict=True):
            hits[example["prompt"]][example[group_by]].append(found[: len(target)] == target)
    model.train()
    return {
        prompt: {level: sum(values) / len(values) for level, values in sorted(by_level.items())}
        for prompt, by_level in hits.items()
    }


def overall(table: dict[str, dict[int, float]]) -> float:
    """Mean of an exact-match table, whose cells all hold equally many examples."""
    values = [value for by_level in table.values() for value in by_level.values()]
    return sum(values) / len(values)


def wording(task: ModuleType) -> list[str]:
    """The fixed wording of a task, of its prompts and of what its agents say: tokenizer merges are learnt from it."""
    texts = [text for entry in task.PROMPTS.values() for text in (entry["system"] or "", *entry["default"].values())]
    return [*(MARKER.sub("", text) for text in texts), *getattr(task, "WORDS", ())]


def pretrain(
    spec: AgentSpec,
    task: ModuleType,
    role: str,
    steps: int = 2500,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    seed: int = 0,
    eval_every: int = 250,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[dict[str, float]]]:
    """Train one agent from nothing; returns the model, its tokenizer and the history (step, loss, exact match)."""
    torch.manual_seed(seed)
    prompts = task.PROMPTS[role]
    tokenizer = build_tokenizer(spec.tokenizer_family, wording(task), spec.tokenizer_seed)
    renderer = prompt_renderer(tokenizer, role)
    model = build_model(spec, tokenizer).train()

    # A prefix of the stream of examples holds every token that the stream will ever hold.
    sample = encode_examples(renderer, prompts, task.pretraining_examples(role, 2000, seed=seed))
    silence_unused_tokens(model, {token for prompt, target in sample for token in prompt + target})
    validation = task.pretraining_examples(role, 260, seed=2_000_003 + seed)

    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=learning_rate, total_steps=steps, pct_start=0.1)
    history, match, recent_loss = [], float("nan"), 0.0
    seeds = random.Random(seed)
    progress = tqdm(range(1, steps + 1), desc=f"pre-training {role}", unit="step", mininterval=5)
    for step in progress:
        # In random order, so that batches that are no multiple of the number of levels stay balanced.
        levels = seeds.sample(task.LEVELS, len(task.LEVELS))
        examples = task.pretraining_examples(role, batch_size, levels, seed=seeds.getrandbits(48))
        batch = training_batch(encode_examples(renderer, prompts, examples), tokenizer.pad_token_id)
        loss = model(**batch).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        recent_loss += (loss.item() - recent_loss) / min(step, 50)
        if step % eval_every == 0 or step == steps:
            match = overall(exact_match(model, renderer, prompts, validation, task.GROUP_BY))
            history.append({"step": step, "loss": round(recent_loss, 6), "exact_match": round(match, 4)})
        progress.set_postfix(loss=f"{recent_loss:.4f}", exact_match=f"{match:.3f}", refresh=False)
    return model.eval(), tokenizer, history


def save_agent(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
    """Write a complete ordinary model folder."""
    model.save_pretrained(output)
    save_tokenizer(tokenizer, output)
    for file in output.iterdir():
        file.chmod(0o644)  # safetensors are written readable by their owner only


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m recursivemas.training.pretrain",
        description="Pre-train one agent of a small system from nothing.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  all three agents of the sequential system (9 to 21 minutes each on one core):
    for role in planner critic solver; do
      python -m recursivemas.training.pretrain --system sequential --role $role --output agents/$role
    done
  a quick look at whether it trains:
    python -m recursivemas.training.pretrain --system sequential --role critic --steps 200 --output runs/critic""",
    )
    parser.add_argument("--system", required=True, choices=list(SYSTEMS), help="small system the agent belongs to")
    parser.add_argument(
        "--role",
        required=True,
        help="role of the agent: "
        + "; ".join(f"{name}: {', '.join(system.agents)}" for name, system in SYSTEMS.items()),
    )
    parser.add_argument("--output", required=True, type=Path, help="model folder to write, e.g. agents/planner")
    parser.add_argument("--steps", type=int, default=2500, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="examples per step (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="peak of one cycle (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and examples (default: %(default)s)")
    parser.add_argument("--eval-examples", type=int, default=50, help="per prompt and level (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    options = parser.parse_args(arguments)

    system = SYSTEMS[options.system]
    if options.role not in system.agents:
        parser.error(f"--role {options.role}: the {options.system} system has {', '.join(system.agents)}")
    for name in ("steps", "batch_size", "eval_examples", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)}: expected at least 1")
    options.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)

    task, start = system.task_module(), time.monotonic()
    model, tokenizer, history = pretrain(
        system.agents[options.role],
        task,
        options.role,
        options.steps,
        options.batch_size,
        options.learning_rate,
        options.seed,
    )
    seconds = time.monotonic() - start
    save_agent(model, tokenizer, options.output)

    prompts = task.PROMPTS[options.role]
    num_examples = options.eval_examples * len(prompts["default"]) * len(task.LEVELS)
    fresh = task.pretraining_examples(options.role, num_examples, seed=1_000_003 + options.seed)
    table = exact_match(model, prompt_renderer(tokenizer, options.role), prompts, fresh, task.GROUP_BY)
    report = {
        "system": options.system,
        "role": options.role,
        "steps": options.steps,
        "batch_size": options.batch_size,
        "learning_rate": options.learning_rate,
        "seed": options.seed,
        "train_seconds": round(seconds),
        "parameters": model.num_parameters(),
        "vocabulary": len(tokenizer),
        "eval_examples": num_examples,
        "exact_match": round(overall(table), 4),
        "exact_match_by_prompt_and_level": table,
        "history": history,
    }
    (options.output / "pretraining.json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"{options.role}: {report['parameters']:,} parameters, {seconds:.0f} s, saved in {options.output}")
    print(f"exact match over {num_examples} fresh examples: {report['exact_match']:.4f}")
    for prompt, by_level in table.items():
        print(f"  {prompt:9}" + "  ".join(f"{level}:{value:.2f}" for level, value in by_level.items()))


if __name__ == "__main__":
    main()
