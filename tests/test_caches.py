"""Caches that grow in place, heads of prompts that are read once, and the faster matrix products."""

import copy
import pickle
from functools import partial

import pytest
import torch
from recursivemas import caches_recursivemas as caches
from recursivemas.batching_recursivemas import PromptBuilder, embed_rows
from recursivemas.kernels_recursivemas import use_fast_linear
from recursivemas.prompts_recursivemas import Slot
from tiny import ARCHITECTURES, chain_prompts, tiny_agent, tiny_chain
from transformers.cache_utils import DynamicLayer


def random_states(length, batch=2):
    return torch.randn(batch, 3, length, 4), torch.randn(batch, 3, length, 5)


@torch.no_grad()
def test_a_growing_layer_holds_what_transformers_own_layer_holds():
    torch.manual_seed(0)
    plain, growing = DynamicLayer(), caches.GrowingLayer()
    changes = [
        lambda layer: layer.crop(-5),
        lambda layer: layer.reorder_cache(torch.tensor([1, 1])),
        lambda layer: (layer.batch_repeat_interleave(2), layer.batch_select_indices(torch.tensor([3, 0]))),
        lambda layer: layer.reset(),
    ]
    for change in changes:
        for length in (7, 1, 1, 200, 1):
            states = random_states(length)
            for expected, got in zip(plain.update(*states), growing.update(*states), strict=True):
                assert torch.equal(expected, got)
        for layer in (plain, growing):
            change(layer)
        assert plain.get_seq_length() == growing.get_seq_length()


@torch.no_grad()
def test_a_copy_of_a_growing_layer_goes_its_own_way():
    layer = caches.GrowingLayer()
    layer.update(*random_states(4))
    other = copy.deepcopy(layer)
    for each in (layer, other):
        each.update(*random_states(1))
    assert torch.equal(layer.keys[:, :, :4], other.keys[:, :, :4])
    assert not torch.equal(layer.keys[:, :, 4], other.keys[:, :, 4])


@torch.no_grad()
def test_a_step_does_not_copy_what_is_cached():
    layer = caches.GrowingLayer()
    place = layer.update(*random_states(50))[0].data_ptr()
    assert {layer.update(*random_states(1))[0].data_ptr() for _ in range(100)} == {place}


def test_gradients_flow_through_a_growing_cache():
    """Two latent steps with a cache against the same without; in-place writes would break the backward pass."""
    agent = tiny_agent("qwen3", "solo")
    grads = []
    for cached in (True, False):
        torch.manual_seed(1)
        start = torch.randn(1, 6, agent.hidden_size, requires_grad=True)
        cache = agent.new_cache() if cached else None
        thought = agent.inner_link(agent.encode(start, None, cache)[:, -1:])
        second = agent.encode(thought if cached else torch.cat([start, thought], dim=1), None, cache)[:, -1]
        second.square().sum().backward()
        grads.append(start.grad)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_a_prefix_opens_as_it_was_after_any_use(architecture):
    agent = tiny_agent(architecture, "solo")
    torch.manual_seed(2)
    head, tail = torch.randn(1, 20, agent.hidden_size), torch.randn(1, 5, agent.hidden_size)
    cache = agent.new_cache()
    agent.encode(head, None, cache)
    prefix = caches.Prefix(cache, torch.ones(1, 20, dtype=torch.long))
    expected = agent.encode(torch.cat([head, tail], dim=1), None)[:, -5:]
    for use in range(3):
        opened = prefix.open(last_use=use == 2)
        torch.testing.assert_close(agent.encode(tail, None, opened), expected, atol=1e-4, rtol=1e-4)
        agent.encode(tail, None, opened)  # goes on from there


def positions_read(mas, monkeypatch, call):
    """Role -> (rows x positions) of every forward pass."""
    read = {}
    for role, agent in mas.agents.items():
        read[role] = []

        def note(module, args, kwargs, role=role):
            read[role].append(tuple((kwargs["inputs_embeds"] if kwargs.get("inputs_embeds") is not None
                                     else kwargs["input_ids"]).shape[:2]))  # fmt: skip

        handle = agent.decoder.register_forward_pre_hook(note, with_kwargs=True)
        monkeypatch.setattr(agent, "_test_handle", handle, raising=False)
    result = call()
    for agent in mas.agents.values():
        agent._test_handle.remove()
    return read, result


