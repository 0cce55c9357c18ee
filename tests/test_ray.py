"""The same system in one process and as actors of a local Ray cluster."""

import json
import os
import signal

import pytest
import torch
from recursivemas.errors_recursivemas import AgentLostError, ConfigError, InputError
from recursivemas.system_loader import ROOT, load_mas_system
from recursivemas.tasks import registers
from recursivemas.tools_recursivemas import calculator
from test_depth import MOST, seen, telling
from tiny import tiny_system

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow
QUESTIONS = [f"How many apples are {a} + {b} apples, then?"[: 20 + a] for a in range(4) for b in range(3)]
SETTINGS = {"num_rounds": 3, "latent_steps": 5, "max_new_tokens": 8, "message_tokens": 6}


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=4, num_gpus=2, log_to_driver=False, include_dashboard=False)
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


def adaptively(local):
    """Settings with which the questions take different numbers of rounds."""
    threshold = telling(seen(local, QUESTIONS, latent_steps=5), "latents")
    return by_themselves("latents", threshold)


def by_themselves(signal, threshold, **way):
    settling = {"signal": signal, "threshold": threshold, "max_rounds": MOST}
    return {**SETTINGS, "num_rounds": "auto", "batch_size": 4, "return_latents": True, "settling": settling, **way}


def assert_same_rounds(local, remote, settings):
    expected, got = local.solve(QUESTIONS, **settings), remote.solve(QUESTIONS, **settings)
    for one, other in zip(expected, got, strict=True):
        assert one.text == other.text and one.messages == other.messages
        for name in ("rounds", "turns", "prompt_tokens", "latent_positions", "slot_positions", "new_tokens"):
            assert one.usage[name] == other.usage[name], name
        assert set(one.latents or {}) == set(other.latents or {})
        for key in one.latents or {}:
            torch.testing.assert_close(one.latents[key], other.latents[key], atol=1e-4, rtol=1e-4)
    return {solution.usage["rounds"] for solution in got}


def test_rows_leave_by_themselves_over_actors_as_in_one_process(local, remote):
    assert len(assert_same_rounds(local, remote, adaptively(local))) > 1
    for actor in remote.executor._actors:
        assert ray.get(actor.__ray_call__.remote(lambda worker: len(worker.runs))) == 0


@pytest.mark.parametrize(("signal", "mode"), [("rounds", "latent"), ("turns", "latent"), ("rounds", "text")])
def test_what_is_sent_is_read_where_it_is_received_and_settles_as_in_one_process(local, remote, signal, mode):
    threshold = 0.6 if mode == "text" else telling(seen(local, QUESTIONS, latent_steps=5), signal)
    assert assert_same_rounds(local, remote, by_themselves(signal, threshold, mode=mode)) != {MOST}


@pytest.mark.parametrize("turn", [(2, "judge"), (3, "left")], ids=str)
def test_rows_whose_actors_die_take_as_many_rounds(local, remote, monkeypatch, turn):
    settings = adaptively(local)
    killed = killing(monkeypatch, remote.executor, turn[-1], turn, times=1)
    assert len(assert_same_rounds(local, remote, settings)) > 1
    assert len(killed) == 1


def test_a_first_round_that_nobody_speaks_before_is_answered_at_once(local, remote):
    settling = {"signal": "rounds", "threshold": 0, "max_rounds": 1}
    settings = {**SETTINGS, "num_rounds": "auto", "settling": settling}
    for one, other in zip(local.solve(QUESTIONS, **settings), remote.solve(QUESTIONS, **settings), strict=True):
        assert (
            one.text == other.text and other.usage["rounds"] == 1 and one.usage["turns"] == other.usage["turns"] == 3
        )


def test_the_calling_process_holds_no_weights(remote):
    for agent in remote.agents.values():
        assert agent.device.type == "meta"
    with pytest.raises(InputError, match="solve"):
        remote.generate(torch.tensor([[1]]))


def process_of(actor) -> int:
    return ray.get(actor.__ray_call__.remote(lambda worker: os.getpid()))


def kill_process(actor) -> None:
    """Ends an actor as a crash does, and waits until Ray knows."""
    os.kill(process_of(actor), signal.SIGKILL)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(actor.ready.remote())


def killing(monkeypatch, executor, host, turn, times):
    """Kills an actor's process when a batch is about to ask it for a turn; the list of the killed."""
    killed, submit = [], executor._submit

    def submit_to_the_dead(job, actor, asked, run, settings):
        if asked == turn and len(killed) < times:
            killed.append(process_of(actor))
            kill_process(actor)
        return submit(job, actor, asked, run, settings)

    monkeypatch.setattr(executor, "_submit", submit_to_the_dead)
    return killed


