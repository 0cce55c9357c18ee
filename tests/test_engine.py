"""The fast path against the slow oracle of reference.py, and the laws of batches, halting and text hand-over."""

import threading

import pytest
import torch
from recursivemas.batching_recursivemas import PromptBuilder
from reference import reference_prompt, reference_solve, reference_think
from tiny import ARCHITECTURES, BEYOND, chain_links, chain_prompts, tiny_agent, tiny_chain, tiny_system

QUESTIONS = ["Why?", "How many apples are 12 + 3 apples?", "A longer question, about nothing at all, or nearly so."]
NEW_TOKENS = 8
# Two-agent systems in which every architecture of the release thinks, sends, receives and (once) decodes.
PAIRS = [("llama", "qwen3"), ("qwen2", "llama"), ("gemma3_text", "qwen2"), ("mistral", "gemma3_text"),
         ("qwen3_5_text", "mistral"), ("qwen3", "qwen3_5_text")]  # fmt: skip


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def pair(request):
    return tiny_chain(dict(zip(("first", "second"), request.param, strict=True)))


def assert_equals_reference(mas, num_rounds, latent_steps, questions=QUESTIONS):
    solutions = mas.solve(
        questions,
        num_rounds=num_rounds,
        latent_steps=latent_steps,
        max_new_tokens=NEW_TOKENS,
        return_latents=True,
    )
    decoder = mas.agents[mas.config.decoding_role]
    compared = 0
    for question, solution in zip(questions, solutions, strict=True):
        ids, latents = reference_solve(mas, question, num_rounds, latent_steps, NEW_TOKENS)
        assert solution.text == decoder.decode(ids)
        for key, sent in solution.latents.items():
            torch.testing.assert_close(sent, latents[key], atol=1e-4, rtol=1e-4)
            compared += 1
    return compared


@pytest.mark.parametrize("num_rounds", [1, 2, 4])
@pytest.mark.parametrize("latent_steps", [0, pytest.param(1, marks=pytest.mark.slow), 7])
def test_the_fast_path_equals_the_slow_reference(pair, num_rounds, latent_steps):
    compared = assert_equals_reference(pair, num_rounds, latent_steps)
    # Every link of every round but the last one's feedback was compared, for every question.
    assert compared == (2 * num_rounds - 1) * len(QUESTIONS) * (latent_steps > 0)


@pytest.mark.parametrize("architecture", ARCHITECTURES | BEYOND)
def test_latent_thoughts_are_the_last_hidden_states(architecture):
    """`think` against the model's own `output_hidden_states`, recomputing everything, for a left-padded batch."""
    agent = tiny_agent(architecture, "solo")
    torch.manual_seed(3)
    rows = [torch.randn(1, length, agent.hidden_size) for length in (5, 19)]
    embeds, mask = torch.zeros(2, 19, agent.hidden_size), torch.zeros(2, 19, dtype=torch.long)
    for row, values in enumerate(rows):
        embeds[row, 19 - values.shape[1] :], mask[row, 19 - values.shape[1] :] = values[0], 1
    with torch.no_grad():
        hidden_states = agent.think(embeds, mask, 7)
    assert hidden_states.shape == (2, 7, agent.hidden_size)
    for row, values in enumerate(rows):
        torch.testing.assert_close(hidden_states[row], reference_think(agent, values, 7), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES | BEYOND)
@torch.no_grad()
def test_logits_of_hidden_states_are_the_models_own(architecture):
    """Scaled (Cohere, Granite) and capped (Gemma 2) as the model does it."""
    agent = tiny_agent(architecture, "solo")
    output = agent.model(input_ids=torch.arange(3, 9)[None], output_hidden_states=True)
    torch.testing.assert_close(agent.logits(output.hidden_states[-1]), output.logits)


def test_parallel_roles_and_several_slots_equal_the_slow_reference():
    """Mixture: three specialists side by side, one summarizer with three slots and three feedback links."""
    experts = ["math", "code", "science"]
    links = [{"source": e, "target": "summarizer"} for e in experts]
    links += [{"source": "summarizer", "target": e, "feedback": True} for e in experts]
    architectures = {"math": "qwen2", "code": "qwen3", "science": "mistral", "summarizer": "llama"}
    mas = tiny_system(architectures, [experts, ["summarizer"]], links, "summarizer")
    # 3 links forward a round, 3 back between the rounds, for each question
    assert assert_equals_reference(mas, 2, 3) == 9 * len(QUESTIONS)