def test_what_all_rows_start_with_is_read_for_one_row(monkeypatch):
    settings = {"num_rounds": 2, "latent_steps": 3, "max_new_tokens": 4}
    mas = tiny_chain()
    stages, links = mas.config.stages, mas.config.links
    prompts = chain_prompts(stages, links, system="A long text that every agent is told before every question.")
    questions = ["Why?", "How many apples are 12 + 3 apples?", "Who knows?"]
    read, together = positions_read(mas, monkeypatch, lambda: mas.solve(questions, prompts=prompts, **settings))
    for role in mas.agents:
        (rows, shared), (next_rows, _) = read[role][:2]
        assert rows == 1 and shared > 50 and next_rows == 3
    for question, solution in zip(questions, together, strict=True):
        assert mas.solve([question], prompts=prompts, **settings)[0].text == solution.text


def test_generate_reads_no_more_than_solve(chain, monkeypatch):
    """The decoding agent's head is cached between its feedback and its answer, whichever door the question came in."""
    question = "How many apples are 12 + 3 apples?"
    inputs = chain.tokenizer(question, return_tensors="pt")
    settings = {"num_rounds": 3, "latent_steps": 3, "max_new_tokens": 4}
    by_solve, _ = positions_read(chain, monkeypatch, lambda: chain.solve([question], **settings))
    by_generate, _ = positions_read(chain, monkeypatch, lambda: chain.generate(**inputs, **settings))
    assert by_generate == by_solve
    (
        head,
        first,
        *_,
    ) = by_solve["solver"]
    last = by_solve["solver"][-4]  # the answer's prompt; then three tokens one by one
    assert last == first and head[1] > 2 * last[1]


@pytest.mark.parametrize("door", ["solve", "generate"])
def test_without_a_cache_the_last_prompt_is_read_anew(chain, monkeypatch, door):
    """What an agent writes goes on from its cached head, unless `use_cache=False`; the answer is the same."""
    question = {"questions": "Why?"} if door == "solve" else chain.tokenizer("Why?", return_tensors="pt")
    answer = partial(getattr(chain, door), **question, num_rounds=3, latent_steps=3, max_new_tokens=2)
    with_cache, expected = positions_read(chain, monkeypatch, answer)
    without, found = positions_read(chain, monkeypatch, partial(answer, use_cache=False))
    assert found[0].text == expected[0].text if door == "solve" else torch.equal(found, expected)
    head, *_, tail, _ = (positions for _, positions in with_cache["solver"])
    assert without["solver"][-2] == (1, head + tail)


def test_text_hand_over_with_beams_works(chain):
    """Beam search cannot continue a cache of one row, so that its prompts come without one."""
    (solution,) = chain.solve("Why?", mode="text", num_rounds=3, num_beams=2, message_tokens=4, max_new_tokens=4)
    assert len(solution.messages) == 8


def test_steps_of_a_padded_batch_build_no_mask(chain, monkeypatch):
    """transformers makes a mask out of a 2-d one at every step, and waits for the device to look at it."""
    agent = chain.agents["planner"]
    embeds = torch.randn(2, 12, agent.hidden_size)
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[0, :4] = 0
    seen = []
    handle = agent.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["attention_mask"].ndim), with_kwargs=True
    )
    with torch.no_grad():
        agent.rollout(embeds, mask, 4)
    handle.remove()
    assert seen == [2, 4, 4, 4]


