"""A locally trained folder stands in the place of a role, or of the outer links; nothing else changes."""

import json
import shutil

import pytest
import torch
from recursivemas import cli
from recursivemas.errors_recursivemas import InputError
from recursivemas.links_recursivemas import InnerLink
from recursivemas.system_loader import load_mas_system


@pytest.fixture(scope="module")
def trained(chain_folder, tmp_path_factory):
    """The same system with all links changed, as a training run saves it."""
    mas = load_mas_system(chain_folder)
    for link in [*mas.outer_links.values(), *(agent.inner_link for agent in mas.agents.values())]:
        for parameter in link.parameters():
            parameter.data.add_(0.25)
    folder = tmp_path_factory.mktemp("trained") / "system"
    mas.save_pretrained(folder)
    mas.agents["critic"].save_pretrained(folder.parent / "critic")
    torch.manual_seed(3)
    adapter = InnerLink("ln_res_adapter", mas.agents["planner"].hidden_size)
    (folder.parent / "planner").mkdir()
    torch.save(adapter.state_dict(), folder.parent / "planner" / "adapter.pt")
    (folder.parent / "planner" / "adapter_config.json").write_text('{"adapter_type": "ln_res_adapter"}')
    return folder.parent, mas, adapter


def changed(mas, other):
    """The links whose weights differ, by name."""

    def weights(system):
        inner = {role: agent.inner_link.state_dict() for role, agent in system.agents.items()}
        return inner | {name: link.state_dict() for name, link in system.outer_links.items()}

    ours, theirs = weights(mas), weights(other)
    return {name for name in ours if any(not torch.equal(of, theirs[name][key]) for key, of in ours[name].items())}


def test_only_what_is_named_is_replaced(chain_folder, chain, trained):
    folder, new, adapter = trained
    outer = set(chain.outer_links.keys())
    for override, names, source in [
        ({"planner": folder / "system"}, {"planner"}, new),
        ({"critic": folder / "critic"}, {"critic"}, new),  # an agent's repository
        ({"outer_links": folder / "system"}, outer, new),
        ({"solver": folder / "system", "outer_links": str(folder / "system")}, {"solver", *outer}, new),
    ]:
        mas = load_mas_system(chain_folder, override=override)
        assert changed(mas, chain) == names
        assert not changed(mas, source) & names
    mas = load_mas_system(chain_folder, override={"planner": folder / "planner"})  # as the release trains it
    assert changed(mas, chain) == {"planner"}
    assert torch.equal(mas.agents["planner"].inner_link.proj1.weight, adapter.proj1.weight)
    assert load_mas_system(chain_folder, override={}).config.agents.keys() == chain.config.agents.keys()


def test_a_system_with_an_override_can_be_saved_and_loaded(chain_folder, chain, trained, tmp_path):
    load_mas_system(chain_folder, override={"planner": trained[0] / "system"}).save_pretrained(
        tmp_path / "saved", copy_agents=True
    )
    assert changed(load_mas_system(tmp_path / "saved"), chain) == {"planner"}


def test_a_released_style_takes_a_folder_of_the_release_and_its_outer_links(
    released_cache, released_clones, trained, tmp_path
):
    style, name = "sequential_light", "Sequential-Light-Planner-Qwen3-1.7B"
    local = shutil.copytree(released_clones / name, tmp_path / "planner")
    for file in local.glob("adapter*.pt"):
        torch.save({key: of + 1 for key, of in torch.load(file).items()}, file)
    outer = shutil.copytree(released_clones / "Sequential-Light-Outerlinks", tmp_path / "outer")
    for file in outer.glob("*.pt"):
        torch.save({key: of + 1 for key, of in torch.load(file).items()}, file)
    kwargs = {"cache_dir": released_cache, "local_files_only": True}
    mas = load_mas_system(style, **kwargs)
    for override, names in [({"planner": local}, {"planner"}), ({"outer_links": outer}, set(mas.outer_links.keys()))]:
        assert changed(load_mas_system(style, override=override, **kwargs), mas) == names


@pytest.mark.parametrize(
    ("part", "make", "found"),
    [
        ("writer", lambda folder: folder.mkdir(), "writer"),
        ("planner", lambda folder: None, "no such folder"),
        ("planner", lambda folder: folder.mkdir(), "empty"),
        ("outer_links", lambda folder: (folder.mkdir(), (folder / "adapter.pt").touch()), "adapter.pt"),
    ],
)
def test_what_cannot_take_a_place_is_said_before_anything_is_loaded(part, make, found, chain_folder, tmp_path, capsys):
    make(tmp_path / "given")
    with pytest.raises(InputError, match=found):
        load_mas_system(chain_folder, override={part: tmp_path / "given"})
    arguments = ["--system", str(chain_folder), "--override", f"{part}={tmp_path / 'given'}", "x"]
    assert cli.main(["solve", *arguments]) == 2
    assert found in capsys.readouterr().err


def test_the_folder_of_another_agent_brings_its_model_too(chain_folder, chain, trained, tmp_path):
    folder = shutil.copytree(trained[0] / "critic", tmp_path / "agent")
    config = json.loads((folder / "config.json").read_text())
    mas = load_mas_system(chain_folder, override={"critic": folder})
    assert mas.config.agents["critic"]["source"] == str(folder)
    assert mas.agents["critic"].model.config.model_type == config["model_type"]
