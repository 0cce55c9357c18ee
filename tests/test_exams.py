"""Benchmarks: rows in their real schema through the real reader of datasets, both scorers, runs that go on."""

import base64
import json
import os
import pickle
import subprocess
import sys
import zlib

import datasets
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from recursivemas import cli
from recursivemas.errors_recursivemas import InputError
from recursivemas.evaluation.metrics import METRICS
from recursivemas.evaluation.rows import RowFile
from recursivemas.exams import benchmark as command
from recursivemas.exams import running, scoring
from recursivemas.exams.reading import load_rows
from recursivemas.exams.running import rows_of_others
from recursivemas.exams.table import BENCHMARKS, read_row
from recursivemas.modeling_recursivemas import RecursiveMASModel
from recursivemas.sandbox.judging import private_tests
from recursivemas.system_loader import release_settings, released_styles
from recursivemas.tasks import TASKS
from recursivemas.upload import plan, scan, stage

DOUBLE = "def double(x):\n    return 2 * x"
LCB_FUNCTION = {
    "question_title": "Double it", "question_content": "Double a number.", "platform": "leetcode",
    "question_id": "1", "contest_id": "c", "contest_date": "2025-02-01T00:00:00", "starter_code": "class Solution:\n"
    "    def double(self, x: int) -> int:\n        ", "difficulty": "easy",
    "public_test_cases": '[{"input": "3", "output": "6", "testtype": "functional"}]',
    "private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(
        '[{"input": "5", "output": "10", "testtype": "functional"}]'))).decode(),
    "metadata": '{"func_name": "double"}',
}  # fmt: skip
LCB_INPUT = LCB_FUNCTION | {
    "question_content": "Print the double of the number.", "question_id": "2", "starter_code": "", "metadata": "{}",
    "public_test_cases": '[{"input": "3\\n", "output": "6\\n", "testtype": "stdin"}]',
    "private_test_cases": '[{"input": "7\\n", "output": "14", "testtype": "stdin"}]',
}  # fmt: skip
GPQA = {
    "Pre-Revision Question": "…", "Question": "Which gas?", "Correct Answer": "neon\n", "Incorrect Answer 1": "iron",
    "Incorrect Answer 2": "gold", "Incorrect Answer 3": "lead", "High-level domain": "Chemistry", "Record ID": "rec1",
    "Canary String": "…",
}  # fmt: skip
MEDQA = {
    "question": "What lowers fever?", "answer": "Ibuprofen", "answer_idx": "C", "meta_info": "step1",
    "options": {"A": "Insulin", "B": "Iron", "C": "Ibuprofen", "D": "Zinc"}, "metamap_phrases": ["fever"],
}  # fmt: skip
BLOCK = "\nA. Insulin\nB. Iron\nC. Ibuprofen\nD. Zinc"
MEDQA_RELEASE = {
    "idx": 3, "question": f"What lowers fever?{BLOCK}\n{BLOCK}", "answer": "Ibuprofen", "image": None,
    "options": ["A. Insulin", "B. Iron", "C. Ibuprofen", "D. Zinc"],
}  # fmt: skip
HOTPOT = {
    "id": "5a7", "question": "Who wrote it?", "answer": "Jane Austen", "type": "bridge", "level": "hard",
    "supporting_facts": {"title": ["It"], "sent_id": [0]}, "context": {"title": ["It"], "sentences": [["She did."]]},
}  # fmt: skip
MBPP = {
    "task_id": 2, "code": DOUBLE, "prompt": "Write a function to double a number.", "source_file": "x",
    "test_imports": [], "test_list": [f"assert double({n}) == {2 * n}" for n in range(4)],
    "test": "inputs = [[1], [4]]\nresults = [2, 8]\nfor inp, exp in zip(inputs, results):\n"
    "    assert double(*inp) == exp",
}  # fmt: skip
MATH = {
    "problem": "What is $1/2$?", "solution": "It is $\\boxed{0.5}$.", "answer": "\\frac{1}{2}", "subject": "Algebra",
    "level": 2, "unique_id": "test/algebra/1.json",
}  # fmt: skip
# name -> (rows, the first right answer, texts that are right in both scorers, by the release's only, by none)
SCHEMAS = {
    "math500": ([MATH], "\\frac{1}{2}", "so \\boxed{0.5}", "so \\boxed{0.7}", "so \\boxed{3}"),
    "aime25": ([{"id": "0", "problem": "Sum?", "answer": "70"}], "70", "\\boxed{070}", "\\boxed{70.5}", "\\boxed{7}"),
    "aime26": ([{"id": 0, "problem": "Sum?", "answer": 70}], "70", "\\boxed{70}", "\\boxed{-70.5}", "\\boxed{7}"),
    "gpqa": ([GPQA], None, None, None, None),
    "medqa": ([MEDQA], "C", "\\boxed{C}", None, "A"),
    "mbppplus": (
        [MBPP],
        "all tests pass",
        f"```python\n{DOUBLE}\n```\nFor example:\n```python\nprint(double(3))\n```",
        None,
        f"```python\n{DOUBLE.replace('2', '3')}\n```",
    ),
    "livecodebench": (
        [LCB_FUNCTION],
        "all tests pass",
        "```python\nclass Solution:\n    def double(self, x):\n        return x + x\n```",
        "```python\nclass Solution:\n    def double(self, x): return x + x\n```\n```python\ndef no(): pass\n```",
        "no program",
    ),
    "hotpotqa": ([HOTPOT], "Jane Austen", "\\boxed{jane austen.}", None, "Charlotte Brontë"),
    "bamboogle": ([{"Question": "When?", "Answer": "2019-05-04"}], "2019-05-04", "May 4, 2019", None, "May 2019"),
    "gsm8k": ([{"question": "How many?", "answer": "2+3=<<2+3=5>>5\n#### 5"}], None, "5", "5.5", "6"),
    "svamp": (
        [{
            "ID": "chal-1", "Body": "Ann has 3 pens", "Question": "How many?", "Equation": "3", "Answer": 3.0,
            "Type": "Addition", "question_concat": "…",
        }],
        "3", "3", "3.2", "4",
    ),
}  # fmt: skip