def test_fast_linear_layers_compute_the_same_and_keep_gradients():
    linear = torch.nn.Linear(48, 64)
    expected = torch.nn.functional.linear
    use_fast_linear(linear, least_weights=0)
    assert type(linear) is not torch.nn.Linear and isinstance(linear, torch.nn.Linear)
    torch.manual_seed(3)
    for shape in ((48,), (1, 48), (7, 48), (2, 5, 48), (0, 48)):
        inputs = torch.randn(*shape)
        with torch.no_grad():
            torch.testing.assert_close(linear(inputs), expected(inputs, linear.weight, linear.bias))
    linear(torch.randn(2, 48)).sum().backward()
    assert linear.weight.grad is not None
    other = pickle.loads(pickle.dumps(copy.deepcopy(linear)))
    with torch.no_grad():
        other.weight.zero_()
        assert torch.equal(other(torch.randn(3, 48)), linear.bias.expand(3, 64))
        half = other.to(torch.bfloat16)
        assert half(torch.randn(3, 48, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.slow
@torch.no_grad()
def test_compiled_steps_compute_the_same():
    agent = tiny_agent("qwen3", "solo")
    torch.manual_seed(4)
    for length in (12, 31):  # of one capacity: one graph
        embeds, mask = torch.randn(2, length, agent.hidden_size), torch.ones(2, length, dtype=torch.long)
        mask[0, :5] = 0
        agent.compile_steps(False)
        expected = agent.rollout(embeds, mask, 6)
        agent.compile_steps()
        for _ in range(2):
            got = agent.rollout(embeds, mask, 6)
            assert agent._compiled_steps.steps_taken == 5
            torch.testing.assert_close(got.hidden_states, expected.hidden_states, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(got.latents, expected.latents, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_steps_that_cannot_be_compiled_run_without_and_say_so_once(monkeypatch, caplog):
    def cannot(*_, **__):
        raise RuntimeError("no compiler here")

    agent = tiny_agent("llama", "solo")
    embeds, mask = torch.randn(1, 9, agent.hidden_size), torch.ones(1, 9, dtype=torch.long)
    expected = agent.rollout(embeds, mask, 4)
    monkeypatch.setattr(torch, "compile", lambda *_, **__: cannot)
    agent.compile_steps()
    for _ in range(2):
        assert torch.equal(agent.rollout(embeds, mask, 4).latents, expected.latents)
    assert caplog.text.count("no compiler here") == 1


@pytest.mark.parametrize("when", ["before the heads are read", "behind"])
@torch.no_grad()
def test_rows_that_are_left_of_a_batch_go_on_behind_their_own_heads(when):
    """In another order, of different lengths, and as if nothing had been read before."""
    agent, generator = tiny_agent("llama", "solo"), torch.Generator().manual_seed(0)
    ids = [torch.randint(3, 20, (length,), generator=generator).tolist() for length in (40, 33, 25)]
    pieces = [[head, Slot("other"), [5, 6, 7]] for head in ids]
    sent = [torch.randn(2, agent.hidden_size, generator=generator) for _ in pieces]
    builder = PromptBuilder(agent, {"first": pieces}, uses=3)
    if when == "behind":
        builder.build("first", {"other": sent})
    left = [2, 0]
    prompt, _ = builder.narrowed(left).build("first", {"other": [sent[row] for row in left]})
    assert prompt.past > 0
    found = agent.encode(prompt.inputs_embeds[:, prompt.past :], prompt.attention_mask, prompt.past_key_values)
    for row, place in enumerate(left):
        embeds, mask = embed_rows(agent, [[ids[place], sent[place], [5, 6, 7]]])
        torch.testing.assert_close(found[row, -1], agent.encode(embeds, mask)[0, -1], atol=1e-5, rtol=1e-5)


class Quantised(torch.Tensor):
    """Weights that know how linear layers multiply with them, and nothing else."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.nn.functional.linear:
            return args[0] @ args[1].as_subclass(torch.Tensor).round().T
        if "mkldnn" in str(func):
            raise NotImplementedError(func)
        return super().__torch_function__(func, types, args, kwargs or {})


@torch.no_grad()
def test_quantised_weights_that_call_themselves_float32_compute_in_their_own_way():
    layer, inputs = torch.nn.Linear(8, 4, bias=False), torch.randn(2, 8)
    use_fast_linear(layer, least_weights=1)
    weights = torch.randn(4, 8) * 3
    layer.weight = torch.nn.Parameter(weights.as_subclass(Quantised), requires_grad=False)
    assert layer.weight.dtype == torch.float32
    torch.testing.assert_close(layer(inputs), inputs @ weights.round().T)
