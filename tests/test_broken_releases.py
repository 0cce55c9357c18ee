"""Every way in which a released repository can be broken is one clear error, raised before an agent's weights load."""

import json
import pickle
import random
import shutil

import pytest
import torch
from recursivemas.errors_recursivemas import CheckpointError, RecursiveMASError
from recursivemas.system_loader import load_mas_system
from released import STYLES
from safetensors.torch import load_file, save_file

PLANNER, CRITIC, SOLVER = (agent.repository for agent in STYLES["sequential_light"].agents.values())
OUTER = STYLES["sequential_light"].outer_links


def edit(path, change):
    """Changes a JSON file in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_tensors(path, change):
    """Changes a file of tensors in place."""
    native = path.suffix == ".safetensors"
    tensors = load_file(path) if native else torch.load(path, weights_only=True)
    change(tensors)
    if native:
        save_file(tensors, path, {"format": "pt"})
    else:
        torch.save(tensors, path)


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def swap(first, second):
    spare = first.with_name("spare")
    first.rename(spare)
    second.rename(first)
    spare.rename(second)


class Evil:
    """Would leave a file behind if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def set_nan(tensors, key):
    tensors[key][..., 0] = float("nan")


def first_adapter(manifest):
    return manifest["tasks"]["math"]["adapters"][0]


POST_PROCESSOR = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {},
}

