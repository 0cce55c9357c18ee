"""The page: asked as a browser asks it, over the loopback interface."""

import os
import socket

import pytest
from recursivemas import app
from recursivemas.errors_recursivemas import InputError
from recursivemas.runs_recursivemas import MODES

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
    assert sum("trace" in changed for changed in seen) == 1
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


def test_an_error_is_told(chain):
    with pytest.raises(InputError, match="question"):
        list(app.answers(chain, " ", ["latent"], 1, 1))


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
        assert shown.startswith("<iframe") and "planner" in shown
        with pytest.raises(AppError):
            client.predict("", [*MODES], 2, 3, api_name="/ask")
    finally:
        page.close()
