"""A page to ask systems and see them think: answers over latents, over text and of one agent alone, with their cost.

The turns are shown as they are taken, then what was handed over (see `recursivemas trace`). A system is loaded when it
is chosen: of those that ship, or of those that --system names. Needs the extra `recursivemas[app]`.

Examples:
  recursivemas app
  recursivemas app --system systems/deliberation --tools calculator --port 7861
  recursivemas app --system my-org/Additions --system small/sequential --example "What is 17 + 25?"
"""

import argparse
import contextlib
import html
import importlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .errors_recursivemas import InputError, RecursiveMASError
from .evaluation.commands import (
    SMALL_AGENT,
    TOOLS,
    add_system_arguments,
    load_from_arguments,
    solve_arguments,
    validate_arguments,
)
from .evaluation.metrics import METRICS
from .fetch import is_here, model_of
from .inspection.trace import as_page, trace_of
from .modeling_recursivemas import RecursiveMASModel
from .runs_recursivemas import MODES
from .solutions_recursivemas import Solution
from .system_loader import load_mas_system, small_systems
from .tasks import TASKS

if TYPE_CHECKING:
    from gradio import Blocks

MOST_ROUNDS, MOST_STEPS = 8, 64  # that the page's sliders offer, or more where a system's own are more
MOST_EXAMPLES = 3
LONG = 40  # characters of an answer, beyond which it is set smaller
THREADS = torch.get_num_threads()
STYLE = Path(__file__).with_name("app.css")
# Small system -> what may be asked, its task, and levels and seed of the examples.
SHIPPED: dict[str, tuple[str, str, list[int], int]] = {
    "small/sequential": (
        "Arithmetic on digits, from left to right, modulo 10: `3+5*2-4` is 2. Each agent does one step of it, so a"
        " round does three.",
        *("arithmetic", [3, 6, 9], 6),
    ),
    "small/mixture": (
        "`372:2` asks what three registers 3, 7, 2 hold after two steps of a rule of which each of three agents knows"
        " a third; the last one joins them.",
        *("registers", [1, 2, 4], 7),
    ),
    "small/distillation": (
        "`K.c.a` asks for the entity that relation a leads to from where c leads to from K, in a made-up world. The"
        " learner knows half of the relations, the expert all.",
        *("facts", [2, 3, 4], 7),
    ),
    "small/deliberation": (
        "`a=c b=4 c=b 376*a` asks for 376 times what a stands for. One agent looks the letter up, the other asks a"
        " calculator.",
        *("variables", [2, 3, 4], 7),
    ),
    "small/smollm2": (
        "Two of a real language model (SmolLM2, 135 M parameters; seconds an answer): the reader sees the facts, the"
        " answerer only the question and what the reader hands over.",
        *("split_facts", [1, 2, 3], 7),
    ),
    "small/smollm2-fixed": (
        "The same two, thinking sixteen steps as the public release does, with a trained link.",
        *("split_facts", [1, 2, 3], 7),
    ),
}


@dataclass
class Offer:
    """A system that the page offers.

    Attributes:
        name: what it is called there.
        outline: it, perhaps without weights: what can be said before it is loaded.
        load: brings it.
        about: what may be asked, as Markdown.
        examples: fields of questions, and their "answer" where that is known.
        metric: when an example's answer is right, of `METRICS`.
        arguments: of `solve`, that the page does not choose.
    """

    name: str
    outline: RecursiveMASModel
    load: Callable[[], RecursiveMASModel]
    about: str = ""
    examples: Sequence[dict[str, str]] = ()
    metric: str = "exact"
    arguments: dict[str, Any] = field(default_factory=dict)

    def right_answer(self, inputs: dict[str, str]) -> str | None:
        """The right answer to a question, where it is an example with one."""
        rows = (row for row in self.examples if inputs == {name: row.get(name, "") for name in inputs})
        return next((row.get("answer") for row in rows), None)


class Shelf:
    """The systems of a page. What is small stays loaded; of the others, the last that was chosen."""

    def __init__(self, offers: Sequence[Offer]) -> None:
        self.offers = {offer.name: offer for offer in offers}
        self._loaded: dict[str, RecursiveMASModel] = {}
        self._lock = threading.Lock()

    def has(self, name: str) -> bool:
        return name in self._loaded

    def take(self, name: str) -> RecursiveMASModel:
        """A system, loaded if need be.

        Raises:
            RecursiveMASError: it cannot be loaded.
        """
        with self._lock:
            if name in self._loaded:
                mas = self._loaded[name]
            else:
                self._loaded = {other: mas for other, mas in self._loaded.items() if _is_small(mas)}
                mas = self.offers[name].load()
            torch.set_num_threads(1 if _is_small(mas) else THREADS)
            if name not in self._loaded and _is_small(mas) and (rows := self.offers[name].examples):
                mas.solve({key: rows[0].get(key, "") for key in mas.input_fields}, num_rounds=1)  # the first is slow
            self._loaded[name] = mas
            return mas


