"""The page: asked as a browser asks it, over the loopback interface."""

import argparse
import dataclasses
import html
import os
import socket
from functools import partial

import pytest
from recursivemas import app
from recursivemas.errors_recursivemas import InputError
from recursivemas.runs_recursivemas import MODES
from recursivemas.solutions_recursivemas import Solution
from recursivemas.system_loader import ROOT, small_systems

QUESTION = "Why?"


def test_every_mode_shows_its_turns_and_then_its_answer_and_cost(chain):
    seen = list(app.answers(chain, QUESTION, [*MODES], 1, 2, max_new_tokens=4))
    for mode in MODES:
        (solution,) = chain.solve(QUESTION, mode=mode, num_rounds=1, latent_steps=2, max_new_tokens=4)
        texts = [changed[mode] for changed in seen if mode in changed]
        assert f"{solution.usage['latent_positions']} latent steps" in texts[-1]
        assert f"{solution.usage['new_tokens']} tokens written" in texts[-1]
        turns = len(chain.topology.schedule(1)) if mode != "alone" else 1
        assert len(texts) == turns + 1
    after_latents, after_text = (changed["trace"] for changed in seen if "trace" in changed)
    assert "over text" in after_text and "over text" not in after_latents
    assert [*app.answers(chain, QUESTION, ["alone"], 1, 2, max_new_tokens=4)][-1].keys() == {"alone"}


def test_who_stops_looking_stops_the_run(chain):
    steps = []

    def call(on_turn, on_step):
        def counted():
            steps.append(1)
            on_step()

        chain.solve(QUESTION, num_rounds=400, latent_steps=50, on_turn=on_turn, on_step=counted)

    events = app.steps_of(call)
    assert next(events) == ("turn", 1, "planner")
    events.close()  # returns when the thread has ended
    assert len(steps) < 400 * 50


@pytest.mark.parametrize("question, modes, message", [(" ", ["latent"], "question"), (QUESTION, [], "mode")])
def test_an_error_is_told(question, modes, message, chain):
    with pytest.raises(InputError, match=message):
        list(app.answers(chain, question, modes, 1, 1))


def test_an_answer_is_shown_as_it_stands():
    """`5*3+8*2` is no emphasis, and `<b>` no tag."""
    text = "5*3+8*2 <b>_1_</b>"
    usage = {"latent_positions": 1, "new_tokens": 2, "prompt_tokens": 3}
    shown = app.as_card(Solution(text=text, answer=text, usage=usage), 0.5)
    assert html.escape(text) in shown and "<b>" not in shown
    shown = app.as_card(Solution(text=r"so \boxed{7}", answer="7", usage=usage), 0.5)
    assert ">7</p>" in shown and r"so \boxed{7}" in shown


def test_systems_are_loaded_when_they_are_chosen_and_the_small_stay(chain, monkeypatch):
    loads, threads = [], []
    monkeypatch.setattr(app.torch, "set_num_threads", threads.append)
    monkeypatch.setattr(app, "THREADS", 7)

    def shelf():
        return app.Shelf(
            [app.Offer(name, chain, partial(lambda name: loads.append(name) or chain, name)) for name in "ab"]
        )

    small = shelf()
    assert loads == []
    for name in "abab":
        assert small.take(name) is chain
    assert loads == ["a", "b"] and set(threads) == {1}
    monkeypatch.setattr(app, "SMALL_AGENT", 0)  # now they are large: only the last one stays
    large = shelf()
    for name in "abba":
        large.take(name)
    assert loads == ["a", "b", "a", "b", "a"] and threads[-1] == 7


@pytest.fixture(scope="module")
def shipped():
    parser = argparse.ArgumentParser()
    app.configure(parser)
    return app.offers_of(parser.parse_args([]))


@pytest.mark.slow
def test_every_small_system_that_ships_is_offered_with_questions_that_it_answers_right(shipped):
    assert [name for name in small_systems() if not name.startswith("small/smollm2")] == [
        offer.name for offer in shipped if not offer.name.startswith("small/smollm2")
    ]
    assert set(app.SHIPPED) == set(small_systems())
    for offer in shipped:
        assert offer.about and len(offer.examples) == app.MOST_EXAMPLES
        if offer.name.startswith("small/smollm2"):  # where it is at hand; a real model is not always right
            continue
        mas = offer.load()
        rows = [{name: row[name] for name in mas.input_fields} for row in offer.examples]
        for inputs, solution in zip(rows, mas.solve(rows, **offer.arguments), strict=True):
            assert app.verdict_of(offer, inputs, solution) == '<p class="right">✓ right</p>'
        assert "✗" in app.verdict_of(offer, rows[0], dataclasses.replace(solution, text="?", answer="?"))
        assert app.verdict_of(offer, {"question": "another"}, solution) == ""


def test_systems_and_examples_of_the_command_line_are_offered():
    parser = argparse.ArgumentParser()
    app.configure(parser)
    words = ["--system", "small/mixture", "--system", str(ROOT), "--example", QUESTION, "--max-new-tokens", "5"]
    mixture, sequential = app.offers_of(parser.parse_args(words))
    assert (mixture.name, sequential.name) == ("small/mixture", str(ROOT))
    assert mixture.examples[0] == {"question": QUESTION} and mixture.arguments["max_new_tokens"] == 5
    assert sequential.about  # it is the one that ships, whatever it is called
    with pytest.raises(InputError, match="No such small system"):
        app.offers_of(parser.parse_args(["--system", "small/none"]))


@pytest.mark.slow
def test_the_page_is_served_and_answers(chain, monkeypatch):
    pytest.importorskip("gradio", reason="needs the extra [app]")
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    monkeypatch.setitem(os.environ, "GRADIO_ANALYTICS_ENABLED", "False")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = app.build_page(chain, [QUESTION], max_new_tokens=4)
    app.launch(page, "127.0.0.1", port, wait=False)
    try:
        client = Client(f"http://127.0.0.1:{port}", verbose=False)
        *found, shown = client.predict(QUESTION, [*MODES], 2, 3, api_name="/ask")
        assert all("tokens written" in text for text in found)
        assert shown.startswith("<iframe") and "planner" in shown and "<script" not in shown
        with pytest.raises(AppError):
            client.predict("", [*MODES], 2, 3, api_name="/ask")
    finally:
        page.close()