def write(rows, folder, form):
    """Rows as a file that the real reader of datasets reads."""
    path = folder / f"rows.{form}"
    if form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif form == "json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    else:
        getattr(datasets.Dataset.from_list(rows), f"to_{form}")(path)
    return path


def test_every_benchmark_has_a_schema_here():
    assert SCHEMAS.keys() == BENCHMARKS.keys()


@pytest.mark.parametrize("name", BENCHMARKS)
def test_rows_of_a_benchmark_are_read_in_its_own_schema_in_every_form(name, tmp_path):
    rows, answer, *_ = SCHEMAS[name]
    forms = ["jsonl", "json", "parquet"] + ["csv"] * (name in ("gpqa", "bamboogle", "svamp"))
    found = [load_rows(BENCHMARKS[name], write(rows * 2, tmp_path, form)) for form in forms]
    for each in found:
        assert len(each) == 2 and each[0]["question"] == found[0][0]["question"]
        assert each[0]["answer"] == (answer or found[0][0]["answer"])
    assert len(load_rows(BENCHMARKS[name], tmp_path / "rows.json", limit=1)) == 1


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name != "gpqa"])
def test_both_scorers_judge_what_was_written(name, tmp_path):
    rows, _, right, loose, wrong = SCHEMAS[name]
    benchmark = BENCHMARKS[name]
    row = load_rows(benchmark, write(rows, tmp_path, "jsonl"))[0]
    texts = {right: (True, True), wrong: (False, False)} | ({loose: (False, True)} if loose else {})
    found = scoring.verdicts(benchmark, [row] * len(texts), list(texts))
    assert [(each["strict"], each["release"]) for each in found] == list(texts.values())