def _is_small(mas: RecursiveMASModel) -> bool:
    return max(agent.num_parameters() for agent in mas.agents.values()) < SMALL_AGENT


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


def as_card(solution: Solution, seconds: float, verdict: str = "") -> str:
    """A solution as HTML: the answer, what else was written, and the cost."""
    answer = solution.answer or solution.text
    size = "answer long" if len(answer) > LONG else "answer"
    wrote = f"<pre>{html.escape(solution.text)}</pre>" if solution.text != answer else ""
    cost = f'<p class="quiet">{cost_of(solution.usage, seconds)}</p>'
    return f'<p class="{size}">{html.escape(answer) or "(nothing)"}</p>{verdict}{wrote}{cost}'


def as_turns(taken: list[tuple[int, str]]) -> str:
    """The turns that were taken so far as HTML, a line for each round."""
    rounds = dict.fromkeys(number for number, _ in taken)
    lines = [f"round {number}: {' → '.join(role for at, role in taken if at == number)} …" for number in rounds]
    return f'<p class="quiet">{"<br>".join(map(html.escape, lines))}</p>'


def answers(
    mas: RecursiveMASModel,
    question: str,
    modes: list[str],
    num_rounds: int,
    latent_steps: int,
    inputs: dict[str, str] | None = None,
    judge: Callable[[Solution], str] = lambda solution: "",
    **arguments: Any,
) -> Iterator[dict[str, str]]:
    """The answers to a question by several modes, one after another.

    Args:
        mas: the system.
        question: the question.
        modes: some of `MODES`.
        num_rounds, latent_steps, arguments: of `solve`.
        inputs: the question's further fields.
        judge: says of a solution, as HTML, whether it is right.

    Yields:
        What changed: a mode -> its turns so far and then its answer and cost; "trace" -> the page of the trace.

    Raises:
        RecursiveMASError: it cannot be asked this.
    """
    if not set(MODES) & set(modes):
        raise InputError("No mode was chosen.", where="modes", expected=f"one or more of {', '.join(MODES)}")
    asked = {**(inputs or {}), "question": question}
    settings = {**arguments, "num_rounds": int(num_rounds), "latent_steps": int(latent_steps)}
    solved: dict[str, tuple[Solution, float]] = {}
    for mode in (mode for mode in MODES if mode in modes):
        started, taken = time.perf_counter(), []
        call = partial(mas.solve, asked, mode=mode, return_latents=mode == "latent", **settings)
        for what, *values in steps_of(call):
            if what == "turn":
                taken.append(tuple(values))
                yield {mode: as_turns(taken)}
                continue
            ((solution,),) = values
            solved[mode] = (solution, time.perf_counter() - started)
            yield {mode: as_card(*solved[mode], judge(solution))}
            if "latent" in solved and mode != "alone":  # after text once more, with what was written beside
                found = trace_of(mas, asked, solved, **settings)
                yield {"trace": as_page(found | {"ways": {}})}  # they stand above it


def verdict_of(offer: Offer, inputs: dict[str, str], solution: Solution) -> str:
    """Whether an answer to an example is right, as HTML; nothing where that is not known."""
    truth = offer.right_answer(inputs)
    if truth is None:
        return ""
    if METRICS[offer.metric](solution, truth):
        return '<p class="right">✓ right</p>'
    return f'<p class="wrong">✗ the right answer is {html.escape(truth)}</p>'


def as_frame(page: str) -> str:
    """A page inside another: a document of its own, so that its style stays its own, as high as what it shows."""
    grow = "new ResizeObserver(() => { this.style.height = this.contentDocument.body.scrollHeight + 32 + 'px' })"
    return (
        '<iframe title="trace" class="trace" sandbox="allow-same-origin"'
        f' onload="{grow}.observe(this.contentDocument.body)" srcdoc="{html.escape(page, quote=True)}"></iframe>'
    )