def test_roles_of_a_stage_on_different_devices_run_at_the_same_time(monkeypatch):
    """Each of the two waits inside its rollout until the other is there too; then the answers are the usual ones."""
    links = [{"source": role, "target": "judge"} for role in ("left", "right")]
    architectures = {"left": "llama", "right": "qwen3", "judge": "qwen2"}
    mas = tiny_system(architectures, [["left", "right"], ["judge"]], links, "judge", num_rounds=1)
    expected = [solution.text for solution in mas.solve(QUESTIONS, max_new_tokens=4)]
    kind, meeting = type(mas.agents["left"]), threading.Barrier(2, timeout=30)
    index = {"left": 0, "right": 1, "judge": 0}
    monkeypatch.setattr(kind, "device", property(lambda agent: torch.device("cpu", index[agent.role])))
    rollout = kind.rollout

    def waiting(agent, *arguments):
        meeting.wait()
        return rollout(agent, *arguments)

    monkeypatch.setattr(kind, "rollout", waiting)
    solutions = mas.solve(QUESTIONS, max_new_tokens=4)
    assert [solution.text for solution in solutions] == expected
    assert [solution.usage["latent_positions"] for solution in solutions] == [8, 8, 8]


def test_a_topology_that_nobody_foresaw_runs():
    """Five roles; two links into one role; a decoder in the middle stage; feedback from and to several roles."""
    stages = [["scout"], ["left", "right"], ["judge"], ["scribe"]]
    links = [
        {"source": "scout", "target": "left"},
        {"source": "scout", "target": "right"},
        {"source": "left", "target": "judge"},
        {"source": "right", "target": "judge"},
        {"source": "judge", "target": "scribe"},
        {"source": "scribe", "target": "scout", "feedback": True},
        {"source": "judge", "target": "left", "feedback": True},
        {"source": "scribe", "target": "judge", "feedback": True},
    ]
    architectures = {"scout": "qwen3", "left": "llama", "right": "qwen2", "judge": "mistral", "scribe": "gemma3_text"}
    mas = tiny_system(architectures, stages, links, "judge")
    assert assert_equals_reference(mas, 3, 3) == (8 + 8 + 4) * len(QUESTIONS)


def test_a_role_that_hears_from_nobody_thinks_the_same_in_every_round():
    links = [
        {"source": "scout", "target": "judge"},
        {"source": "judge", "target": "scribe"},
        {"source": "scribe", "target": "judge", "feedback": True},
    ]
    architectures = {"scout": "qwen3", "judge": "gemma3_text", "scribe": "llama"}
    mas = tiny_system(architectures, [[role] for role in architectures], links, "scribe")
    assert assert_equals_reference(mas, 3, 3) == (3 * 2 + 2) * len(QUESTIONS)


@pytest.mark.parametrize("mode", ["latent", "text", "alone"])
def test_answers_of_a_batch_equal_the_answers_one_by_one(chain, mode):
    """In the order of the questions, which are batched by their lengths."""
    settings = {"mode": mode, "num_rounds": 3, "max_new_tokens": NEW_TOKENS}
    questions = [QUESTIONS[1], QUESTIONS[2], QUESTIONS[0]]
    together = chain.solve(questions, **settings)
    assert [s.text for s in together] == [chain.solve([q], **settings)[0].text for q in questions]
    by_twos = chain.solve(questions, batch_size=2, **settings)
    assert [s.text for s in together] == [s.text for s in by_twos]
    assert len({s.text for s in together}) > 1