# name -> (how to break the folder of clones, what the message must say)
BREAKS = {
    "an agent's repository is missing": (
        lambda root: shutil.rmtree(root / PLANNER),
        ["cannot be read", PLANNER],
    ),
    "the outer links' repository is missing": (lambda root: shutil.rmtree(root / OUTER), ["cannot be read", OUTER]),
    "config.json is missing": (
        lambda root: (root / CRITIC / "config.json").unlink(),
        ["missing", CRITIC, "config.json", "model.safetensors"],
    ),
    "config.json is no JSON": (
        lambda root: (root / CRITIC / "config.json").write_text('{"model_type": '),
        ["not valid JSON", CRITIC, "config.json"],
    ),
    "config.json is a list": (
        lambda root: (root / CRITIC / "config.json").write_text("[]"),
        ["wrong kind of JSON", "config.json", "list"],
    ),
    "config.json names no known architecture": (
        lambda root: edit(root / CRITIC / "config.json", lambda c: c.update(model_type="lama")),
        ["config.json cannot be used", CRITIC, "lama"],
    ),
    "config.json contradicts the weights": (
        lambda root: edit(root / CRITIC / "config.json", lambda c: c.update(intermediate_size=64)),
        ["wrong shape", CRITIC, "mlp", "LlamaForCausalLM"],
    ),
    "the tokenizer is missing": (
        lambda root: [(root / SOLVER / f).unlink() for f in ("tokenizer.json", "tokenizer_config.json")],
        ["tokenizer", SOLVER, "tokenizer.json"],
    ),
    "the tokenizer is another agent's": (
        lambda root: edit(root / SOLVER / "config.json", lambda c: c.update(vocab_size=100)),
        ["more tokens than", "agent solver", SOLVER, "100"],
    ),
    "the tokenizer is broken": (
        lambda root: truncate(root / SOLVER / "tokenizer.json"),
        ["tokenizer cannot be loaded", SOLVER, "tokenizer.json"],
    ),
    "the tokenizer puts in a token that it has not": (  # at which the tokenizers library panics
        lambda root: edit(root / SOLVER / "tokenizer.json", lambda c: c.update(post_processor=POST_PROCESSOR)),
        ["tokenizer cannot be loaded", SOLVER],
    ),
    "the tokenizer has no chat template": (
        lambda root: (root / SOLVER / "chat_template.jinja").unlink(),
        ["no chat template", "agent solver", SOLVER, "tokenizer_config.json"],
    ),
    "the chat template is broken": (
        lambda root: (root / SOLVER / "chat_template.jinja").write_text("{% for m in messages %}"),
        ["chat template cannot be rendered", "agent solver", SOLVER],
    ),
    "the weights are missing": (
        lambda root: (root / PLANNER / "model.safetensors").unlink(),
        ["model cannot be loaded", PLANNER, "model.safetensors"],
    ),
    "the weights are truncated": (
        lambda root: truncate(root / PLANNER / "model.safetensors"),
        ["model cannot be loaded", PLANNER],
    ),
    "a weight is missing": (
        lambda root: edit_tensors(
            root / PLANNER / "model.safetensors", lambda t: t.pop("model.layers.1.mlp.up_proj.weight")
        ),
        ["missing: model.layers.1.mlp.up_proj.weight", PLANNER],
    ),
    "a weight is unexpected": (
        lambda root: edit_tensors(
            root / PLANNER / "model.safetensors", lambda t: t.update({"model.layers.9.extra": torch.ones(2)})
        ),
        ["unexpected: model.layers.9.extra", PLANNER],
    ),
    "a weight is NaN": (
        lambda root: edit_tensors(root / PLANNER / "model.safetensors", lambda t: set_nan(t, "model.norm.weight")),
        ["NaN", "model.norm.weight", PLANNER],
    ),
    "two roles have each other's repository": (
        lambda root: swap(root / PLANNER, root / CRITIC),
        ["model_type", "agents, planner", "llama", "qwen3"],
    ),
    "all inner links are missing": (
        lambda root: [f.unlink() for f in (root / PLANNER).iterdir() if f.name.startswith(("adapter(", "innerlink"))],
        ["no inner link", PLANNER, "adapter(math).pt or adapter.pt"],
    ),
    "the inner manifest names a missing file": (
        lambda root: edit(
            root / PLANNER / "innerlink_config.json", lambda m: m["tasks"]["math"].update({"adapter.pt": "math.pt"})
        ),
        ["missing", PLANNER, "math.pt"],
    ),
    "the inner manifest names a file elsewhere": (
        lambda root: edit(
            root / PLANNER / "innerlink_config.json", lambda m: m["tasks"]["math"].update({"adapter.pt": "../x.pt"})
        ),
        ["no file of its repository", "innerlink_config.json", "../x.pt"],
    ),
    "the inner manifest has the wrong form": (
        lambda root: edit(root / PLANNER / "innerlink_config.json", lambda m: m.update(tasks=["math"])),
        ["wrong form", PLANNER, "innerlink_config.json"],
    ),
    "adapter_config.json states an unknown kind": (
        lambda root: edit(root / PLANNER / "adapter_config.json", lambda c: c.update(adapter_type="lora")),
        ["unknown kind", "adapter_config.json", "lora", "ln_res_adapter"],
    ),
    "adapter_config.json contradicts the keys": (
        lambda root: edit(root / PLANNER / "adapter_config.json", lambda c: c.update(adapter_type="linear_adapter")),
        ["contradicts", "adapter(math).pt", "adapter_config.json", "ln_res_adapter", "linear_adapter"],
    ),
    "an inner link lacks a key": (
        lambda root: edit_tensors(root / SOLVER / "adapter(math).pt", lambda t: t.pop("proj2.bias")),
        ["missing: proj2.bias", "adapter(math).pt"],
    ),
    "an inner link has a key too many": (
        lambda root: edit_tensors(root / SOLVER / "adapter(math).pt", lambda t: t.update(scale=torch.ones(1))),
        ["scale", "adapter(math).pt", SOLVER],
    ),
    "an inner link has another agent's width": (
        lambda root: shutil.copy(root / CRITIC / "adapter(math).pt", root / SOLVER / "adapter(math).pt"),
        ["shape", SOLVER, "adapter(math).pt", "(48, 48)", "(64, 64)"],
    ),
    "an inner link is NaN": (
        lambda root: edit_tensors(root / SOLVER / "adapter(math).pt", lambda t: set_nan(t, "proj1.weight")),
        ["NaN", "proj1.weight", SOLVER, "adapter(math).pt"],
    ),
    "an inner link holds whole numbers": (
        lambda root: edit_tensors(
            root / SOLVER / "adapter(math).pt", lambda t: t.update({"proj1.bias": t["proj1.bias"].long()})
        ),
        ["not a float", "proj1.bias", "int64"],
    ),
    "a link is truncated": (
        lambda root: truncate(root / SOLVER / "adapter(math).pt"),
        ["cannot be read", SOLVER, "adapter(math).pt"],
    ),
    "a link is an empty file": (
        lambda root: (root / SOLVER / "adapter(math).pt").write_bytes(b""),
        ["cannot be read", SOLVER, "adapter(math).pt"],
    ),
    "a link is a list of tensors": (
        lambda root: torch.save([torch.ones(2)], root / SOLVER / "adapter(math).pt"),
        ["plain dict of tensors", "adapter(math).pt", "list"],
    ),
    "a link is a checkpoint of something else": (
        lambda root: torch.save({"epoch": 3, "model": {}}, root / SOLVER / "adapter(math).pt"),
        ["plain dict of tensors", "adapter(math).pt", "epoch"],
    ),
    "a link is a pickle that runs code": (
        lambda root: (root / SOLVER / "adapter(math).pt").write_bytes(pickle.dumps(Evil(root / "owned"))),
        ["cannot be read", "adapter(math).pt", "other pickles are refused"],
    ),
    "a link is a torch archive that runs code": (
        lambda root: torch.save({"proj1.weight": Evil(root / "owned")}, root / SOLVER / "adapter(math).pt"),
        ["cannot be read", "adapter(math).pt", "other pickles are refused"],
    ),
    "the outer manifest is missing": (
        lambda root: (root / OUTER / "outerlink_config.json").unlink(),
        ["missing", OUTER, "outerlink_config.json"],
    ),
    "the outer manifest has the wrong form": (
        lambda root: (root / OUTER / "outerlink_config.json").write_text('{"adapters": {}}'),
        ["wrong form", OUTER, "outerlink_config.json"],
    ),
    "the outer manifest lacks the task": (
        lambda root: edit(root / OUTER / "outerlink_config.json", lambda m: m["tasks"].pop("math")),
        ["no weights for this task", OUTER, "math", "code"],
    ),
    "the outer manifest lacks a link": (
        lambda root: edit(root / OUTER / "outerlink_config.json", lambda m: m["tasks"]["math"]["adapters"].pop(0)),
        ["no file for an outer link", OUTER, "outer_12", "outer_23"],
    ),
    "the outer manifest names a link twice": (
        lambda root: edit(
            root / OUTER / "outerlink_config.json",
            lambda m: m["tasks"]["math"]["adapters"].append(first_adapter(m)),
        ),
        ["more than one file", OUTER, "outer_12"],
    ),
    "the outer manifest names no file": (
        lambda root: edit(root / OUTER / "outerlink_config.json", lambda m: first_adapter(m).pop("filename")),
        ["no file of its repository", OUTER, "outer_12"],
    ),
    "an outer link is missing": (
        lambda root: (root / OUTER / "Planner-Critic-Outerlink(math).pt").unlink(),
        ["missing", OUTER, "Planner-Critic-Outerlink(math).pt"],
    ),
    "the outer manifest contradicts a width": (
        lambda root: edit(root / OUTER / "outerlink_config.json", lambda m: first_adapter(m).update(out_dim=40)),
        ["contradicts", OUTER, "out_dim", "48", "40"],
    ),
    "the outer manifest contradicts the keys": (
        lambda root: edit(
            root / OUTER / "outerlink_config.json", lambda m: first_adapter(m).update(adapter_type="outer_adapter")
        ),
        ["contradicts", "adapter_type", "outer_ln_res_adapter", "outer_adapter"],
    ),
    "two outer links are swapped": (
        lambda root: swap(
            root / OUTER / "Planner-Critic-Outerlink(math).pt", root / OUTER / "Solver-Planner-Outerlink(math).pt"
        ),
        ["contradicts", OUTER, "in_dim", "64", "32"],
    ),
    "an outer link fits other agents": (
        lambda root: edit(
            root / OUTER / "outerlink_config.json",
            lambda m: m["tasks"]["math"]["adapters"].__setitem__(
                0, {"legacy_key": "outer_12", "filename": "Critic-Solver-Outerlink(math).pt"}
            ),
        ),
        ["shape", OUTER, "Critic-Solver-Outerlink(math).pt", "32 -> 48"],
    ),
    "an outer link is infinite": (
        lambda root: edit_tensors(
            root / OUTER / "Solver-Planner-Outerlink(math).pt", lambda t: t["ln_target.bias"].fill_(float("inf"))
        ),
        ["NaN or infinity", OUTER, "ln_target.bias"],
    ),
}