def about(offer: Offer) -> str:
    """What a system is, as Markdown: its agents, in order, and what may be asked."""
    topology = offer.outline.topology
    stages = [" + ".join(stage) for stage in topology.stages]
    return f"**{' → '.join(stages)}** ({topology.decoding_role} answers)  \n{offer.about}"


def build_page(
    offers: RecursiveMASModel | Sequence[Offer], examples: Sequence[str] = (), **arguments: Any
) -> "Blocks":
    """The page of one or several systems.

    Args:
        offers: the systems, the first shown first; or one that is loaded.
        examples: questions to choose from, of that one.
        arguments: of `solve`, for that one.

    Raises:
        InputError: gradio is not installed.
    """
    try:
        import gradio
    except ImportError as error:
        hint = "pip install recursivemas[app]"
        raise InputError("The page needs more packages.", where="app", found=error, hint=hint) from error
    if isinstance(offers, RecursiveMASModel):
        mas, rows = offers, [{"question": text} for text in examples]
        offers = [Offer("this system", mas, lambda: mas, examples=rows, arguments=arguments)]
    shelf, first = Shelf(offers), offers[0]
    shelf.take(first.name)  # what cannot be shown is told at once
    names = [name for offer in offers for name in offer.outline.input_fields if name != "question"]
    further = list(dict.fromkeys(names))  # of any system; those that the chosen one lacks are hidden

    def cards_of(offer: Offer, bodies: Mapping[str, str] = {}) -> list[str]:
        titles = ("over latents", "over text", f"{offer.outline.topology.decoding_role} alone")
        return [
            f'<article class="card"><h3>{title}</h3>{bodies.get(mode, "")}</article>'
            for title, mode in zip(titles, MODES, strict=True)
        ]

    def settings_of(offer: Offer) -> list[dict[str, Any]]:
        config = offer.outline.config
        rounds, steps = config.most_rounds, config.latent_steps
        return [
            {"value": rounds, "maximum": max(MOST_ROUNDS, rounds)},
            {"value": steps, "maximum": max(MOST_STEPS, steps)},
        ]

    def buttons_of(offer: Offer) -> list[dict[str, Any]]:
        questions = [row["question"] for row in offer.examples][:MOST_EXAMPLES]
        empty = [""] * (MOST_EXAMPLES - len(questions))
        return [{"value": text, "visible": bool(text)} for text in [*questions, *empty]]

    def placeholder_of(offer: Offer) -> str:
        return next((f"for example {row['question']}" for row in offer.examples), "")

    def choose(name: str) -> Iterator[list[Any]]:
        offer = shelf.offers[name]
        fields = [{"visible": key in offer.outline.input_fields, "value": ""} for key in further]
        updates = [gradio.update(**each) for each in (*settings_of(offer), *buttons_of(offer), *fields)]
        asked = gradio.update(value="", placeholder=placeholder_of(offer))
        shown = [about(offer), *updates, asked, *cards_of(offer), ""]
        kept = [gradio.skip()] * (len(shown) - 1)
        if not shelf.has(name):
            yield ["Loading …", *shown[1:]]
        try:
            shelf.take(name)
        except (RecursiveMASError, OSError) as error:
            yield [f"It cannot be loaded.\n```text\n{error}\n```", *kept]
            return
        yield shown

    def ask(
        question: str, modes: list[str], num_rounds: int, latent_steps: int, name: str = first.name, *texts: str
    ) -> Iterator[list[str]]:
        offer = shelf.offers[name]
        given = zip(further, texts, strict=True)
        inputs = {key: text for key, text in given if key in offer.outline.input_fields}
        bodies, seen = dict.fromkeys(modes, '<p class="quiet">…</p>'), ""
        yield [*cards_of(offer), seen]
        judge = partial(verdict_of, offer, {"question": question, **inputs})
        try:
            for changed in answers(
                shelf.take(name), question, modes, num_rounds, latent_steps, inputs, judge, **offer.arguments
            ):
                seen = as_frame(changed.pop("trace")) if "trace" in changed else seen
                bodies |= changed
                yield [*cards_of(offer, bodies), seen]
        except (RecursiveMASError, OSError) as error:
            text = html.escape(str(error)).replace("\n", "<br>")
            raise gradio.Error(text, duration=None, title="No answer", print_exception=False) from error

    def put_example(number: int, name: str) -> Any:
        row = shelf.offers[name].examples[number]
        texts = [row.get(key, "") for key in ("question", *further)]
        return texts if further else texts[0]  # of one output, gradio takes a list for its value

    with gradio.Blocks(title="RecursiveMAS", analytics_enabled=False) as page:
        gradio.Markdown("# Agents that think together in latents")
        system = gradio.Dropdown([*shelf.offers], value=first.name, label="System", visible=len(offers) > 1)
        told = gradio.Markdown(about(first))
        question = gradio.Textbox(label="Question", autofocus=True, placeholder=placeholder_of(first))
        fields = [gradio.Textbox("", label=key, lines=2, visible=key in first.outline.input_fields) for key in further]
        with gradio.Row(elem_classes="examples"):
            buttons = [gradio.Button(size="sm", min_width=160, **each) for each in buttons_of(first)]
        with gradio.Row():
            labels = ["latents", "text", "one agent alone"]
            modes = gradio.CheckboxGroup(
                list(zip(labels, MODES, strict=True)), value=[*MODES], label="Hand over", min_width=320
            )
            rounds, steps = (
                gradio.Slider(least, step=1, label=label, min_width=240, **each)
                for least, label, each in zip((1, 0), ("Rounds", "Latent steps"), settings_of(first), strict=True)
            )
        with gradio.Row():
            button = gradio.Button("Ask", variant="primary", scale=4, min_width=160)
            stop = gradio.Button("Stop", scale=1, min_width=80)
        with gradio.Row():
            cards = []
            for text in cards_of(first):
                with gradio.Column(min_width=240):
                    cards.append(gradio.HTML(text, padding=False))
        outputs = [*cards, gradio.HTML(label="trace")]
        given = [question, modes, rounds, steps, system, *fields]
        settings: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}  # one question at a time
        settings |= {"show_progress": "hidden"}  # the answers' own is shown
        private: dict[str, Any] = {"api_visibility": "private"}
        asking: list[Any] = [button.click(ask, given, outputs, api_name="ask", **settings)]
        asking += [box.submit(ask, given, outputs, **private, **settings) for box in (question, *fields)]
        for number, example in enumerate(buttons):
            put = example.click(partial(put_example, number), system, [question, *fields], **private)
            asking.append(put.then(ask, given, outputs, **private, **settings))
        stop.click(None, cancels=asking, **private)
        changed = [told, rounds, steps, *buttons, *fields, question, *outputs]
        system.change(choose, system, changed, **private, **settings)
    return page


