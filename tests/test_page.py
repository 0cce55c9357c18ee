"""The page in a browser, as a person uses it (`make test-browser`)."""

import pytest
from recursivemas import app
from recursivemas.docs.screenshots import NARROW, WIDE, browser, opened, served, wait_for_answers
from recursivemas.errors_recursivemas import RecursiveMASError

pytestmark = pytest.mark.slow
QUESTION, ANSWER = "9-4*3+8-1+5*2", "4"  # six steps: two rounds


@pytest.fixture(scope="module")
def chromium():
    try:
        with browser() as found:
            yield found
    except RecursiveMASError as error:
        pytest.skip(f"no browser: {error}")


@pytest.fixture(scope="module")
def address(chromium):
    pytest.importorskip("gradio", reason="needs the extra [app]")
    import argparse

    parser = argparse.ArgumentParser()
    app.configure(parser)
    words = ["--system", "small/sequential", "--system", "small/mixture"]
    with served(app.offers_of(parser.parse_args(words))) as found:
        yield found


@pytest.fixture
def page(chromium, address):
    """A page on a desk; it may load nothing from elsewhere, and no script of it may fail."""
    found = opened(chromium, address, WIDE)
    problems = []
    found.on("pageerror", lambda error: problems.append(str(error)))
    found.on(
        "request",
        lambda request: request.url.startswith((address, "data:", "blob:", "about:")) or problems.append(request.url),
    )
    yield found
    found.context.close()
    assert problems == []


def test_a_question_is_answered_in_every_mode_and_its_trace_shown(page):
    page.get_by_label("Question").fill(QUESTION)
    page.get_by_role("button", name="Ask").click()
    latent, text, alone = wait_for_answers(page, 3)
    assert latent == text == ANSWER != alone
    assert alone.startswith("5*3+8")  # one step of it, as it was written: no Markdown
    costs = page.locator(".card .quiet").all_inner_texts()
    assert len(costs) == 3 and all("tokens written" in cost for cost in costs)
    trace = page.frame_locator("iframe.trace")
    assert trace.get_by_role("columnheader").all_inner_texts()[1].startswith("planner")
    assert trace.locator(".wrote").inner_text() == ANSWER
    prompt = trace.locator("details").first
    assert not prompt.locator("pre").is_visible()
    prompt.locator("summary").click()
    assert QUESTION in prompt.locator("pre").inner_text()
    frame, document = (page.locator("iframe.trace").bounding_box(), trace.locator("body").bounding_box())
    assert frame["height"] >= document["height"]  # nothing of it has to be scrolled for


def test_modes_and_rounds_are_what_was_chosen(page):
    page.get_by_label("Question").fill(QUESTION)
    page.get_by_label("text", exact=True).uncheck()
    page.get_by_label("one agent alone").uncheck()
    page.get_by_label("number input for Rounds").fill("1")
    page.get_by_role("button", name="Ask").click()
    assert wait_for_answers(page, 1) == ["3-1+5*2"]  # three of six steps
    assert page.locator(".answer").count() == 1


def test_everything_is_reached_by_keyboard(page):
    """In the field with the focus a question, Enter, an answer; then Tab to a mode, Space, and to Ask, Enter."""
    page.keyboard.type(QUESTION)
    page.keyboard.press("Enter")
    assert wait_for_answers(page, 3)[0] == ANSWER
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        name = "(document.activeElement.labels?.[0] ?? document.activeElement).innerText || ''"
        reached.append(page.evaluate(name).strip())
        if reached[-1] == "text":
            page.keyboard.press("Space")
        if reached[-1] == "Ask":
            break
    assert reached[-1] == "Ask" and {"latents", "text", "one agent alone"} <= set(reached)
    assert len([name for name in reached if name in page.locator(".examples").inner_text().split()]) == 3
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelectorAll('.answer').length == 2")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "Stop"


def test_another_system_brings_its_own_question_settings_and_examples(page):
    page.get_by_label("System").click()
    page.get_by_role("option", name="small/mixture").click()
    page.get_by_text("summarizer answers").wait_for()
    assert page.get_by_label("number input for Rounds").input_value() == "4"
    example = page.locator(".examples button").first
    example.click()
    wait_for_answers(page, 3)
    assert page.get_by_label("Question").input_value() == example.inner_text()
    assert page.locator(".card").first.locator(".right").is_visible()
    assert page.locator(".card").last.locator(".wrong").is_visible()
    assert page.locator(".card h3").last.inner_text() == "summarizer alone"


def test_an_error_is_shown_and_the_next_question_answered(page):
    page.get_by_label("Question").fill(" ")
    page.get_by_role("button", name="Ask").click()
    page.get_by_text("A question is empty").wait_for()
    page.get_by_label("Question").fill("<b>1</b>+")
    page.get_by_role("button", name="Ask").click()
    wait_for_answers(page, 3)
    assert page.frame_locator("iframe.trace").locator("h1").inner_text() == "<b>1</b>+"


@pytest.mark.parametrize("dark", [False, True])
def test_a_narrow_screen_shows_all_without_scrolling_sideways(dark, chromium, address):
    page = opened(chromium, address, NARROW, dark)
    page.locator(".examples button").nth(1).click()
    wait_for_answers(page, 3)
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW[0]
    inside = page.frames[-1]
    assert inside.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    for card in page.locator(".card").all():
        assert card.bounding_box()["width"] > NARROW[0] / 2  # one below the other
    page.context.close()