@pytest.fixture
def clones(released_clones, tmp_path):
    """A copy of the repositories of one system, to break."""
    for repository in (PLANNER, CRITIC, SOLVER, OUTER):
        shutil.copytree(released_clones / repository, tmp_path / "clones" / repository)
    return tmp_path / "clones"


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_repository_is_one_clear_error(name, clones):
    break_it, message = BREAKS[name]
    break_it(clones)
    with pytest.raises(RecursiveMASError) as caught:
        load_mas_system("sequential_light", clones=clones)
    text = str(caught.value)
    assert all(part in text for part in message), text
    assert "Traceback" not in text and len(text) < 2500
    assert not (clones / "owned").exists()


def test_a_shard_that_is_missing_is_named(released_clones, tmp_path):
    style = STYLES["sequential_scaled"]
    for repository in (*(agent.repository for agent in style.agents.values()), style.outer_links):
        shutil.copytree(released_clones / repository, tmp_path / repository)
    shard = sorted((tmp_path / style.agents["critic"].repository).glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"(?s)agent critic.*{shard.name}"):
        load_mas_system("sequential_scaled", clones=tmp_path)


@pytest.mark.parametrize("seed", range(20))
def test_damage_at_random_never_ends_in_a_foreign_error(seed, clones):
    """A file is cut, emptied, overwritten or removed: the system runs (nobody needs it) or says what is wrong."""
    chooser = random.Random(seed)
    file = chooser.choice(sorted(path for path in clones.rglob("*") if path.is_file()))
    content = bytearray(file.read_bytes())
    damage = chooser.choice(["cut", "empty", "noise", "remove"])
    if damage == "remove":
        file.unlink()
    else:
        at = chooser.randrange(max(1, len(content)))
        noise = content[:at] + chooser.randbytes(16) + content[at + 16 :]
        file.write_bytes({"cut": content[:at], "empty": b"", "noise": noise}[damage])
    try:
        mas = load_mas_system("sequential_light", clones=clones)
        mas.solve("1+1", num_rounds=1, latent_steps=1, max_new_tokens=1, do_sample=False)
    except RecursiveMASError as error:
        assert file.parent.name in str(error), (file.name, damage, str(error))