def test_options_of_gpqa_stand_in_one_order_that_does_not_tell_the_right_one():
    letters = []
    for number in range(24):
        row = GPQA | {"Question": f"Which gas, {number}?"}
        read = read_row(BENCHMARKS["gpqa"], row, "here")
        assert read == read_row(BENCHMARKS["gpqa"], dict(reversed(row.items())), "here")
        assert f"{read['answer']}. neon" in read["question"].splitlines()
        letters.append(read["answer"])
    assert set(letters) == set("ABCD")


def test_medqa_is_one_question_in_both_schemas():
    hub, release = (read_row(BENCHMARKS["medqa"], row, "here") for row in (MEDQA, MEDQA_RELEASE))
    assert hub["question"] == release["question"] == f"What lowers fever?\n{BLOCK}"
    assert hub["answer"] == release["answer"] == "C"


def test_mbppplus_shows_three_assertions_and_livecodebench_its_starter_code():
    assert read_row(BENCHMARKS["mbppplus"], MBPP, "here")["question"].count("assert") == 3
    assert "def double(self" in read_row(BENCHMARKS["livecodebench"], LCB_FUNCTION, "here")["question"]
    assert "standard input" in read_row(BENCHMARKS["livecodebench"], LCB_INPUT, "here")["question"]


def test_private_tests_count_and_nothing_is_unpickled():
    benchmark = BENCHMARKS["livecodebench"]
    rows = [read_row(benchmark, row, "here") for row in (LCB_FUNCTION, LCB_INPUT)]
    texts = ["```python\nclass Solution:\n    def double(self, x):\n        return 6\n```", "```python\nprint(6)\n```"]
    assert not any(each["strict"] for each in scoring.verdicts(benchmark, rows, texts))  # the public tests pass
    evil = base64.b64encode(zlib.compress(pickle.dumps(print))).decode()
    with pytest.raises(InputError, match="Private tests"):
        read_row(benchmark, LCB_FUNCTION | {"private_test_cases": evil}, "here")
    assert private_tests(LCB_FUNCTION["private_test_cases"])[0]["output"] == "10"


@pytest.mark.parametrize(
    ("name", "change", "found"),
    [
        ("math500", {"answer": None}, "None is no text"),
        ("math500", {"problem": " "}, "no text"),
        ("gpqa", {"Correct Answer": None}, "no text"),
        ("medqa", {"answer": "Aspirin", "answer_idx": None}, "none of the options"),
        ("medqa", {"answer": "Aspirin", "answer_idx": "E"}, "none of the options"),
        ("mbppplus", {"test_list": None}, "NoneType"),
        ("livecodebench", {"metadata": "{"}, "cannot be read"),
        ("livecodebench", {"public_test_cases": "[]", "private_test_cases": "[]"}, "no test"),
    ],
)
def test_a_row_of_another_form_is_named_before_anything_is_loaded(name, change, found, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "load_from_arguments", pytest.fail)
    path = write([SCHEMAS[name][0][0], SCHEMAS[name][0][0] | change], tmp_path, "jsonl")
    assert cli.main(["benchmark", name, "--data", str(path), "--allow-code"]) == 2
    printed = capsys.readouterr().err
    assert found in printed and ("row 2" in printed or "livecodebench" in name)


