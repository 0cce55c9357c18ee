"""Tools are reachable through `generate`, a pipeline and the server, and do there what they do in `solve`."""

import threading

import pytest
import torch
from recursivemas.errors_recursivemas import InputError
from recursivemas.serving.queue import Job, Solver
from recursivemas.serving.requests import Asked
from recursivemas.tools_recursivemas import calculator
from tiny import Script, script, tiny_chain
from transformers import LogitsProcessor, LogitsProcessorList, pipeline

QUESTIONS = ["What is 2*3?", "Say nothing."]
CALLED = "<python>2*3</python><result>6</result>six"


@pytest.fixture(scope="module")
def mas():
    return tiny_chain()


class Behind(LogitsProcessor):
    """A script that is given the question's ids too."""

    def __init__(self, mas, segments, width):
        self.script, self.width = Script(mas.tokenizer, segments), width

    def __call__(self, input_ids, scores):
        return self.script(input_ids[:, self.width :], scores)


def behind(mas, width):
    """Writes a call in the first row and none in the second; then what follows the call's result."""
    eos = mas.tokenizer.eos_token
    segments = [["<python>2*3</python>", f"nothing to calculate here, ever{eos}"], [f"six{eos}"]]
    return LogitsProcessorList([Behind(mas, segments, width)])


class Streamer:
    def __init__(self):
        self.ids, self.ended = [], 0

    def put(self, value):
        self.ids += value.flatten().tolist()

    def end(self):
        self.ended += 1


def test_generate_answers_calls_as_solve_does(mas):
    inputs = mas.tokenizer(QUESTIONS, return_tensors="pt", padding=True, padding_side="left")
    width = inputs["input_ids"].shape[1]
    settings = {"tools": {"python": calculator}, "max_new_tokens": 40, "num_rounds": 1}
    output = mas.generate(**inputs, **settings, logits_processor=behind(mas, width))
    assert torch.equal(output[:, :width], inputs["input_ids"])
    texts = mas.tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
    assert texts == [CALLED, "nothing to calculate here, ever"]


def test_a_streamer_gets_the_question_then_the_answer_with_its_results_and_one_end(mas):
    streamer = Streamer()
    inputs = mas.tokenizer(QUESTIONS[:1], return_tensors="pt")
    processor = behind(mas, inputs["input_ids"].shape[1])
    processor[0].script.segments = [rows[:1] for rows in processor[0].script.segments]
    output = mas.generate(
        **inputs, tools={"python": calculator}, max_new_tokens=40, logits_processor=processor, streamer=streamer
    )
    assert streamer.ids == output[0].tolist() and streamer.ended == 1


def test_generate_with_tools_returns_one_text_a_row_and_says_so_before_any_compute(mas, monkeypatch):
    monkeypatch.setattr(type(mas.agents["planner"]), "rollout", None)
    for more in ({"num_return_sequences": 2, "do_sample": True}, {"return_dict_in_generate": True}):
        with pytest.raises(InputError, match="one text a row"):
            mas.generate(QUESTIONS[:1], tools={"python": calculator}, **more)


def test_a_systems_own_tools_count_in_every_door_until_a_call_brings_its_own(mas):
    mas.tools = {"python": calculator}
    try:
        pipe = pipeline("text-generation", model=mas, tokenizer=mas.tokenizer)
        width = mas.tokenizer(QUESTIONS[:1], return_tensors="pt")["input_ids"].shape[1]

        def asked(**fields):
            processor = behind(mas, width)
            processor[0].script.segments = [rows[:1] for rows in processor[0].script.segments]
            settings = {"max_new_tokens": 40, "num_rounds": 1, "return_full_text": False, **fields}
            return pipe(QUESTIONS[0], logits_processor=processor, **settings)[0]["generated_text"]

        assert asked() == CALLED
        segments = [["<python>2*3</python>"], [f"six{mas.tokenizer.eos_token}"]]
        for tools, text in ((None, CALLED), ({"python": lambda text: "7"}, CALLED.replace("6", "7"))):
            (solution,) = mas.solve(
                QUESTIONS[0], tools=tools, max_new_tokens=40, num_rounds=1, logits_processor=script(mas, *segments)
            )
            assert solution.text == text
        processor = script(mas, *segments)
        (solution,) = mas.solve(QUESTIONS[0], tools={}, max_new_tokens=40, logits_processor=processor)
        assert "<result>" not in solution.text
    finally:
        mas.tools = None


def test_the_server_answers_calls_with_the_tools_that_a_request_chooses(mas):
    told, done = [], threading.Event()
    made = {"calculator": {"python": calculator}, "other": {"python": lambda text: "7"}}
    solver = Solver(mas, tool_names=["calculator"], make_tools=made.get)
    for tools, text in ((None, CALLED), (("other",), CALLED.replace("6", "7"))):
        done.clear()
        eos = mas.tokenizer.eos_token
        processor = script(mas, ["<python>2*3</python>"], [f"six{eos}"])
        arguments = {"max_new_tokens": 40, "num_rounds": 1, "logits_processor": processor}
        solver.submit(Job(Asked(QUESTIONS[:1], arguments, tools=tools), lambda what: (told.append(what), done.set())))
        assert done.wait(60)
        assert told[-1][1][0].text == text
    solver.close()
