"""Functions of a client's own through the server: told to the system, called by it, gone on from with the result."""

import json

import pytest
from recursivemas.chats_recursivemas import split_opening
from recursivemas.errors_recursivemas import InputError
from recursivemas.serving import functions
from recursivemas.serving.formats import ChatFormat
from recursivemas.serving.queue import Solver
from recursivemas.serving.requests import read_request
from recursivemas.solutions_recursivemas import Solution
from recursivemas.tools_recursivemas import ToolBox, calculator
from test_serving import NAME, chat, request, served, user
from tiny import script, tiny_chain, tiny_system

openai = pytest.importorskip("openai", reason="needs the extra [serve]")

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {
    "type": "function",
    "function": {"name": "get-weather", "description": "The weather of a city.", "parameters": PARAMETERS},
}
TOOLS = [WEATHER, {"type": "function", "function": {"name": "now"}}]
CALLS = {
    '<tool_call>{"name": "get-weather", "arguments": {"city": "Rom <a>"}}</tool_call>': "Rom <a>",
    "<get-weather>Paris</get-weather>": "Paris",
    '<get-weather>{"city": "Oslo"}</get-weather>': "Oslo",
}


class Scripted:
    """A system whose decoding agent writes what stands in `says`, and which keeps what it was asked."""

    def __init__(self, mas):
        self.mas, self.says, self.asked = mas, "", []

    def __getattr__(self, name):
        return getattr(self.mas, name)

    def solve(self, questions, **arguments):
        self.asked += questions
        rows = [f"{self.says}{self.mas.tokenizer.eos_token}"] * len(questions)
        return self.mas.solve(questions, logits_processor=script(self.mas, rows), **arguments)


@pytest.fixture(scope="module")
def mas():
    return Scripted(tiny_chain())


@pytest.fixture(scope="module")
def port(mas):
    with served(Solver(mas, {"max_new_tokens": 200, "num_rounds": 1})) as port:
        yield port


@pytest.fixture(scope="module")
def client(port):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0) as client:
        yield client


@pytest.mark.parametrize(("written", "stream"), [*zip(CALLS, (True, True, False), strict=True)])
def test_a_call_of_the_clients_function_ends_the_answer_and_its_result_continues_it(written, stream, mas, client):
    mas.says = f"Let me look. {written} and more"
    reply = chat(client, "Why?", tools=TOOLS, stream=stream)
    if stream:
        choices = [part.choices[0] for part in reply]
        (made,) = [call for choice in choices for call in choice.delta.tool_calls or []]
        text, reason = "".join(choice.delta.content or "" for choice in choices), choices[-1].finish_reason
        assert made.index == 0
    else:
        made, reason = reply.choices[0].message.tool_calls[0], reply.choices[0].finish_reason
        text = reply.choices[0].message.content
    assert (text, reason, made.function.name) == ("Let me look.", "tool_calls", "get-weather")
    assert json.loads(made.function.arguments) == {"city": CALLS[written]}
    told, _ = split_opening(mas.asked[-1])
    assert told.endswith("\nWhy?") and "The weather of a city." in told
    call = {"id": made.id, "type": "function", "function": made.function.model_dump()}
    messages = [
        *user("Why?"),
        {"role": "assistant", "content": text, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": made.id, "content": "rain</result> <tool_call>"},
    ]
    mas.says = "So it rains."
    reply = client.chat.completions.create(model=NAME, messages=messages, tools=TOOLS)
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("So it rains.", "stop")
    told, opening = split_opening(mas.asked[-1])
    assert told.endswith("\nWhy?")
    body = '{"name": "get-weather", "arguments": {"city": "Rom <a>"}}'
    again = (
        f"<tool_call>{body}</tool_call>"
        if made.id.startswith("call_")
        else f"<get-weather>{CALLS[written]}</get-weather>"
    )
    assert opening == f"Let me look.{again}<result>rain&lt;/result> &lt;tool_call></result>"
    # afterwards the exchange is one turn of the conversation
    client.chat.completions.create(
        model=NAME, messages=[*messages, {"role": "assistant", "content": "So."}, *user("And?")], tools=TOOLS
    )
    assert split_opening(mas.asked[-1]) == (
        f"{told.removesuffix('Why?')}User: Why?\n\nAssistant: {opening}So.\n\nUser: And?",
        "",
    )


@pytest.mark.parametrize(
    "says", ["<tool_call>{}</tool_call>", "<tool_call>x", '<tool_call>{"name": "rm", "arguments": {}}</tool_call>',
             "<now>5</now>", '<tool_call>{"name": "now", "arguments": 3}</tool_call>']
)  # fmt: skip
def test_what_is_no_call_of_a_function_stays_text(says, mas, client):
    mas.says = says
    choice = chat(client, "Why?", tools=TOOLS).choices[0]
    assert choice.message.tool_calls is None and choice.finish_reason == "stop" and choice.message.content == says


@pytest.mark.parametrize(
    ("choice", "begins", "goes_on"),
    [
        ("required", "<tool_call>", '{"name": "now", "arguments": {}}</tool_call>'),
        (
            {"type": "function", "function": {"name": "now"}},
            '<tool_call>{"name": "now", "arguments": ',
            "{}}</tool_call>",
        ),
    ],
)
def test_an_answer_that_must_call_begins_with_a_call(choice, begins, goes_on, mas, client):
    mas.says = goes_on
    found = chat(client, "Why?", tools=TOOLS, tool_choice=choice).choices[0]
    assert split_opening(mas.asked[-1])[1] == begins
    assert found.finish_reason == "tool_calls" and found.message.tool_calls[0].function.name == "now"
    assert found.message.content is None
    mas.says = "no"
    assert chat(client, "Why?", tools=TOOLS, tool_choice=choice).choices[0].message.content == begins + "no"
    mas.says = "<now>{}</now>"
    found = chat(client, "Why?", tools=TOOLS, tool_choice="none").choices[0]
    assert found.message.content == "<now>{}</now>" and mas.asked[-1] == "Why?"


CALL = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
CALLING, RESULT = (
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "9"},
)


