"""New systems: what `init-links` starts from, and the probe that chooses settings and says what a system is worth."""

import json
import os
import subprocess
import sys

import pytest
import torch
from recursivemas import cli
from recursivemas.configuration_recursivemas import RecursiveMASConfig
from recursivemas.system_loader import ROOT, load_mas_system, read_style
from recursivemas.tasks import TASKS
from recursivemas.training.init_links import init_system
from recursivemas.training.probe import (
    CHOOSING,
    FREE,
    Figure,
    Setting,
    Subject,
    agree,
    is_clear,
    judge,
    probe,
    search,
    subjects_of,
)
from recursivemas.training.start import codebook, mean_norm, text_token_ids
from safetensors.torch import load_file
from tiny import ARCHITECTURES, tiny_agent, tiny_base


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folders of two random base models that cannot read English."""
    folder = tmp_path_factory.mktemp("bases")
    for seed, architecture in enumerate(("qwen3", "llama")):
        for part in tiny_base(architecture, seed):
            part.save_pretrained(folder / architecture)
    return folder


def init(bases, output, *options, style="distillation", expert="qwen3", learner="llama"):
    command = ["init-links", "--style", str(style), "--agent", f"expert={bases / expert}", "--agent",
               f"learner={bases / learner}", "--output", str(output), "--latent-steps", "3"]  # fmt: skip
    return cli.main([*command, *map(str, options)])


def pair(bases, learner="llama"):
    """The two in the style distillation, as `init_system` makes them."""
    config = RecursiveMASConfig(
        agents={"expert": {"source": str(bases / "qwen3")}, "learner": {"source": str(bases / learner)}},
        **read_style("distillation"), latent_steps=3, latent_halting=True, control_tokens=False,
    )  # fmt: skip
    return init_system(config, bases)


# The start


def test_a_new_system_has_latents_that_hold_and_a_setting_that_is_given_stays(bases, tmp_path, capsys):
    assert init(bases, tmp_path / "default", "--no-probe") == 0
    config = json.loads((tmp_path / "default" / "config.json").read_text())
    assert (config["latent_halting"], config["control_tokens"]) == (True, False)
    for role, agent in load_mas_system(tmp_path / "default").agents.items():
        expected = {
            "kind": "expected_embedding",
            "temperature": 0.3,
            "norm": mean_norm(agent),
            "special_tokens": False,
        }
        assert config["agents"][role]["inner_link"] == expected
    assert not any("snap" in link for link in config["links"])
    assert "work" not in capsys.readouterr().out and not (tmp_path / "default" / "probe.json").exists()

    given = ("--temperature", 0.7, "--norm", "none", "--snap", "--no-halting", "--control-tokens", "--no-probe")
    assert init(bases, tmp_path / "given", *given) == 0
    config = json.loads((tmp_path / "given" / "config.json").read_text())
    assert (config["latent_halting"], config["control_tokens"]) == (False, True)
    inner = {"kind": "expected_embedding", "temperature": 0.7, "special_tokens": False}
    assert all(agent["inner_link"] == inner for agent in config["agents"].values())
    assert all(link["snap"] for link in config["links"])


def test_a_swap_keeps_the_settings_of_the_system_and_of_the_links_that_stay(bases, tmp_path):
    given = ("--temperature", 0.7, "--norm", 2, "--no-halting", "--control-tokens", "--no-probe")
    assert init(bases, tmp_path / "first", *given) == 0
    command = ["init-links", "--system", str(tmp_path / "first"), "--agent", f"learner={bases / 'qwen3'}", "--output",
               str(tmp_path / "second"), "--no-probe"]  # fmt: skip
    assert cli.main(command) == 0
    first, second = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("first", "second"))
    assert second["agents"]["expert"] == first["agents"]["expert"]
    assert second["agents"]["learner"]["inner_link"]["temperature"] == 0.3
    assert (second["latent_halting"], second["control_tokens"]) == (False, True)
    identity = load_file(tmp_path / "second" / "links" / "expert_to_learner.safetensors")["proj1.weight"]
    assert torch.equal(identity, torch.eye(len(identity))), "the agents are of one base now"


@pytest.mark.parametrize(
    "options",
    [
        ("--inner", "ln_res_adapter", "--temperature", 0.5),
        ("--inner", "ln_res_adapter", "--probe-data", "x"),
        ("--no-probe", "--probe-data", "x"),
        ("--codebook-size", 0),
        ("--inner", "codebook", "--no-probe"),
        ("--temperature", 0, "--no-probe"),
        ("--norm", -1, "--no-probe"),
    ],
)
def test_an_option_that_does_nothing_or_cannot_be_used_is_an_error(bases, tmp_path, options, capsys):
    assert init(bases, tmp_path / "no", *options) == 2
    assert capsys.readouterr().err and not (tmp_path / "no").exists()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_the_mean_norm_is_that_of_text_whatever_special_and_unseen_tokens_are_like(architecture):
    agent = tiny_agent(architecture, "a")
    embeddings = agent.get_input_embeddings()
    embeddings.weight.div_(embeddings.weight.norm(dim=-1, keepdim=True))
    scale = float(agent.embed(torch.tensor([5])).norm())  # Gemma scales inside its embedding module
    embeddings.weight[agent.control_token_ids] *= 100
    embeddings.weight[text_token_ids(agent)[::2]] *= 1e-3
    assert mean_norm(agent) == pytest.approx(scale, rel=1e-2)


def test_a_codebook_holds_what_is_said_then_the_lowest_ids_and_no_special_token():
    agent = tiny_agent("llama", "a")
    said = agent.tokenizer("the others: 7é", add_special_tokens=False).input_ids
    ids = codebook(agent, 60, ["the others: 7é", agent.tokenizer.eos_token])
    assert len(ids) == len(set(ids.tolist())) == 60 and set(said) <= set(ids.tolist())
    assert not set(ids.tolist()) & set(agent.control_token_ids.tolist())
    rest = [index for index in text_token_ids(agent).tolist() if index not in said]
    assert sorted({*said, *rest[: 60 - len(set(said))]}) == ids.tolist()
    assert torch.equal(codebook(agent, 10**6), text_token_ids(agent))


def test_a_codebook_of_ones_own_questions_is_written_and_read(bases, tmp_path):
    rows = [{"question": f"What is {word}?", "answer": word} for word in ("a violin", "é", "Zürich")]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = ("--codebook-size", 200, "--no-probe", "--probe-data", tmp_path / "rows.jsonl")
    assert init(bases, tmp_path / "small", "--inner", "codebook", *options) == 0
    links = load_mas_system(tmp_path / "small").agents["expert"].inner_link, *[
        load_file(tmp_path / "small" / "links" / f"{role}.safetensors")["token_ids"] for role in ("expert", "learner")
    ]  # fmt: skip
    assert torch.equal(links[0].token_ids, links[1]) and len(links[1]) == len(links[2]) == 200
    tokenizer = load_mas_system(tmp_path / "small").agents["expert"].tokenizer
    said = {token for row in rows for text in row.values() for token in tokenizer(text)["input_ids"]}
    assert said - set(tokenizer.all_special_ids) <= set(links[1].tolist())


# Choosing


def stub(accuracies, asked=None):
    """A `Measure` of 100 questions: (attribute, value) -> how much worse a setting with it is than the best one."""

    def measure(setting):
        if asked is not None:
            asked.append(setting)
        lost = sum(loss for (name, value), loss in accuracies.items() if getattr(setting, name) == value)
        return Figure([index < 90 - lost for index in range(100)], 0.1)

    return measure


@pytest.mark.parametrize(
    ("lost", "best"),
    [
        ({("temperature", 0.5): 30, ("temperature", 1.0): 60, ("norm", None): 20, ("snap", True): 9}, Setting()),
        ({("temperature", 0.3): 30, ("temperature", 1.0): 60, ("norm", None): 20}, Setting(temperature=0.5)),
        ({("temperature", 0.3): 60, ("temperature", 0.5): 30, ("norm", "mean"): 20, ("snap", False): 9},
         Setting(temperature=1.0, norm=None, snap=True)),
        ({("temperature", 0.3): 3, ("norm", "mean"): 4, ("snap", False): 2}, Setting()),  # no more than chance
    ],
)  # fmt: skip
def test_the_settings_with_the_best_figures_are_chosen_and_the_simplest_within_chance(lost, best):
    assert search(stub(lost), Setting(), FREE, [1]) == best


def test_snapping_is_judged_over_several_rounds_and_what_is_given_is_not_chosen():
    asked = []
    lost = {("temperature", 0.9): 50, ("snap", False): 4}  # too little on 100 answers, enough on 200
    free = {"snap": FREE["snap"]}
    found = search(stub(lost, asked), Setting(temperature=0.9), free, [1, 2])
    assert found == Setting(temperature=0.9, snap=True)
    assert {setting.temperature for setting in asked} == {0.9}
    assert {(setting.num_rounds, setting.snap) for setting in asked} == {(1, False), (1, True), (2, False), (2, True)}


# Verdicts


def right(count, total=64):
    return [index < count for index in range(total)]


@pytest.mark.parametrize(
    ("text", "latents", "nothing", "outcome"),
    [
        (41, 41, 1, "works"),
        (41, 33, 1, "works"),  # 0.8 of what text carries
        (41, 32, 1, "needs training"),  # less than that
        (41, 6, 1, "needs training"),  # no more than nothing, by chance
        (64, 53, 50, "needs training"),
        (5, 5, 1, "cannot tell"),  # text itself is no more than nothing, by chance
        (0, 0, 0, "cannot tell"),
        (1, 41, 1, "cannot tell"),
    ],
)
def test_a_verdict_needs_more_than_nothing_and_nearly_what_text_carries(text, latents, nothing, outcome):
    found = judge("a -> b", right(text), right(latents), right(nothing))
    assert found.outcome == outcome and f"text {text / 64:.2f}, latents {latents / 64:.2f}" in found.text
    assert ("the links work" in found.text) == (outcome == "works")
    assert ("close to the line" in found.text) == ((text, latents) in {(41, 33), (41, 32), (64, 53)})
    assert ("needs training" in found.text) == (outcome == "needs training")


@pytest.mark.parametrize(
    ("text", "latents", "clear"),
    [((40, 0), (40, 0), True), ((40, 0), (5, 0), True), ((30, 0), (24, 0), False), ((30, 0), (20, 6), False),
     ((48, 0), (48, 0), True)],
)  # fmt: skip
def test_more_questions_are_asked_until_it_is_clear_on_which_side_latents_are(text, latents, clear):
    """(a, b): the first a of 48 questions are right, and the last b."""
    of = lambda first, last: [index < first or index >= 48 - last for index in range(48)]  # noqa: E731
    assert is_clear(of(*text), of(*latents)) == clear
    if not clear:
        assert is_clear(of(*text) * 40, of(*latents) * 40) == (sum(of(*latents)) != 0.8 * sum(of(*text)))


def test_answers_agree_that_have_half_of_their_words_in_common():
    assert agree("The hat is red.", "the HAT is red") and agree(None, "")
    assert agree("The hat is red.", "The hat was red") and agree("red", "is red or")
    assert not agree("The hat is red.", "Nobody knows that") and not agree("red", None) and not agree("red", "a b c")


# The probe


def test_agents_that_read_no_english_are_not_called_working(bases, tmp_path, capsys):
    assert init(bases, tmp_path / "pair") == 0
    printed = capsys.readouterr().out
    assert printed.count("the probe cannot tell: even text carries nothing") == 2
    assert "links work" not in printed
    found = json.loads((tmp_path / "pair" / "probe.json").read_text())
    assert {"date", "commit", "versions", "machine", "data"} <= found.keys()
    assert [each["name"] for each in found["probes"]] == ["expert -> learner", "learner -> expert"]
    for each in found["probes"]:
        assert [row["setting"] for row in each["figures"]] == ["text", "nothing"] and each["outcome"] == "cannot tell"
        assert all(row["num_questions"] == CHOOSING and row["seconds"] > 0 for row in each["figures"])
        assert (each["setting"]["temperature"], each["setting"]["norm"]) == (0.3, "mean")
    assert load_mas_system(tmp_path / "pair").agents["expert"].inner_link.temperature == 0.3


def test_agents_without_room_for_the_questions_are_said_so(bases, tmp_path, capsys):
    model, tokenizer = tiny_base("llama", 1)
    model.config.max_position_embeddings = 64
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "bases" / "short")
    assert init(tmp_path / "bases", tmp_path / "pair", "--json", expert="short", learner="short") == 0
    first, second = json.loads(capsys.readouterr().out)["probe"]["probes"]
    assert "cannot tell: expert has room for 64 positions" in first["verdict"]
    assert "as expert -> learner" in second["verdict"] and second["outcome"] == "cannot tell"


def test_a_system_that_is_asked_in_the_probes_fields_is_probed_as_one(bases, tmp_path, capsys):
    command = ["init-links", "--style", "reading", "--agent", f"reader={bases / 'qwen3'}", "--agent",
               f"answerer={bases / 'llama'}", "--output", str(tmp_path / "pair"), "--latent-steps", "3"]  # fmt: skip
    assert cli.main(command) == 0
    assert "the system: text 0.00, nothing handed over 0.00" in capsys.readouterr().out


def test_a_system_that_sends_nothing_is_not_judged(bases, capsys):
    mas = pair(bases)
    mas.config.latent_steps = 0
    found = probe(mas, mas.topology.roles, Setting(), FREE)
    assert all(each["outcome"] == "cannot tell" and "latent_steps" in each["verdict"] for each in found["probes"])


def test_links_with_weights_are_to_be_trained_and_not_probed(bases, tmp_path, capsys):
    assert init(bases, tmp_path / "start", "--inner", "ln_res_adapter") == 0
    printed = capsys.readouterr().out
    assert "to be trained" in printed and "work" not in printed
    assert not (tmp_path / "start" / "probe.json").exists()


def names_of(groups):
    return [[subject.name for subject in group] for group in groups]


def test_every_link_is_probed_between_different_bases_and_one_for_all_between_equal_ones(bases):
    mas, new = pair(bases), ["expert", "learner"]
    assert names_of(subjects_of(mas, new, None, 10)) == [["expert -> learner"], ["learner -> expert"]]
    assert names_of(subjects_of(mas, new, [1], 10)) == [["the system"]]
    twins = subjects_of(pair(bases, "qwen3"), new, None, 10)
    assert names_of(twins) == [["expert -> learner", "learner -> expert"]]
    assert [subject.senders for subject in twins[0]] == [["expert"], ["learner"]]


def test_a_link_between_agents_that_stay_is_not_probed(chain):
    (to,), (from_it,) = subjects_of(chain, ["critic"], None, 10)
    assert (to.name, to.senders, to.links) == ("planner -> critic", [], ["planner_to_critic"])
    assert (from_it.name, from_it.senders, from_it.links) == ("critic -> solver", ["critic"], ["critic_to_solver"])


@pytest.mark.parametrize("learner", ["llama", "qwen3"])  # another base than the expert's, and the same
def test_what_the_probe_chooses_is_what_the_system_has(bases, monkeypatch, learner):
    """With answers that are made up: temperature 1.0, no norm and snapping are surely better."""
    mas = pair(bases, learner)

    class Said(str):
        messages, text = {(1, "expert"): "the hat is red"}, ""
        answer = property(str)

    def solve(self, questions, setting, on_progress):
        if setting.mode == "latents":
            self.apply(setting)
        good = (setting.temperature == 1.0) + (setting.norm is None) + setting.snap
        of_eight = {"text": 8, "nothing": 0}.get(setting.mode, 2 + 2 * good)
        return [Said(question.answer if index % 8 < of_eight else "") for index, question in enumerate(questions)]

    monkeypatch.setattr(Subject, "solve", solve)
    found = probe(mas, mas.topology.roles, Setting(), FREE)
    assert [each["outcome"] for each in found["probes"]] == ["works", "works"]
    for role in ("expert", "learner"):
        entry = mas.config.agents[role]["inner_link"]
        assert "temperature" not in entry and "norm" not in entry  # 1.0 and none are what goes without saying
        assert mas.agents[role].inner_link.options == {"special_tokens": False}
    assert all(link["snap"] for link in mas.config.links)


@pytest.fixture(scope="module")
def arithmetic(tmp_path_factory):
    """The task of the shipped agents: a style with its prompts, questions with answers, and such without."""
    folder = tmp_path_factory.mktemp("arithmetic")
    style = {**read_style("sequential"), "prompts": TASKS["arithmetic"].PROMPTS}
    (folder / "style.json").write_text(json.dumps(style))
    rows = [{"question": row["question"], "answer": row["answer"]} for row in TASKS["arithmetic"].generate(60, [4, 5])]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "questions.jsonl").write_text("\n".join(json.dumps({"question": row["question"]}) for row in rows))
    return folder


@pytest.mark.parametrize("data", [pytest.param("rows.jsonl", marks=pytest.mark.slow), "questions.jsonl"])
def test_a_users_questions_are_answered_by_the_whole_system(arithmetic, tmp_path, data, capsys):
    """The shipped agents do their task over untrained latents too; where answers are not known, text's count."""
    command = ["init-links", "--style", str(arithmetic / "style.json"), "--output", str(tmp_path / "system"),
               "--rounds", "2", "--latent-steps", "16", "--probe-data", str(arithmetic / data)]  # fmt: skip
    command += [f"--agent={role}={ROOT / 'agents' / role}" for role in ("planner", "critic", "solver")]
    assert cli.main(command) == 0
    print(capsys.readouterr().out)
    (found,) = json.loads((tmp_path / "system" / "probe.json").read_text())["probes"]
    assert (found["name"], found["outcome"]) == ("the system", "works")