@pytest.mark.parametrize("turn", [(1, "judge"), (2, "right"), (3, "judge")], ids=str)
def test_batches_of_a_killed_process_are_done_again_on_a_new_one(local, remote, monkeypatch, turn):
    settings = {"batch_size": 2, "return_latents": True, **SETTINGS}
    expected = local.solve(QUESTIONS, **settings)
    killed = killing(monkeypatch, remote.executor, turn[1], turn, times=1)
    got = remote.solve(QUESTIONS, **settings)
    assert len(killed) == 1 and killed[0] not in map(process_of, remote.executor.replicas[turn[1]])
    for one, other in zip(expected, got, strict=True):
        assert one.text == other.text and set(one.latents) == set(other.latents)
        for name in ("prompt_tokens", "latent_positions", "slot_positions", "new_tokens"):
            assert one.usage[name] == other.usage[name]  # of all rounds, also those that the dead had counted
        assert set(one.usage["seconds"]) == set(other.usage["seconds"])


def test_an_actor_that_died_between_two_calls_is_replaced(local, remote):
    kill_process(remote.executor.replicas["judge"][0])
    got = remote.solve(QUESTIONS[:4], batch_size=2, **SETTINGS)
    assert [s.text for s in got] == [s.text for s in local.solve(QUESTIONS[:4], batch_size=2, **SETTINGS)]


def test_a_batch_that_ends_every_actor_is_an_error_that_names_it_and_the_next_call_works(local, remote, monkeypatch):
    from recursivemas.distributed.ray_executor import MAX_ATTEMPTS

    with monkeypatch.context() as patch:
        killed = killing(patch, remote.executor, "judge", (2, "judge"), times=99)
        with pytest.raises(AgentLostError, match=r"(?s)agent judge, 3 attempts, first question 'How many"):
            remote.solve(QUESTIONS[:1], **SETTINGS)
        assert len(set(killed)) == MAX_ATTEMPTS
    assert remote.solve(QUESTIONS[:1], **SETTINGS)[0].text == local.solve(QUESTIONS[:1], **SETTINGS)[0].text


def test_no_more_batches_are_under_way_than_keep_all_actors_busy(local, remote, monkeypatch):
    from recursivemas.distributed.ray_executor import TURNS_AHEAD

    executor, open_jobs, most = remote.executor, set(), []
    submit, forget = executor._submit, executor._forget

    def opened(job, *rest):
        open_jobs.add(job.name)
        most.append(len(open_jobs))
        return submit(job, *rest)

    monkeypatch.setattr(executor, "_submit", opened)
    monkeypatch.setattr(executor, "_forget", lambda job: open_jobs.discard(job.name) or forget(job))
    questions = QUESTIONS * 2
    got = remote.solve(questions, batch_size=1, **SETTINGS)
    assert [s.text for s in got] == [s.text for s in local.solve(questions, batch_size=1, **SETTINGS)]
    assert 4 < max(most) <= TURNS_AHEAD * len(executor._actors) < len(questions)


def test_actors_share_a_gpu_by_fractions(folder, cluster, local):
    half = {"num_cpus": 0, "num_gpus": 0.5, "device": "cpu"}
    options = {"left": half, "right": half, "judge": {**half, "num_gpus": 1}}
    mas = load_mas_system(folder, executor="ray", executor_options=options)
    held = {
        role: ray.get(mas.executor.replicas[role][0].__ray_call__.remote(lambda worker: ray.get_gpu_ids()))
        for role in options
    }
    texts = [solution.text for solution in mas.solve(QUESTIONS[:3], **SETTINGS)]
    mas.executor.shutdown()
    assert held["left"] == held["right"] != held["judge"]
    assert texts == [solution.text for solution in local.solve(QUESTIONS[:3], **SETTINGS)]


def test_fractions_that_no_gpus_hold_side_by_side_are_an_error_before_any_actor(folder, cluster):
    part = {"num_cpus": 0, "num_gpus": 0.6}
    with pytest.raises(InputError, match=r"(?s)no places.*2 GPU.*0\.6 GPU.*one GPU"):
        load_mas_system(folder, executor="ray", executor_options=dict.fromkeys(("left", "right", "judge"), part))
    with pytest.raises(ConfigError, match=r"(?s)whole ones.*1\.5"):
        load_mas_system(folder, executor="ray", executor_options={"left": {"num_gpus": 1.5}})