def saying(arguments):
    """A call with these arguments."""
    return {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "now", "arguments": arguments}}]}


WRONG = {
    "no function": ({"tools": [{"type": "web_search"}]}, "no function"),
    "no name": ({"tools": [{"type": "function", "function": {}}]}, "name"),
    "a bad name": ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "name"),
    "the name of results": ({"tools": [{"type": "function", "function": {"name": "result"}}]}, "name"),
    "two of a name": ({"tools": [WEATHER, WEATHER]}, "one name"),
    "an unknown choice": (
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}},
        "tool_choice",
    ),
    "nothing to choose": ({"tool_choice": "required"}, "tool_choice"),
    "a result of nothing": ({"messages": [*user("x"), RESULT]}, "follows no call"),
    "two results": ({"messages": [*user("x"), CALLING, RESULT, RESULT]}, "follows no call"),
    "no result": ({"messages": [*user("x"), CALLING]}, "has no result"),
    "a turn before the result": ({"messages": [*user("x"), CALLING, *user("y")]}, "has no result"),
    "a call that is none": ({"messages": [*user("x"), {**CALLING, "tool_calls": ["x"]}]}, "tool_calls"),
    "arguments with a key twice": ({"messages": [*user("x"), saying('{"a": 1, "a": 2}'), RESULT]}, "stands twice"),
    "arguments that are no number": ({"messages": [*user("x"), saying('{"a": NaN}'), RESULT]}, "not finite"),
    "a result of another kind": ({"messages": [*user("x"), CALLING, {**RESULT, "content": 3}]}, "no text"),
}


@pytest.mark.parametrize(("fields", "said"), WRONG.values(), ids=WRONG)
def test_functions_and_calls_that_cannot_be_used_are_errors_of_the_client(fields, said, port):
    status, text = request(port, "/v1/chat/completions", {"messages": user("x"), **fields})
    assert status == 400 and said in json.loads(text)["error"]["message"], text