def test_what_cannot_be_done_is_said_before_anything_is_read(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "load_rows", pytest.fail)
    for arguments, said in [
        (["mbppplus"], "--allow-code"),
        (["livecodebench", "math500"], "--allow-code"),
        (["mmlu"], "no such benchmark"),
        ([], "No benchmark"),
        (["math500", "aime25", "--data", "x.jsonl"], "one benchmark"),
        (["math500", "--preset", "large"], "no such preset"),
        (["math500", "--samples", "0"], "--samples"),
        (["math500", "--seeds", "1", "1"], "twice"),
        (["math500", "--controls", "--mode", "text"], "--controls"),
        (["math500", "--tools", "python"], "--allow-code"),
    ]:
        assert cli.main(["benchmark", *arguments]) == 2
        assert said in capsys.readouterr().err
    monkeypatch.undo()
    for name, content in [("x.txt", "{}"), ("x.jsonl", "{"), ("y.parquet", "no"), ("z.jsonl", "")]:
        (tmp_path / name).write_text(content)
        assert cli.main(["benchmark", "math500", "--data", str(tmp_path / name)]) == 2
        assert name in capsys.readouterr().err
    assert cli.main(["benchmark", "math500", "--data", str(tmp_path / "none.json")]) == 2


def test_presets_are_the_releases_and_every_setting_can_be_given():
    import argparse

    parser = argparse.ArgumentParser()
    command.configure(parser)

    def settings(name, *arguments):
        return command.settings_of(parser.parse_args([name, *arguments]), BENCHMARKS[name])

    table = {  # latent steps, batch, new tokens, samples
        ("sequential_light", "math500"): (48, 32, 1000, 1),
        ("sequential_light", "medqa"): (32, 16, 4000, 1),
        ("sequential_light", "gpqa"): (32, 16, 4000, 1),
        ("sequential_light", "mbppplus"): (16, 16, 4000, 1),
        ("sequential_light", "aime25"): (32, 32, 8192, 10),
        ("sequential_scaled", "math500"): (32, 16, 2000, 1),
        ("sequential_scaled", "medqa"): (48, 16, 4000, 1),
        ("sequential_scaled", "gpqa"): (48, 16, 4000, 1),
        ("sequential_scaled", "mbppplus"): (16, 16, 4000, 1),
        ("mixture", "aime26"): (32, 32, 16000, 10),
        ("distillation", "livecodebench"): (32, 32, 4096, 1),
        ("deliberation", "hotpotqa"): (32, 32, 4000, 1),
        ("deliberation", "bamboogle"): (32, 32, 4000, 1),
    }
    for (style, name), expected in table.items():
        found = settings(name, "--system", style)
        generation = found["generation"]
        assert (found["latent_steps"], found["batch_size"], generation["max_new_tokens"], found["samples"]) == expected
        temperature = 0.2 if name == "mbppplus" else 0.6
        sampling = [generation[key] for key in ("do_sample", "temperature", "top_p", "top_k")]
        assert sampling == [True, temperature, 0.95, 0] and found["num_rounds"] == 3 and found["complete_answer"]
        assert found == settings(name, "--system", "mine", "--preset", style)
        assert settings(name, "--system", style, "--preset", "none") == settings(name, "--system", "mine") | {
            "preset": "none"
        }
    given = ("--rounds", "1", "--latent-steps", "2", "--batch-size", "3", "--samples", "4", "--max-new-tokens", "5")
    found = settings("aime26", "--system", "mixture", *given, "--top-p", "0.5", "--no-complete-answer")
    assert [found[name] for name in ("num_rounds", "latent_steps", "batch_size", "samples")] == [1, 2, 3, 4]
    assert found["generation"]["max_new_tokens"] == 5 and found["generation"]["top_p"] == 0.5
    assert not found["complete_answer"]
    greedy = settings("aime26", "--system", "mixture", "--temperature", "0")
    assert greedy["samples"] == 1 and greedy["generation"] == {"do_sample": False, "max_new_tokens": 16000}
    assert all(release_settings(style, name)["task"] == BENCHMARKS[name].task for style in released_styles()["styles"]
               for name in BENCHMARKS)  # fmt: skip


# ── Several answers ──


def test_pass_at_k_is_unbiased():
    """Against the mean over all choices of k of n answers."""
    from itertools import combinations

    for n, c in [(5, 0), (5, 2), (6, 1), (4, 4)]:
        answers = [True] * c + [False] * (n - c)
        for k in range(1, n + 1):
            choices = [any(chosen) for chosen in combinations(answers, k)]
            assert scoring.pass_at_k(c, n, k) == pytest.approx(sum(choices) / len(choices))


