"""What one staged repository gives when it is loaded by itself. Runs as a script in a clean process, and imports
nothing but what a stranger has: torch, transformers, huggingface_hub and safetensors; for a Space gradio, and the code
that lies in it.

python -I probe.py KIND FOLDER QUESTION CLONES -> one line of JSON (the question is JSON too: a text, or its fields)
"""

import hashlib
import importlib
import json
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

MAX_NEW_TOKENS = 16
LATENT_STEPS = 4


def digest(state_dict: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and values of weights."""
    total = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def probe_texts(model, tokenizer, text: str) -> dict:
    """The ids of a chat with one message, and the generation settings that are not transformers' own."""
    chat = [{"role": "user", "content": text}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    settings = model.generation_config.to_diff_dict()
    kept = {key: value for key, value in settings.items() if key != "transformers_version" and key[0] != "_"}
    return {"prompt": tokenizer(prompt)["input_ids"], "settings": json.loads(json.dumps(kept, default=str))}


def text_of(question: str | Mapping[str, str]) -> str:
    """A question as one text."""
    return question if isinstance(question, str) else "\n".join(question.values())


@torch.no_grad()
def probe_agent(agent, model, tokenizer, question: str | Mapping[str, str]) -> dict:
    """Greedy tokens of the base model and the hidden states of the agent's latent steps."""
    text = text_of(question)
    inputs = tokenizer(text, return_tensors="pt").to(model.device)
    tokens = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    hidden_states = agent.think(agent.embed(inputs["input_ids"]), inputs["attention_mask"], LATENT_STEPS)
    given = probe_texts(model, tokenizer, text)
    return {"tokens": tokens.tolist(), "hidden_states": hidden_states.flatten().tolist(), **given}


def probe_system(mas, tokenizer, question: str | Mapping[str, str]) -> dict:
    """Greedy tokens of the whole system, and what its own tokenizer, chat template and settings make of a question."""
    tokens = mas.generate(question, max_new_tokens=MAX_NEW_TOKENS, do_sample=False).tolist()
    return {"tokens": tokens, **probe_texts(mas, tokenizer, text_of(question))}


def main(kind: str, folder: str, question: str | Mapping[str, str], clones: str) -> dict:
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    links = {path.name: digest(load_file(path)) for path in Path(folder).glob("*_*.safetensors")}
    if kind == "agent":
        quiet: dict[str, Any] = {
            "adapter_kwargs": {"subfolder": "__none__"}
        }  # the release's adapter_config.json is no PEFT adapter
        agent = AutoModel.from_pretrained(folder, trust_remote_code=True, **quiet)
        where: dict[str, Any] = {"pretrained_model_name_or_path": folder, "trust_remote_code": True}
        base = json.loads(Path(folder, "config.json").read_text(encoding="utf-8")).get("base_model")
        if base is not None:  # as the card says
            where = {"pretrained_model_name_or_path": base["source"], "revision": base["revision"]}
        model = AutoModelForCausalLM.from_pretrained(**where, **quiet)
        tokenizer = AutoTokenizer.from_pretrained(**where)
        return {**probe_agent(agent, model, tokenizer, question), "links": links}
    if kind == "adapter":
        return {"links": links}
    if kind == "outer_links":
        build_link = get_class_from_dynamic_module("link_building_recursivemas.build_link", folder)
        for entry in json.loads(Path(folder, "links.json").read_text(encoding="utf-8"))["links"]:
            weights = entry["weights"]
            for name in [weights] if isinstance(weights, str) else weights["tasks"].values():
                widths = {"in_features": entry["in_features"], "out_features": entry["out_features"]}
                link = build_link(load_file(Path(folder, name)), where=name, kind=entry["kind"], **widths)
                assert torch.isfinite(link(torch.ones(1, 1, entry["in_features"]))).all(), name
        return {"links": links}
    arguments = {"clones": clones} if clones else {}
    if kind == "space":
        sys.dont_write_bytecode = True
        sys.path.insert(0, folder)
        loader: Any = importlib.import_module("recursivemas.system_loader")
        load = loader.load_mas_system
        loader.load_mas_system = lambda name, **kwargs: load(Path(clones, Path(name).name), **kwargs, **arguments)
        space = runpy.run_path(str(Path(folder, "app.py")), run_name="space")
        return probe_system(space["mas"], space["mas"].tokenizer, question)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    mas = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **arguments)
    return probe_system(mas, tokenizer, question)


if __name__ == "__main__":
    kind, folder, question, clones = sys.argv[1:]
    try:
        print(json.dumps(main(kind, folder, json.loads(question), clones)))
    except Exception as error:  # one line in place of a traceback
        sys.exit(f"{type(error).__name__}: {error}")