@pytest.mark.slow
def test_a_real_model_hands_over_in_latents_what_it_hands_over_in_text(tmp_path, capsys):
    online = {name: value for name, value in os.environ.items() if name not in ("HF_HOME", "HF_HUB_OFFLINE")}
    fetched = subprocess.run(
        [sys.executable, "-m", "recursivemas.cli", "fetch", "smollm2"], env=online, capture_output=True, text=True
    )
    assert fetched.returncode == 0, fetched.stderr
    model = fetched.stdout.strip()
    command = ["init-links", "--style", "distillation", "--agent", f"expert={model}", "--agent", f"learner={model}",
               "--dtype", "float32", "--latent-steps", "16", "--output", str(tmp_path / "pair")]  # fmt: skip
    assert cli.main(command) == 0
    first, second = json.loads((tmp_path / "pair" / "probe.json").read_text())["probes"]
    assert first["outcome"] == second["outcome"] == "works"
    text, latents, nothing = (row["accuracy"] for row in first["figures"][-3:])
    assert latents >= 0.8 * text > 0.3 and nothing < 0.2
    temperatures = {row["setting"]: row["accuracy"] for row in first["figures"] if row["num_questions"] == CHOOSING}
    assert temperatures["latents: temperature 1.0, norm mean"] < 0.6 * temperatures["text"]
