"""A page to ask a system and see it think: answers over latents, over text and of one agent alone, with their cost.

The turns are shown as they are taken, then what was handed over (see `recursivemas trace`). Needs the extra
`recursivemas[app]`.

Examples:
  recursivemas app
  recursivemas app --system systems/deliberation --port 7861
"""

import argparse
import html
import queue
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from .errors_recursivemas import InputError, RecursiveMASError
from .evaluation.commands import add_system_arguments, load_from_arguments, solve_arguments
from .inspection.trace import as_page, trace
from .modeling_recursivemas import RecursiveMASModel
from .runs_recursivemas import MODES
from .solutions_recursivemas import Solution

if TYPE_CHECKING:
    from gradio import Blocks

MOST_ROUNDS, MOST_STEPS = 8, 64  # that the page's sliders offer


def steps_of(call: Callable[..., Any]) -> Iterator[tuple]:
    """Runs `call(on_turn=, on_step=)` in a thread.

    Yields:
        ("turn", round, role) after each turn, then ("done", what the call returned). What it raises is raised here;
        who stops listening ends it within a latent step.
    """
    events: queue.Queue[tuple] = queue.Queue()
    left = threading.Event()

    def on_step() -> None:
        if left.is_set():
            raise InterruptedError

    def work() -> None:
        try:
            events.put(("done", call(on_turn=lambda *turn: events.put(("turn", *turn)), on_step=on_step)))
        except BaseException as error:
            events.put(("error", error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            event = events.get()
            if event[0] == "error":
                raise event[1]
            yield event
            if event[0] == "done":
                return
    finally:
        left.set()
        thread.join()


def cost_of(usage: dict[str, Any], seconds: float) -> str:
    """What an answer cost, in words."""
    names = {"latent_positions": "latent steps", "new_tokens": "tokens written", "prompt_tokens": "tokens read"}
    return ", ".join([*(f"{usage[name]} {what}" for name, what in names.items()), f"{seconds:.2f} s"])


def answers(
    mas: RecursiveMASModel,
    question: str,
    modes: list[str],
    num_rounds: int,
    latent_steps: int,
    inputs: dict[str, str] | None = None,
    **arguments: Any,
) -> Iterator[dict[str, str]]:
    """The answers to a question by several modes, one after another.

    Args:
        mas: the system.
        question: the question.
        modes: some of `MODES`.
        num_rounds, latent_steps, arguments: of `solve`.
        inputs: the question's further fields.

    Yields:
        What changed: a mode -> its turns so far and then its answer and cost; "trace" -> the page of the trace.
    """
    asked = {**(inputs or {}), "question": question}
    settings = {**arguments, "num_rounds": int(num_rounds), "latent_steps": int(latent_steps)}
    for mode in (mode for mode in MODES if mode in modes):
        started, taken = time.perf_counter(), []
        looked_at = mode == "latent"
        call: Callable[..., Any] = (
            partial(trace, mas, asked, ("latent",), **settings)
            if looked_at
            else partial(mas.solve, asked, mode=mode, **settings)
        )
        for what, *values in steps_of(call):
            if what == "turn":
                taken.append("round {}, {}".format(*values))
                yield {mode: "  \n".join(taken)}
                continue
            (found,) = values
            if looked_at:
                text, usage = found["ways"]["latent"]["text"], found["ways"]["latent"]["usage"]
                yield {"trace": as_page(found)}
            else:
                solution: Solution = found[0]
                text, usage = solution.text, solution.usage
            shown = html.escape(text, quote=False) or "(nothing)"
            yield {mode: f"### {shown}\n\n{cost_of(usage, time.perf_counter() - started)}"}


def build_page(mas: RecursiveMASModel, examples: list[str] | None = None, **arguments: Any) -> "Blocks":
    """The page of a system.

    Args:
        mas: the system.
        examples: questions to choose from.
        arguments: of `solve`, that the page does not choose.

    Raises:
        InputError: gradio is not installed.
    """
    try:
        import gradio
    except ImportError as error:
        hint = "pip install recursivemas[app]"
        raise InputError("The page needs more packages.", where="app", found=error, hint=hint) from error
    roles = " → ".join(mas.topology.roles)
    further = [name for name in mas.input_fields if name != "question"]

    def ask(question: str, modes: list[str], num_rounds: int, latent_steps: int, *texts: str) -> Iterator[list[str]]:
        shown = dict.fromkeys((*MODES, "trace"), "")
        yield [*shown.values()]
        try:
            for changed in answers(
                mas, question, modes, num_rounds, latent_steps, dict(zip(further, texts, strict=True)), **arguments
            ):
                shown |= changed
                if "trace" in changed:  # a document of its own, so that its style stays its own
                    page = html.escape(changed["trace"], quote=True)
                    shown["trace"] = f'<iframe title="trace" srcdoc="{page}" style="width:100%;height:32rem"></iframe>'
                yield [*shown.values()]
        except RecursiveMASError as error:
            raise gradio.Error(str(error)) from error

    with gradio.Blocks(title="RecursiveMAS", analytics_enabled=False) as page:
        gradio.Markdown(f"# Agents that think together in latents\n{roles}")
        question = gradio.Textbox(label="Question", autofocus=True)
        fields = [gradio.Textbox(label=name) for name in further]
        with gradio.Row():
            modes = gradio.CheckboxGroup([*MODES], value=[*MODES], label="Modes")
            rounds = gradio.Slider(1, MOST_ROUNDS, value=mas.config.most_rounds, step=1, label="Rounds")
            steps = gradio.Slider(0, MOST_STEPS, value=mas.config.latent_steps, step=1, label="Latent steps")
        button = gradio.Button("Ask", variant="primary")
        with gradio.Row():
            outputs: list[Any] = []
            for mode in MODES:
                with gradio.Column(min_width=220):
                    gradio.Markdown(f"**{mode}**")
                    outputs.append(gradio.Markdown(label=mode))
        outputs.append(gradio.HTML(label="trace"))
        given = [question, modes, rounds, steps, *fields]
        if examples and not further:
            gradio.Examples(examples, question)
        settings: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}  # one question at a time
        button.click(ask, given, outputs, api_name="ask", **settings)
        question.submit(ask, given, outputs, api_visibility="private", **settings)
    return page


def configure(parser: argparse.ArgumentParser) -> None:
    add_system_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=7860, help="port (default: 7860)")
    parser.add_argument("--example", action="append", default=[], help="a question to choose from (repeatable)")


def run(arguments: argparse.Namespace) -> int:
    options = {**solve_arguments(arguments), "batch_size": 1}
    del options["latent_steps"]
    examples = arguments.example or ["3+5*2-4", "9-4*3+8-1+5*2"]
    page = build_page(load_from_arguments(arguments), examples, **options)
    launch(page, arguments.host, arguments.port)
    return 0


def launch(page: "Blocks", host: str, port: int, wait: bool = True) -> None:
    """Shows a page; by default until it is interrupted. Nothing is fetched from elsewhere, fonts neither."""
    import gradio

    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    page.queue().launch(
        server_name=host, server_port=port, prevent_thread_lock=not wait, theme=theme, quiet=not wait, share=False
    )