def test_text_mode_hands_over_what_each_agent_would_write(chain):
    question, decode = QUESTIONS[1], {}
    solution = chain.solve([question], mode="text", num_rounds=2, message_tokens=5, max_new_tokens=NEW_TOKENS)[0]
    for round_index, role in chain.topology.schedule(2):
        agent = chain.agents[role]
        received = {}
        for link in chain.topology.incoming(role, round_index):
            ids = chain.renderers[role].message_ids(decode[round_index - link.feedback, link.source])
            received[link.source] = agent.embed(torch.tensor(ids, dtype=torch.long))
        phase = "first" if round_index == 1 else "feedback"
        embeds = reference_prompt(chain, role, phase, question, "default", received)
        limit = NEW_TOKENS if (round_index, role) == (2, "solver") else 5
        ids = agent.model.generate(inputs_embeds=embeds, max_new_tokens=limit, do_sample=False)[0].tolist()
        decode[round_index, role] = agent.decode(ids)
    assert solution.text == decode.pop((2, "solver"))
    assert solution.messages == decode


def test_usage_counts_what_was_read_thought_and_written(chain):
    for question in QUESTIONS:
        usage = chain.solve([question], num_rounds=2, latent_steps=5, max_new_tokens=3)[0].usage
        tokens = 0
        for round_index, role in chain.topology.schedule(2):
            phase = "first" if round_index == 1 else "feedback"
            templates = chain.config.prompts[role]["default"]
            pieces = chain.renderers[role].pieces(chain.config.prompts[role]["system"], templates[phase], question)
            tokens += sum(len(piece) for piece in pieces if isinstance(piece, list))
        assert usage["prompt_tokens"] == tokens
        assert usage["latent_positions"] == 5 * 5  # five rollouts of five steps before the decoder's turn
        assert 1 <= usage["new_tokens"] <= 3
        assert set(usage["seconds"]) == {
            "round 1, planner", "round 1, critic", "round 1, solver", "round 2, planner", "round 2, critic", "answer"
        }  # fmt: skip


def test_zero_latent_steps_send_nothing_and_run_nobody_else(chain):
    solution = chain.solve(QUESTIONS[:1], latent_steps=0, max_new_tokens=2)[0]
    assert solution.usage["latent_positions"] == 0
    assert list(solution.usage["seconds"]) == ["answer"]


class HaltAt:
    """Stands in for the end-of-sequence test: row by row, the step at which the agent has finished."""

    def __init__(self, steps):
        self.steps, self.step = torch.tensor(steps), -1

    def __call__(self, token_ids, ending):
        self.step += 1
        return self.steps == self.step


def test_a_halted_row_keeps_its_thoughts_and_disturbs_no_other(monkeypatch):
    agent = tiny_agent("llama", "solo")
    torch.manual_seed(3)
    embeds, mask = torch.randn(3, 9, agent.hidden_size), torch.ones(3, 9, dtype=torch.long)
    with torch.no_grad():
        free = agent.rollout(embeds, mask, 6)
        monkeypatch.setattr(agent, "_is_end", HaltAt([2, 0, 99]))
        halted = agent.rollout(embeds, mask, 6, halting=True)
    assert free.lengths.tolist() == [6, 6, 6]
    assert halted.lengths.tolist() == [2, 0, 6]
    torch.testing.assert_close(halted.latents[0, :2], free.latents[0, :2])
    torch.testing.assert_close(halted.latents[2], free.latents[2])


@torch.no_grad()
def test_nobody_thinks_on_when_every_row_has_ended(monkeypatch):
    agent = tiny_agent("llama", "solo")
    monkeypatch.setattr(agent, "_is_end", HaltAt([1, 0]))
    embeds, mask = torch.randn(2, 9, agent.hidden_size), torch.ones(2, 9, dtype=torch.long)
    halted = agent.rollout(embeds, mask, 6, halting=True)
    assert halted.lengths.tolist() == [1, 0] and halted.hidden_states.shape[1] == 2