def test_the_answer_that_most_texts_give_counts_by_value_and_of_equals_the_first():
    math, choice, phrase = BENCHMARKS["math500"], BENCHMARKS["gpqa"], BENCHMARKS["bamboogle"]
    assert scoring.vote(math, ["\\boxed{1}", "\\boxed{0.5}", "the answer is $\\frac{1}{2}$", "\\boxed{2}"]) == 1
    assert scoring.vote(math, ["\\boxed{2}", "\\boxed{1}"]) == 0
    assert scoring.vote(choice, ["no idea", "still none", "\\boxed{B}"]) == 2
    assert scoring.vote(choice, ["no idea", ""]) is None
    assert scoring.vote(phrase, ["Rome", "The answer is Paris.", "\\boxed{paris}"]) == 1
    rows = {
        0: [{"prediction": text, "strict": text == "2", "release": False} for text in ("1", "2", "2")],
        1: [{"prediction": text, "strict": text == "2", "release": True} for text in ("1", "1", "2")],
    }
    found = scoring.of_samples(math, rows, [1, 3])
    assert found["strict"] == {"pass_at_k": {"1": 0.5, "3": 1.0}, "majority": 0.5}
    assert found["release"] == {"pass_at_k": {"1": 0.5, "3": 0.5}, "majority": 0.5}


# ── Runs of a shipped system, on questions that it can answer ──


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """The shipped system's own task, in GSM8K's schema."""
    rows = TASKS["arithmetic"].generate(10, [2, 4, 6, 8], seed=1)
    return write([{"question": row["question"], "answer": row["answer"]} for row in rows],
                 tmp_path_factory.mktemp("questions"), "jsonl")  # fmt: skip


RUN = (
    "--rounds",
    "1",
    "--batch-size",
    "4",
    "--max-new-tokens",
    "5",
    "--temperature",
    "6",
    "--samples",
    "2",
    "--seeds",
    "3",
    "5",
)