@pytest.mark.parametrize(
    ("machines", "needs", "fits"),
    [
        ([{"CPU": 4}] * 2, [{"CPU": 2.5}] * 2, True),
        ([{"CPU": 4}] * 2, [{"CPU": 2.5}] * 3, False),  # 7.5 of 8, yet a third has no machine
        ([{"CPU": 4}] * 2, [{"CPU": 1}, {"CPU": 3}, {"CPU": 4}], True),  # the largest first
        ([{"GPU": 2}], [{"GPU": 0.6}] * 3, False),
        ([{"GPU": 2}], [{"GPU": 0.5}] * 4, True),
        ([{"GPU": 2}], [{"GPU": 0.25}, {"GPU": 0.25}, {"GPU": 1}], True),
        ([{"GPU": 2}], [{"GPU": 0.25}, {"GPU": 2}], False),
        ([{"GPU": 1}, {"GPU": 1}], [{"GPU": 2}], False),
        ([{"CPU": 1, "tpu": 1}], [{"tpu": 1}, {"CPU": 1}], True),
    ],
)
def test_actors_fit_side_by_side_as_ray_places_them(machines, needs, fits):
    from recursivemas.distributed.ray_executor import fit_side_by_side

    assert fit_side_by_side(machines, needs) is fits


@pytest.mark.parametrize("fails", ["answering", "hearing"])
def test_an_answer_belongs_to_its_question_whatever_failed_before(local, remote, fails):
    """Another question each time, in batches of equal form: an actor that kept a run would take it for the next."""

    def refuse(*_):
        raise KeyError("nobody hears")

    wrong = {"answering": {"suppress_tokens": "x"}, "hearing": {"on_solutions": refuse}}[fails]
    for n in range(12):
        with pytest.raises(Exception, match=r"."):
            remote.solve([f"Why {n}?"], **wrong, **SETTINGS)
        question = [f"Name colour {n} of the sky at night please."]
        assert remote.solve(question, **SETTINGS)[0].text == local.solve(question, **SETTINGS)[0].text


def test_actors_keep_nothing_of_a_solve_that_failed(remote):
    with pytest.raises(Exception, match=r"."):
        remote.solve(QUESTIONS, batch_size=2, suppress_tokens="x", **SETTINGS)
    for actor in remote.executor._actors:
        assert ray.get(actor.__ray_call__.remote(lambda worker: len(worker.runs))) == 0


def test_names_of_jobs_do_not_repeat():
    from recursivemas.distributed.ray_executor import Job

    jobs = [Job(0, ["Why?"], [(1, "judge")]) for _ in range(100)]
    parts = Job(0, ["Why?"] * 5, [(1, "judge")]).parts(2)
    assert len({job.name for job in [*jobs, *parts]}) == 103
    assert [part.rows for part in parts] == [[0, 1], [2, 3], [4]]


def test_a_batch_without_memory_is_halved_by_actors_too(local, remote, monkeypatch):
    from recursivemas.distributed import ray_executor

    validate, halved = ray_executor.validate_halving, []
    monkeypatch.setattr(
        ray_executor, "validate_halving", lambda *about: halved.append(len(about[0])) or validate(*about)
    )

    def narrow(worker):
        from recursivemas.engine_recursivemas import Run

        take_turn = Run.take_turn

        def narrowed(self, round_index, role):
            if len(self.questions) > 2:
                torch.empty(10**17)
            return take_turn(self, round_index, role)

        Run.take_turn = narrowed
        return take_turn

    def widen(worker):
        from recursivemas.engine_recursivemas import Run

        Run.take_turn = Run.take_turn.__closure__[0].cell_contents

    (right,) = remote.executor.replicas["right"]
    ray.get(right.__ray_call__.remote(lambda worker: narrow(worker) and None))
    try:
        progress = []
        found = remote.solve(QUESTIONS, batch_size=5, on_progress=progress.append, **SETTINGS)
    finally:
        ray.get(right.__ray_call__.remote(widen))
    assert [s.text for s in found] == [s.text for s in local.solve(QUESTIONS, batch_size=5, **SETTINGS)]
    assert sum(progress) == len(QUESTIONS) and len(progress) == 3 and halved[0] == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"left": {"num_cpus": 8}}, "left.*found: 4 CPU.*expected: 8 CPU"),
        ({"left": {"replicas": 9}}, "found: 4 CPU.*expected: 11 CPU"),
        ({"judge": {"num_gpus": 3}}, "judge.*found: 4 CPU, 2 GPU.*expected: 1 CPU, 3 GPU"),
        ({"judge": {"resources": {"tpu": 1}}}, "0 tpu"),
    ],
)
def test_a_cluster_that_is_too_small_is_an_error_before_any_actor(folder, cluster, options, message):
    with pytest.raises(InputError, match=f"(?s){message}.*what to do"):
        load_mas_system(folder, executor="ray", executor_options=options)