@pytest.mark.parametrize(
    "architectures", [("qwen3", "llama", "qwen2"), ("gemma3_text",) * 2, ("qwen3_5_text",) * 2], ids="-".join
)
def test_halting_sends_only_what_came_before_the_end(monkeypatch, architectures):
    """Rows that stop at different steps leave prompts of different lengths; each equals its own single run."""
    mas = tiny_chain(dict(zip(("first", "second", "third"), architectures, strict=False)))
    stops = dict(zip(QUESTIONS, [3, 0, 5], strict=True))

    def run(questions):
        for agent in mas.agents.values():
            original = type(agent).rollout
            order = sorted(questions, key=len)

            def rollout(*args, agent=agent, original=original, order=order):
                monkeypatch.setattr(agent, "_is_end", HaltAt([stops[q] for q in order]))
                return original(agent, *args)

            monkeypatch.setattr(agent, "rollout", rollout)
        return mas.solve(
            questions, num_rounds=4, latent_steps=6, latent_halting=True, max_new_tokens=4, return_latents=True
        )

    together = run(QUESTIONS)
    for question, solution in zip(QUESTIONS, together, strict=True):
        (single,) = run([question])
        assert single.text == solution.text
        assert {len(sent) for sent in solution.latents.values()} == {stops[question]}
        for key, sent in solution.latents.items():
            torch.testing.assert_close(sent, single.latents[key], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_nearest_token_of_an_embedding_is_the_token(architecture):
    agent = tiny_agent(architecture, "solo")
    ids = torch.arange(len(agent.tokenizer))
    assert torch.equal(agent.nearest_token_ids(agent.embed(ids)), ids)
    torch.manual_seed(6)
    everything = agent.embed(ids).detach()
    between = (everything[:50] + everything[50:100]) / 2 + everything.std() * torch.randn(50, agent.hidden_size) / 2
    assert torch.equal(agent.nearest_token_ids(between), torch.cdist(between, everything).argmin(-1))
    eos = agent.embed(torch.tensor(agent.eos_token_ids))
    other = agent.embed(torch.tensor([(agent.eos_token_ids[0] + 1) % len(ids)]))
    said = agent.nearest_token_ids(torch.cat([eos, other]))
    assert agent._is_end(said, torch.tensor(agent.eos_token_ids)).tolist() == [True, False]


@pytest.mark.parametrize("architecture", ["gemma3_text", "qwen3_5_text", "qwen2"])
def test_tails_of_different_lengths_are_exact_for_every_kind_of_cache(architecture):
    """After halting, a prompt's head is cached but tails differ: masked holes, which only full attention ignores."""
    links = chain_links("first", "second")
    mas = tiny_chain({"first": architecture, "second": architecture})
    agent, renderer = mas.agents["first"], mas.renderers["first"]
    templates = chain_prompts([["first"], ["second"]], links)["first"]["default"]
    rows = {phase: [renderer.pieces(None, templates[phase], q) for q in QUESTIONS] for phase in ("first", "feedback")}
    torch.manual_seed(5)
    sent = [torch.randn(n, agent.hidden_size) for n in (4, 0, 9)]
    with torch.no_grad():
        builder = PromptBuilder(agent, rows, uses=5)
        builder.build("first", {})
        prompt, _ = builder.build("feedback", {"second": [torch.randn(4, agent.hidden_size)] * len(QUESTIONS)})
        assert prompt.past > 0, "heads are cached: where tails are of one length, the prompt goes on from them"
        prompt, _ = builder.build("feedback", {"second": sent})
        hidden_states = agent.rollout(
            prompt.inputs_embeds[:, prompt.past :], prompt.attention_mask, 3, prompt.past_key_values
        ).hidden_states
        for row, question in enumerate(QUESTIONS):
            embeds = torch.cat(
                [sent[row] if not isinstance(p, list) else agent.embed(torch.tensor(p)) for p in rows["feedback"][row]]
            )
            expected = reference_think(agent, embeds[None], 3)
            torch.testing.assert_close(hidden_states[row], expected, atol=1e-4, rtol=1e-4, msg=question)


def test_bfloat16_agents_work_with_float32_links(chain_folder):
    from recursivemas.system_loader import load_mas_system

    mas = load_mas_system(chain_folder, dtype=torch.bfloat16)
    assert {agent.dtype for agent in mas.agents.values()} == {torch.bfloat16}
    assert {p.dtype for p in mas.outer_links.parameters()} == {torch.float32}
    solution = mas.solve(QUESTIONS, max_new_tokens=3, return_latents=True)[0]
    assert all(torch.isfinite(sent).all() for sent in solution.latents.values())