@pytest.fixture(scope="module")
def whole(questions, tmp_path_factory):
    """A run that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    assert cli.main(["benchmark", "gsm8k", "--data", str(questions), *RUN, "--output", str(folder)]) == 0
    return folder


def answers(folder):
    """All answers of a run, but for the time that they took."""
    lines = (folder / "gsm8k.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: of for name, of in json.loads(line).items() if name != "seconds"} for line in lines]


def test_a_report_says_what_was_measured_with_what_and_both_scorers(whole, questions):
    results = json.loads((whole / "gsm8k.json").read_text(encoding="utf-8"))
    found, rows = results["figures"][0], answers(whole)
    assert len(rows) == 10 * 2 * 2 and {(row["seed"], row["sample"]) for row in rows} == {
        (seed, sample) for seed in (3, 5) for sample in (0, 1)
    }
    for row in rows:
        assert METRICS["numeric"].judge(row["prediction"], row["answer"]) == {
            name: row[name] for name in ("strict", "release")
        }
    assert found["accuracy"] == pytest.approx(sum(row["strict"] for row in rows) / len(rows)) != 0
    assert found["release_accuracy"] == pytest.approx(sum(row["release"] for row in rows) / len(rows))
    assert found["interval"][0] < found["accuracy"] < found["interval"][1]
    assert results["samples"]["strict"]["pass_at_k"]["1"] == pytest.approx(found["accuracy"])
    assert results["by_seed"].keys() == {"3", "5"} and results["deviation"].keys() == {"strict", "release"}
    runs = {(row["seed"], row["sample"]): [] for row in rows}
    for row in rows:
        runs[row["seed"], row["sample"]].append(row["prediction"])
    assert len(set(map(tuple, runs.values()))) == 4  # samples and seeds are not the same answers
    assert results["system"]["agents"].keys() == {"planner", "critic", "solver"}
    assert len(set(results["system"]["links"].values())) == 6
    assert results["settings"]["seeds"] == [3, 5] and results["settings"]["generation"]["temperature"] == 6
    assert {"commit", "versions", "date", "machine", "asked"} <= results.keys()
    text = (whole / "gsm8k.md").read_text(encoding="utf-8")
    assert f"| strict | {found['accuracy']:.3f} |" in text and "pass@k" in text and str(questions.name) in text
    assert {path.suffix for path in whole.iterdir()} == {".json", ".jsonl", ".md", ".png"}


def test_cards_carry_whole_benchmarks_by_both_scorers_and_what_controls_found(whole, chain_folder, tmp_path):
    results = json.loads((whole / "gsm8k.json").read_text(encoding="utf-8"))
    results["verdicts"] = ["r = 1: nothing shows that the channel carries anything"]
    for name, size in [("part", results["settings"]["of"]), ("whole", results["settings"]["num_questions"])]:
        results["settings"]["of"] = size
        (tmp_path / f"{name}.json").write_text(json.dumps(results), encoding="utf-8")
        options = plan.Options("my-org", "Tiny", results=[str(tmp_path / f"{name}.json")])
        stage.stage(str(chain_folder), tmp_path / name, options)
    place = tmp_path / "whole" / "Tiny" / ".eval_results" / "gsm8k.yaml"
    (entry,) = yaml.safe_load(place.read_text(encoding="utf-8"))
    accuracy = results["figures"][0]["accuracy"]
    assert entry["dataset"] == {"id": "openai/gsm8k", "task_id": "main"}
    assert entry["value"] == round(100 * accuracy, 2) and "strict scorer" in entry["notes"]
    assert not (tmp_path / "part" / "Tiny" / ".eval_results").exists()  # no leaderboard for a part
    card = tmp_path / "whole" / "Tiny" / "README.md"
    values = {result.metric_name: result.metric_value for result in ModelCard.load(card).data.eval_results}
    assert [round(accuracy, 4), round(results["figures"][0]["release_accuracy"], 4)] == list(values.values())
    assert "nothing shows that the channel carries anything" in card.read_text(encoding="utf-8")
    assert not scan.scan(tmp_path / "whole" / "Tiny")


class Killed(BaseException):
    """Ends a run as a kill does: nothing of the command runs afterwards but what frees files."""


def test_a_run_that_was_killed_goes_on_to_the_same_answers(whole, questions, tmp_path, monkeypatch):
    folder, write_rows = tmp_path / "killed", RowFile.write
    arguments = ["benchmark", "gsm8k", "--data", str(questions), *RUN, "--output", str(folder)]
    written = []

    def stop(self, rows):
        if len(written) == 5:  # amid a batch, and amid a line
            write_rows(self, rows[:1])
            self._file.write(b'{"row": 3, "quest')
            self._file.flush()
            raise Killed
        written.append(rows)
        write_rows(self, rows)

    monkeypatch.setattr(RowFile, "write", stop)
    with pytest.raises(Killed):
        cli.main(arguments)
    monkeypatch.undo()
    assert not (folder / "gsm8k.json").exists()
    asked = []
    solve = RecursiveMASModel.solve
    monkeypatch.setattr(
        RecursiveMASModel, "solve", lambda self, q, **kwargs: asked.append(len(q)) or solve(self, q, **kwargs)
    )
    assert cli.main(arguments) == 2  # without --resume nothing is touched
    assert cli.main([*arguments, "--resume", "--temperature", "1"]) == 2  # another run
    assert not asked
    assert cli.main([*arguments, "--resume"]) == 0
    assert answers(folder) == answers(whole)
    assert sum(asked) == 10 * 4 - sum(map(len, written))
    asked.clear()
    assert cli.main([*arguments, "--resume"]) == 0 and not asked  # it has ended


def test_processes_that_share_the_batches_give_what_one_does_however_many_went_before(
    whole, questions, tmp_path, monkeypatch
):
    """Two ranks, one after the other in this process; then a run of one that goes on behind both."""
    folder = tmp_path / "shared"
    arguments = ["benchmark", "gsm8k", "--data", str(questions), *RUN, "--output", str(folder)]

    class Alone(running.Share):
        def exchanged(self, rows):
            raise Killed  # the other has not come yet

    for rank in (0, 1):
        monkeypatch.setattr(command.Share, "of_launcher", classmethod(lambda cls, rank=rank: Alone(rank, 2)))
        with pytest.raises(Killed):
            cli.main(arguments)
    monkeypatch.undo()
    names = {path.name for path in folder.glob("*.jsonl")}
    assert names == {"gsm8k.rows.jsonl", "gsm8k.rank1.rows.jsonl"}
    monkeypatch.setattr(RecursiveMASModel, "solve", pytest.fail)
    assert cli.main([*arguments, "--resume"]) == 0
    assert answers(folder) == answers(whole)
    assert {path.name for path in folder.iterdir()} == {f"gsm8k.{end}" for end in ("json", "jsonl", "md", "png")}


@pytest.mark.slow
def test_a_launcher_shares_the_questions_with_the_same_result(whole, questions, tmp_path):
    """`torch.distributed.run`, which `accelerate launch` uses."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "recursivemas.cli"]
    command += ["benchmark", "gsm8k", "--data", str(questions), *RUN, "--output", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert answers(tmp_path) == answers(whole) and done.stdout.count("# GSM8K") == 1
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".jsonl", ".md", ".png"}


