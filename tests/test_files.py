"""What a file holds: one reader of JSON, one judgement of names, types and limits; each error names file and key."""

import json

import pytest
from recursivemas.configuration_recursivemas import FIELDS, RecursiveMASConfig
from recursivemas.errors_recursivemas import CheckpointError, ConfigError, InputError, RecursiveMASError
from recursivemas.evaluation.measure import load_rows
from recursivemas.evaluation.results import read_results
from recursivemas.evaluation.solve import read_questions
from recursivemas.fields_recursivemas import whole
from recursivemas.files_recursivemas import parse_json, read_lines, read_object
from recursivemas.link_building_recursivemas import build_link
from recursivemas.links_recursivemas import InnerLink
from recursivemas.sources_recursivemas import Source
from recursivemas.system_loader import load_mas_system, read_style
from recursivemas.training.arguments import read_arguments
from recursivemas.training.data import DataError, read_rows, refuse_bad_rows
from recursivemas.upload.files import read_json

# Every door through which a file of JSON comes in.
DOORS = {
    "a system": lambda path: Source(str(path.parent)).json(path.name),
    "a style": read_style,
    "a prompt set": lambda path: RecursiveMASConfig().run_settings(prompts=path),
    "questions": lambda path: read_questions((line for _, line in read_lines(path, InputError)), path),
    "rows": lambda path: refuse_bad_rows(read_rows(path)[1]),
    "rows to measure": lambda path: load_rows(str(path), 9, 0),
    "results": read_results,
    "settings": read_arguments,
    "a plan": read_json,
}
BROKEN = {
    "cut": b'{"question": "a',
    "not UTF-8": b'{"question": "\xff"}',
    "UTF-16": '{"question": "a"}'.encode("utf-16"),
    "nested": b'{"question": ' + b"[" * 200 + b"]" * 200 + b"}",
    "nested beyond Python": b'{"question": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a key twice": b'{"question": "a", "question": "b"}',
    "not a number": b'{"question": NaN}',
    "infinite": b'{"question": 1e999}',
    "a long number": b'{"question": ' + b"9" * 5000 + b"}",
    "half a character": b'{"question": "\\ud800"}',
    "a file that is none": None,
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_broken_json_is_a_short_error_that_names_the_file_whatever_reads_it(door, content, tmp_path):
    path = tmp_path / "given.json"
    path.mkdir() if content is None else path.write_bytes(content)
    if content is None and door in (DOORS["a system"], DOORS["a style"], DOORS["rows"], DOORS["a plan"]):
        pytest.skip("a folder is something else there")
    with pytest.raises(RecursiveMASError, match=r"given\.json|No such data") as error:
        door(path)
    assert len(str(error.value)) < 1500


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    path = tmp_path / "given.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": "\xef\xbb\xbfb"}')
    assert read_object(path, InputError) == {"a": "\ufeffb"}
    path.write_bytes(b"\xef\xbb\xbfone\ntwo")
    assert list(read_lines(path, InputError)) == [(1, b"one"), (2, b"two")]


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x85", "\r"])
def test_a_line_ends_at_a_line_feed_and_nowhere_else(mark, tmp_path):
    text = f"a{mark}b"
    path = tmp_path / "q.txt"
    path.write_bytes(f"{text}\r\nc\n".encode())
    assert DOORS["questions"](path) == [text, "c"]
    row = json.dumps({"question": text, "answer": text}, ensure_ascii=False)
    path.write_bytes(f"{row}\r\n{row}".encode())
    assert [found["question"] for found in load_rows(str(path), 9, 0)] == [text] * 2
    assert [found.inputs["question"] for found in read_rows(path)[0]] == [text] * 2


def test_pairs_of_surrogates_are_characters_and_what_others_write_is_taken_leniently():
    assert parse_json('"\\ud83d\\ude00"', InputError, "x") == "😀"
    found = parse_json('{"a": 1, "a": Infinity}', InputError, "x", lenient=True)
    assert found == {"a": float("inf")}  # as configurations on the Hub have it


@pytest.mark.parametrize("question", ["\ud800", "a\udc80b"])
def test_half_a_character_in_a_question_is_refused_by_name(chain, question):
    with pytest.raises(InputError, match=r"(?s)half a character.*number 2 of 2.*U\+D"):
        chain.solve(["Why?", question])