def offers_of(arguments: argparse.Namespace) -> list[Offer]:
    """What the page of a command line offers: what --system names, else the small systems that are here."""
    validate_arguments(arguments)
    options = {**solve_arguments(arguments), "batch_size": 1}
    del options["latent_steps"]
    known = small_systems()
    names = arguments.system or [name for name in known if (model := model_of(name)) is None or is_here(model)]
    folders = {folder.resolve(): name for name, folder in known.items()}
    offers = []
    for name in dict.fromkeys(names):
        outline = load_mas_system(name, arguments.dataset, only=[])
        about, task, levels, seed = SHIPPED.get(folders.get(Path(name).resolve(), name), ("", "", [], 0))
        rows, metric, own = [{"question": text} for text in arguments.example], "exact", dict(options)
        if task:
            module = TASKS[task]
            rows += module.generate(MOST_EXAMPLES, levels=levels, seed=seed)
            metric = getattr(module, "METRIC", metric)
            own["tools"] = TOOLS["calculator"] if options["tools"] is None else options["tools"]
        offers.append(Offer(name, outline, partial(load_from_arguments, arguments, name), about, rows, metric, own))
    return offers


def configure(parser: argparse.ArgumentParser) -> None:
    add_system_arguments(parser, several=True)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=7860, help="port (default: 7860)")
    parser.add_argument("--example", action="append", default=[], help="a question to choose from (repeatable)")


def run(arguments: argparse.Namespace) -> int:
    offers = offers_of(arguments)
    page = build_page(offers)
    launch(page, arguments.host, arguments.port)
    return 0


def launch(page: "Blocks", host: str | None = None, port: int | None = None, wait: bool = True) -> None:
    """Shows a page; by default until it is interrupted. Nothing is fetched from elsewhere, fonts neither."""
    import gradio

    with contextlib.suppress(ImportError):
        importlib.import_module("matplotlib.pyplot")  # or gradio does so at the first question, which waits for it
    theme = gradio.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"])
    page.queue().launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=not wait,
        theme=theme,
        css=STYLE.read_text(encoding="utf-8"),
        quiet=not wait,
        share=False,
    )