def test_without_sampling_several_answers_are_refused(questions, capsys):
    for arguments in (["--samples", "2"], ["--seeds", "1", "2"]):
        assert cli.main(["benchmark", "gsm8k", "--data", str(questions), *arguments]) == 2
        assert "--temperature" in capsys.readouterr().err


def shuffled(mas):
    """The system with its outer links' inputs permuted at random: what travels says nothing any more."""
    for link in mas.outer_links.values():
        for parameter in link.parameters():
            if parameter.ndim == 2:
                order = torch.randperm(parameter.shape[1], generator=torch.Generator().manual_seed(0))
                parameter.data = parameter.data[:, order]
    return mas


@pytest.mark.slow
def test_controls_tell_a_channel_that_carries_from_one_that_is_shuffled(tmp_path, capsys, monkeypatch):
    rows = TASKS["arithmetic"].generate(120, [5, 6, 7], seed=7)
    path = write([{"question": row["question"], "answer": row["answer"]} for row in rows], tmp_path, "jsonl")
    arguments = ["benchmark", "gsm8k", "--data", str(path), "--controls", "--json"]
    assert cli.main(arguments) == 0
    results = json.loads(capsys.readouterr().out)
    names = [figure["control"] for figure in results["controls"]]
    assert names[0] == "latents" and {"alone_voted", "none", "noise", "other_question", "text", "alone"} <= {*names}
    assert "the channel carries the answer" in results["verdicts"][0]
    voted = results["controls"][-1]
    assert voted["control"] == "alone_voted" and voted["votes"] > 1 and str(voted["votes"]) in results["verdicts"][1]
    load = command.load_from_arguments
    monkeypatch.setattr(command, "load_from_arguments", lambda chosen: shuffled(load(chosen)))
    assert cli.main(arguments) == 0
    assert "the channel carries the answer" not in json.loads(capsys.readouterr().out)["verdicts"][0]


def test_rows_that_another_process_left_broken_are_one_clear_error(tmp_path):
    kept = tmp_path / "math500.rank1.rows.jsonl"
    kept.write_text("{\n")
    kept.with_name(f"{kept.name}.run").write_text("{}")
    with pytest.raises(InputError, match=r"(?s)not valid JSON.*rank1.*line 1"):
        rows_of_others(tmp_path / "math500.json", tmp_path / "math500.rows.jsonl", {})