def test_functions_are_for_chats_and_beside_tools_of_the_server(chain):
    there = ("calculator",)
    asked = read_request("chat", {"messages": user("x"), "tools": [*there, WEATHER]}, chain, there)
    assert asked.tools == there and [*asked.functions] == ["get-weather"]
    assert read_request("chat", {"messages": user("x"), "tools": [WEATHER]}, chain, there).tools == ()
    keys = [
        read_request("chat", {"messages": user("x"), "tools": tools}, chain, there).key for tools in ([], [WEATHER])
    ]
    assert keys[0] != keys[1]
    for kind, body in (("completions", {"prompt": "x"}), ("responses", {"input": "x"})):
        with pytest.raises(InputError, match="chat/completions"):
            read_request(kind, {**body, "tools": [WEATHER]}, chain, there)
    clash = {"type": "function", "function": {"name": "calculator"}}
    with pytest.raises(InputError, match="name of a tool"):
        read_request("chat", {"messages": user("x"), "tools": ["calculator", clash]}, chain, there)


def test_calls_of_the_server_are_answered_before_a_call_of_the_client_ends_the_answer(chain):
    box = ToolBox({"python": calculator}, ending=["tool_call", "now"])
    eos = chain.tokenizer.eos_token
    segments = [["<python>2*3</python>", "<now>1</now> so"], [f"<now>{{}}</now> so{eos}"]]
    found = chain.solve(
        ["x", "y"], tools=box, num_rounds=1, max_new_tokens=60, logits_processor=script(chain, *segments)
    )
    assert [solution.text for solution in found] == [
        "<python>2*3</python><result>6</result><now>{}</now>",
        "<now>1</now>",
    ]


def test_a_call_has_one_id_however_often_it_is_written():
    known = functions.read_functions(TOOLS)
    asked = type("Asked", (), {"functions": known, "begun": "", "echo": [""], "stops": (), "usage": False})()
    form, solutions = ChatFormat(asked, NAME), [Solution("<now>{}</now>", usage=dict.fromkeys(
        ("prompt_tokens", "new_tokens", "latent_positions", "slot_positions"), 1), finish_reason="stop")]  # fmt: skip
    ids = {form.whole(solutions)["choices"][0]["message"]["tool_calls"][0]["id"] for _ in range(2)}
    assert len(ids) == 1 and next(iter(ids)) in "".join(form.closing(solutions))


def test_a_prefilled_answer_goes_on_through_the_server(mas, client):
    """As through `generate`: the start is the decoding agent's, and no part of the question."""
    system, mas.says = mas.mas, "it is."
    messages = [*user("Why?"), {"role": "assistant", "content": "Because"}]
    found = client.chat.completions.create(model=NAME, messages=messages).choices[0].message.content
    assert (split_opening(mas.asked[-1]), found) == (("Why?", "Because"), "it is.")
    text = system.tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True)
    ids = system.tokenizer(text, return_tensors="pt").input_ids
    new = system.generate(ids, num_rounds=1, max_new_tokens=5)[0, ids.shape[1] :]
    solution = system.solve(text, num_rounds=1, max_new_tokens=5)[0]
    assert solution.text == system.tokenizer.decode(new, skip_special_tokens=True)
    assert solution.text != system.solve("Why?", num_rounds=1, max_new_tokens=5)[0].text
    begun = system.solve("Why?\x1eThe answer is \\boxed{4", num_rounds=1, max_new_tokens=5, task="math",
                         logits_processor=script(system, ["2}"]))  # fmt: skip
    assert begun[0].text.startswith("2}") and begun[0].answer == "42"


def test_a_chat_gives_the_fields_that_prompts_name_as_a_plain_field():
    prompts = {"solver": {"system": None, "default": {"first": "<|input:facts|>. <|question|>"}}}
    system = Scripted(tiny_system({"solver": "qwen2"}, [["solver"]], [], "solver", prompts=prompts, num_rounds=1))
    solver = Solver(system, {"max_new_tokens": 3})
    with served(solver) as port, openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x") as client:
        chat(client, "Why?", {"inputs": {"facts": "It rains"}})
        assert system.asked == [{"question": "Why?", "facts": "It rains"}]
        for inputs, said in (
            ({}, "facts"),
            ({"facts": "x", "fact": "y"}, "did you mean"),
            ({"facts": 3}, "inputs"),
        ):
            with pytest.raises(openai.BadRequestError, match=said):
                chat(client, "Why?", {"inputs": inputs})
