"""Pre-train one agent of a small system from nothing, with ordinary next-token loss on (chat prompt, target text).

    python -m recursivemas.small_systems.pretrain --system sequential --role planner --output runs/planner

The output is a complete ordinary model folder (config.json, generation_config.json, tokenizer, model.safetensors in
float32) and `pretraining.json` with the recipe and the exact match per prompt and level of difficulty.
"""

import argparse
import json
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..configuration_recursivemas import RecursiveMASConfig
from ..evaluation.results import provenance
from ..prompts_recursivemas import MARKER, PromptRenderer, Slot
from ..training.objectives import IGNORE_INDEX
from .recipes import RECIPES, THREADS, AgentRecipe
from .tokenizers import build_tokenizer, save_tokenizer

EVAL_BATCH = 256  # examples that are answered side by side
EVAL_EVERY = 250  # steps between two evaluations


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
        prompt: list[int] = []
        pieces = renderer.pieces(prompts["system"], prompts["default"][example["prompt"]], example["question"])
        for piece in pieces:
            prompt += renderer.message_ids(example["messages"][piece.role]) if isinstance(piece, Slot) else piece
        for text in example.get("said", ()):
            prompt += renderer.message_ids(text)
        pairs.append((prompt, [*renderer.message_ids(example["target"]), renderer.tokenizer.eos_token_id]))
    return pairs


def training_batch(pairs: Sequence[tuple[list[int], list[int]]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Right-padded `input_ids`, `attention_mask` and `labels` (batch, length); only targets carry labels."""
    rows = {
        "input_ids": ([prompt + target for prompt, target in pairs], pad_token_id),
        "attention_mask": ([[1] * len(prompt + target) for prompt, target in pairs], 0),
        "labels": ([[IGNORE_INDEX] * len(prompt) + target for prompt, target in pairs], IGNORE_INDEX),
    }
    return {
        name: pad_sequence([*map(torch.tensor, ids)], batch_first=True, padding_value=padding)
        for name, (ids, padding) in rows.items()
    }


def build_model(recipe: AgentRecipe, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A randomly initialised causal language model in float32 with tied embeddings."""
    num_heads = recipe.hidden_size // recipe.head_dim
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "head_dim")
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    settings: dict[str, Any] = {
        **{name: getattr(recipe, name) for name in sizes},
        "vocab_size": len(tokenizer),
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_heads,
        "max_position_embeddings": 1024,
        "initializer_range": recipe.hidden_size**-0.5,
        "tie_word_embeddings": True,
    }
    config = AutoConfig.for_model(recipe.model_type, **settings, **tokens)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config = GenerationConfig(do_sample=False, **tokens)
    return model


def silence_unused_tokens(model: PreTrainedModel, used_ids: set[int]) -> None:
    """Keep the embeddings of tokens that the training text never contains tiny (std 1e-3) and untrained.

    Outer links may start from a ridge regression between the embeddings that two agents share. Rows that mean nothing
    (most of the 256 bytes) would disturb it; the tied output head would even push them all in one direction.
    """
    embeddings = cast(torch.nn.Embedding, model.get_input_embeddings()).weight
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
) -> dict[str, dict[int, float]]:
    """Share of examples answered exactly by greedy decoding, by prompt and by level (the field `group_by`)."""
    model.eval()
    tokenizer = renderer.tokenizer
    pairs = encode_examples(renderer, prompts, examples)
    hits: dict[str, dict[int, list[bool]]] = defaultdict(lambda: defaultdict(list))
    generate: Any = model.generate
    for start in range(0, len(pairs), EVAL_BATCH):
        batch = pairs[start : start + EVAL_BATCH]
        prompt_ids = [prompt for prompt, _ in batch]
        inputs = tokenizer.pad({"input_ids": prompt_ids}, padding_side="left", return_tensors="pt")
        longest = max(len(target) for _, target in batch)
        new_ids = generate(**inputs, max_new_tokens=longest)[:, inputs["input_ids"].shape[1] :].tolist()
        for example, (_, target), found in zip(examples[start : start + EVAL_BATCH], batch, new_ids, strict=True):
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
    recipe: AgentRecipe, task: ModuleType, role: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[dict[str, float]]]:
    """Train one agent from nothing; returns the model, its tokenizer and the history (step, loss, exact match)."""
    seed, steps = recipe.seed, recipe.steps
    torch.manual_seed(seed)
    prompts = task.PROMPTS[role]
    tokenizer = build_tokenizer(recipe.tokenizer_family, wording(task), recipe.tokenizer_seed)
    renderer = prompt_renderer(tokenizer, role)
    model = build_model(recipe, tokenizer).train()

    # A prefix of the stream of examples holds every token that the stream will ever hold.
    sample = encode_examples(renderer, prompts, task.pretraining_examples(role, 2000, seed=seed))
    silence_unused_tokens(model, {token for prompt, target in sample for token in prompt + target})
    validation = task.pretraining_examples(role, 260, seed=2_000_003 + seed)

    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=recipe.learning_rate, total_steps=steps, pct_start=0.1
    )
    history, match, recent_loss = [], float("nan"), 0.0
    seeds = random.Random(seed)
    progress = tqdm(range(1, steps + 1), desc=f"pre-training {role}", unit="step", mininterval=5)
    for step in progress:
        # In random order, so that batches that are no multiple of the number of levels stay balanced.
        levels = seeds.sample(task.LEVELS, len(task.LEVELS))
        examples = task.pretraining_examples(role, recipe.batch_size, levels, seed=seeds.getrandbits(48))
        batch = training_batch(encode_examples(renderer, prompts, examples), tokenizer.pad_token_id)
        loss = model(**batch).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        recent_loss += (loss.item() - recent_loss) / min(step, 50)
        if step % EVAL_EVERY == 0 or step == steps:
            match = overall(exact_match(model, renderer, prompts, validation, task.GROUP_BY))
            history.append({"step": step, "loss": round(recent_loss, 6), "exact_match": round(match, 4)})
        progress.set_postfix(loss=f"{recent_loss:.4f}", exact_match=f"{match:.3f}", refresh=False)
    return model.eval(), tokenizer, history