def test_what_others_hold_is_named(folder, remote, monkeypatch):
    from recursivemas.distributed import ray_executor

    monkeypatch.setattr(ray_executor, "GRACE", 1)
    with pytest.raises(InputError, match=r"(?s)Others hold.*0 CPU free.*shutdown"):
        load_mas_system(folder, executor="ray")


def test_what_actors_and_ray_warn_of_is_heard(monkeypatch, folder):
    def begin(**kwargs):
        assert kwargs.get("log_to_driver", True)
        raise InterruptedError

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", begin)
    with pytest.raises(InterruptedError):
        load_mas_system(folder, executor="ray")


def test_a_wrong_option_is_named(folder, cluster):
    with pytest.raises(ConfigError, match="nobody"):
        load_mas_system(folder, executor="ray", executor_options={"nobody": {}})
    with pytest.raises(ConfigError, match="gpus"):
        load_mas_system(folder, executor="ray", executor_options={"left": {"gpus": 1}})
    with pytest.raises(InputError, match="dask"):
        load_mas_system(folder, executor="dask")


def test_roles_of_one_base_live_in_one_actor_unless_their_options_differ(cluster, tmp_path):
    path, links = tmp_path / "system", [{"source": role, "target": "judge"} for role in ("left", "right")]
    architectures = {"left": "llama", "right": "qwen3", "judge": "llama"}
    tiny_system(architectures, [["left", "right"], ["judge"]], links, "judge").save_pretrained(path)
    content = json.loads((path / "config.json").read_text())
    content["agents"]["judge"]["source"] = "agents/left"
    (path / "config.json").write_text(json.dumps(content))
    once = {**SETTINGS, "num_rounds": 1}
    local = load_mas_system(path)
    expected = local.solve(QUESTIONS, batch_size=2, **once)
    options = {role: {"num_cpus": 0} for role in architectures}  # others hold all of the cluster's
    remote = load_mas_system(path, executor="ray", executor_options=options)
    assert remote.executor.hosts == {"left": "left", "right": "right", "judge": "left"}
    got = remote.solve(QUESTIONS, batch_size=2, **once)
    remote.executor.shutdown()
    for one, other in zip(expected, got, strict=True):
        assert one.text == other.text
        for name in ("prompt_tokens", "latent_positions", "slot_positions", "new_tokens"):
            assert one.usage[name] == other.usage[name]
    apart = load_mas_system(path, executor="ray", executor_options=options | {"judge": {"num_cpus": 0, "replicas": 1}})
    assert apart.executor.hosts["judge"] == "judge"
    apart.executor.shutdown()


def test_tools_answer_in_messages_and_answers_over_actors_as_in_one_process(cluster):
    source = ROOT / "systems" / "deliberation"
    rows = registers.generate(8, [3, 4], seed=41)
    questions = [row["question"] for row in rows]
    local = load_mas_system(source)
    remote = load_mas_system(source, executor="ray", executor_options={r: {"num_cpus": 0} for r in local.agents})
    boxes = [{"python": calculator}, {"python": lambda text: "7"}, {}]
    with pytest.raises(InputError, match="functions for search"):
        remote.config.tools = {"toolcaller": ["search"]}
        remote.solve(questions, num_rounds=2, mode="text")
    for mas in (local, remote):
        mas.config.tools = {"toolcaller": ["python"]}
    said = []
    for mode, tools in [("text", boxes[0]), *(("latent", box) for box in boxes)]:
        settings = {"num_rounds": 2, "mode": mode, "tools": tools, "batch_size": 4}
        expected, got = local.solve(questions, **settings), remote.solve(questions, **settings)
        assert [one.text for one in got] == [one.text for one in expected]
        assert [one.messages for one in got] == [one.messages for one in expected]
        assert [one.usage["new_tokens"] for one in got] == [one.usage["new_tokens"] for one in expected]
        said.append([one.text for one in got])
        results = [text.count("<result>") for text in said[-1]]
        assert sum(results) == 0 if not tools else all(results)
        if mode == "text":
            assert any("<result>" in one.messages[1, "toolcaller"] for one in got)
    assert said[1] != said[2]
    remote.executor.shutdown()
