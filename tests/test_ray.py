"""The same system in one process and as actors of a local Ray cluster."""

import pytest
import torch
from recursivemas.errors_recursivemas import ConfigError, InputError
from recursivemas.system_loader import load_mas_system
from tiny import tiny_system

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow
QUESTIONS = [f"How many apples are {a} + {b} apples, then?"[: 20 + a] for a in range(4) for b in range(3)]
SETTINGS = {"num_rounds": 3, "latent_steps": 5, "max_new_tokens": 8, "message_tokens": 6}


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=4, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two roles side by side, then a judge with feedback to both."""
    links = [{"source": role, "target": "judge"} for role in ("left", "right")]
    links += [{"source": "judge", "target": role, "feedback": True} for role in ("left", "right")]
    architectures = {"left": "llama", "right": "qwen3_5_text", "judge": "qwen3"}
    mas = tiny_system(architectures, [["left", "right"], ["judge"]], links, "judge")
    path = tmp_path_factory.mktemp("ray") / "system"
    mas.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def local(folder):
    return load_mas_system(folder)


@pytest.fixture(scope="module")
def remote(folder, cluster):
    mas = load_mas_system(folder, executor="ray", executor_options={"left": {"replicas": 2}})
    yield mas
    mas.executor.shutdown()


WAYS = [{"mode": mode} for mode in ("latent", "text", "alone")]
WAYS += [{"control": control} for control in ("none", "other_question", "noise", "read_out", "text_last")]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: next(iter(way.values())))
def test_actors_give_the_same_answers_in_the_order_of_the_questions(local, remote, way):
    progress = []
    settings = {"batch_size": 2, "return_latents": True, **way, **SETTINGS}
    expected = local.solve(QUESTIONS, **settings)
    got = remote.solve(QUESTIONS, on_progress=progress.append, **settings)
    assert sum(progress) == len(QUESTIONS) and len(progress) == 6
    assert len({solution.text for solution in expected}) > 1 or way == {"control": "none"}
    for one, other in zip(expected, got, strict=True):
        assert one.text == other.text and one.answer == other.answer and one.messages == other.messages
        for name in ("prompt_tokens", "latent_positions", "slot_positions", "new_tokens"):
            assert one.usage[name] == other.usage[name]
        assert set(one.usage["seconds"]) == set(other.usage["seconds"])
        assert set(one.latents or {}) == set(other.latents or {})
        for key in one.latents or {}:
            torch.testing.assert_close(one.latents[key], other.latents[key], atol=1e-5, rtol=1e-5)


def test_the_calling_process_holds_no_weights(remote):
    for agent in remote.agents.values():
        assert agent.device.type == "meta"
    with pytest.raises(InputError, match="solve"):
        remote.generate(torch.tensor([[1]]))


def test_a_killed_actor_is_restarted_and_its_batches_are_done_again(local, remote):
    expected = [solution.text for solution in local.solve(QUESTIONS, batch_size=2, **SETTINGS)]
    killed = []

    def kill_once(_):
        if not killed:
            killed.append(remote.executor.replicas["judge"][0])
            ray.kill(killed[0], no_restart=False)

    got = remote.solve(QUESTIONS, batch_size=2, on_progress=kill_once, **SETTINGS)
    assert killed and [solution.text for solution in got] == expected


def test_a_wrong_option_is_named(folder, cluster):
    with pytest.raises(ConfigError, match="nobody"):
        load_mas_system(folder, executor="ray", executor_options={"nobody": {}})
    with pytest.raises(ConfigError, match="gpus"):
        load_mas_system(folder, executor="ray", executor_options={"left": {"gpus": 1}})
    with pytest.raises(InputError, match="dask"):
        load_mas_system(folder, executor="dask")