def pretrain_agent(name: str, role: str, folder: Path, steps: int | None = None, eval_examples: int = 50) -> None:
    """Trains one agent of a small system by its recipe; writes its model folder and `pretraining.json`.

    Args:
        name, role: of the system, in `RECIPES`, and of its agent.
        folder: for the agent.
        steps: in place of the recipe's.
        eval_examples: fresh ones that are answered at the end, for each prompt and level.
    """
    recipe, task = RECIPES[name].agents[role], RECIPES[name].task_module()
    recipe = recipe if steps is None else replace(recipe, steps=steps)
    start = time.monotonic()
    model, tokenizer, history = pretrain(recipe, task, role)
    seconds = time.monotonic() - start
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors are written readable by their owner only
    prompts = task.PROMPTS[role]
    num_examples = eval_examples * len(prompts["default"]) * len(task.LEVELS)
    fresh = task.pretraining_examples(role, num_examples, seed=1_000_003 + recipe.seed)
    table = exact_match(model, prompt_renderer(tokenizer, role), prompts, fresh, task.GROUP_BY)
    report = {
        "system": name,
        "role": role,
        **{key: getattr(recipe, key) for key in ("steps", "batch_size", "learning_rate", "seed")},
        "train_seconds": round(seconds),
        "parameters": model.num_parameters(),
        "vocabulary": len(tokenizer),
        "eval_examples": num_examples,
        "exact_match": round(overall(table), 4),
        "exact_match_by_prompt_and_level": table,
        "history": history,
        **provenance(),
    }
    (folder / "pretraining.json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"{role}: {report['parameters']:,} parameters, {seconds:.0f} s, saved in {folder}")
    print(f"exact match over {num_examples} fresh examples: {report['exact_match']:.4f}")
    for prompt, by_level in table.items():
        print(f"  {prompt:9}" + "  ".join(f"{level}:{value:.2f}" for level, value in by_level.items()))


def main(argv: Sequence[str] | None = None) -> None:
    roles = "; ".join(f"{name}: {', '.join(recipe.agents)}" for name, recipe in RECIPES.items())
    parser = argparse.ArgumentParser(
        prog="python -m recursivemas.small_systems.pretrain",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--system", required=True, choices=list(RECIPES), help="small system the agent belongs to")
    parser.add_argument("--role", required=True, help=f"role of the agent: {roles}")
    parser.add_argument("--output", required=True, type=Path, help="model folder to write, e.g. runs/critic")
    parser.add_argument("--steps", type=int, help="optimizer steps (default: the recipe's)")
    parser.add_argument("--eval-examples", type=int, default=50, help="per prompt and level (default: %(default)s)")
    arguments = parser.parse_args(argv)
    agents = RECIPES[arguments.system].agents
    if arguments.role not in agents:
        parser.error(f"--role {arguments.role}: the {arguments.system} system has {', '.join(agents)}")
    for option in ("steps", "eval_examples"):
        if (value := getattr(arguments, option)) is not None and value < 1:
            parser.error(f"--{option.replace('_', '-')} {value}: expected at least 1")
    torch.set_num_threads(THREADS)
    pretrain_agent(arguments.system, arguments.role, arguments.output, arguments.steps, arguments.eval_examples)


if __name__ == "__main__":
    main()