WRONG = [None, True, 1, -1, 10**30, 0.5, "x", [], [5], {}, {"a": 5}]


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_of_a_configuration_takes_its_kind_and_nothing_else(name, chain_folder):
    content = json.loads((chain_folder / "config.json").read_text())
    refused = 0
    for value in WRONG:
        if FIELDS[name].holds(value) or value is None:
            continue
        with pytest.raises(ConfigError, match=rf"config\.json, {name}\n"):
            RecursiveMASConfig.from_dict({**content, name: value})
        refused += 1
    assert refused >= 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(latent_stpes=c.pop("latent_steps")), "did you mean `latent_steps`"),
        (lambda c: c.update(num_round=9), "did you mean `num_rounds`"),
        (lambda c: c.update(quantization_config="x"), "quantization_config"),
        (lambda c: c["agents"]["planner"].update(sourse="x"), "did you mean `source`"),
        (lambda c: c["links"][0].update(fedback=True), "did you mean `feedback`"),
        (lambda c: c["links"][0].update(feedback=1), "true or false"),
        (lambda c: c["links"][0].update(weights={"tasks": 5}), "tasks"),
        (lambda c: c["prompts"].update(planer=c["prompts"].pop("planner")), "did you mean `planner`"),
        (lambda c: c["prompts"]["planner"].update(mth={"first": "x"}), "did you mean `math`"),
        (lambda c: c["prompts"]["planner"]["default"].update(feedbck="x"), "did you mean `feedback`"),
        (lambda c: c["prompts"]["planner"]["default"].update(feedback=False), "not a text"),
        (lambda c: c.update(chat_template_kwargs={"tokenize": True}), "tokenize"),
        (lambda c: c.update(__class__={}), "__class__"),
    ],
)
def test_unknown_and_misspelt_names_are_errors_that_say_what_was_meant(change, message, chain_folder, tmp_path):
    content = json.loads((chain_folder / "config.json").read_text())
    change(content)
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message):
        load_mas_system(str(tmp_path))


@pytest.mark.parametrize(
    "settings",
    [{"max_new_tokens": "9"}, {"do_sample": 1}, {"eos_token_id": ["x"]}, {"pad_token_id": "x"}, {"temperature": -1},
     {"top_p": 7}, {"output_hidden_states": "False"}, {"max_new_tokn": 5}, {"num_round": 2},
     {"max_new_tokens": 10**12}],
    ids=str,
)  # fmt: skip
def test_generation_settings_are_judged_when_they_are_read(settings, chain_folder, tmp_path):
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    from recursivemas.answering_recursivemas import RUN_ARGUMENTS
    from recursivemas.settings_recursivemas import read_settings

    content = Source(str(tmp_path)).json("generation_config.json", lenient=True)
    with pytest.raises(CheckpointError, match=rf"(?s)generation_config\.json.*{next(iter(settings))}"):
        read_settings(content, "generation_config.json", RUN_ARGUMENTS)


def test_numbers_beyond_a_limit_are_refused_and_the_limit_is_named(chain):
    for arguments in (
        {"latent_steps": 10**12},
        {"num_rounds": 10**30},
        {"message_tokens": 10**9},
        {"batch_size": 10**9},
    ):
        with pytest.raises(InputError, match=r"at most 1"):
            chain.solve("Why?", **arguments)
    assert whole(0, 5).expected == "a whole number >= 0, at most 5"


def test_a_message_shows_at_most_200_characters_of_what_was_found():
    text = str(InputError("What?", found="z" * 10**6))
    assert text.count("z") == 198 and text.endswith("…")


@pytest.mark.parametrize("change", ["to_sparse", "double", "half"])
def test_weights_of_a_link_are_dense_and_of_one_dtype(change):
    weights = InnerLink("linear_adapter", 4).state_dict()
    weights["proj1.weight"] = getattr(weights["proj1.weight"], change)()
    with pytest.raises(CheckpointError, match=r"x\.pt"):
        build_link(weights, where="x.pt", in_features=4, kind="linear_adapter")


ROW = {"question": "q", "targets": {"planner": "p", "solver": "s"}, "answer": "a"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**ROW, "targets": {"planner": "p", "solvr": "s"}}, "unknown role in `targets`: solvr; did you mean solver"),
        ({**ROW, "targets": {**ROW["targets"], "stranger": "s"}}, "unknown role in `targets`: stranger"),
        ({"qestion": "q", "targets": ROW["targets"]}, "no question, but a column qestion"),
        ({"question": "q", "targets": ROW["targets"], "anwser": "a"}, "no answer, but a column anwser"),
        ({"question": "q", "target": ROW["targets"], "answer": "a"}, "did you mean targets"),
        ({**ROW, "targets": {"planner": 5, "solver": "s"}}, "non-text target for planner"),
        ({**ROW, "question": "\ud800"}, "half a character"),
    ],
)
def test_a_row_with_a_misspelt_name_is_a_bad_row(row, reason):
    rows, report = read_rows([row], ("planner", "solver"), known_roles=("planner", "critic", "solver"))
    assert not rows and reason in str(report)


def test_columns_of_ones_own_that_look_like_no_known_name_are_nobodys_business():
    row = {
        **ROW,
        "question_id": 7,
        "level": 2,
        "targets_2": None,
        "topic": "x",
        "targets": {**ROW["targets"], "critic": "c"},
    }
    rows, report = read_rows([row], ("planner", "solver"), known_roles=("planner", "critic", "solver"))
    assert len(rows) == 1 and not report.bad
    with pytest.raises(DataError, match="did you mean `question`"):
        read_rows([row], columns={"qestion": "ask"})
