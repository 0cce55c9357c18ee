"""The benchmarks as tasks of lm-evaluation-harness: the table's data, its readers, its scorers."""

import importlib.util
import os
import subprocess
import sys

import datasets
import pytest
import yaml
from recursivemas import cli
from recursivemas.exams import scoring
from recursivemas.exams.benchmark import LM_EVAL_TASKS
from recursivemas.exams.table import BENCHMARKS, read_row
from recursivemas.system_loader import ROOT
from test_exams import SCHEMAS, write
from tiny import tiny_base


class Loader(yaml.SafeLoader):
    """Reads `!function utils.name` as "utils.name"."""


Loader.add_constructor("!function", lambda loader, node: node.value)


@pytest.fixture(scope="module")
def utils():
    """The file as the harness loads it: by its path."""
    spec = importlib.util.spec_from_file_location("utils", LM_EVAL_TASKS / "utils.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_benchmark_is_a_task_of_the_same_data(capsys):
    assert cli.main(["benchmark", "--lm-eval-path"]) == 0
    printed = capsys.readouterr().out.strip()
    assert printed == str(LM_EVAL_TASKS) and LM_EVAL_TASKS.samefile(ROOT / "exams" / "lm_tasks")
    files = {path.stem: yaml.load(path.read_text(), Loader) for path in LM_EVAL_TASKS.glob("recursivemas_*.yaml")}
    assert files.keys() == {f"recursivemas_{name}" for name in BENCHMARKS}
    for name, benchmark in BENCHMARKS.items():
        task = files[f"recursivemas_{name}"]
        assert task["task"] == f"recursivemas_{name}" and task["test_split"] == benchmark.split
        if benchmark.files:
            places = [f"hf://datasets/{benchmark.dataset}/{file}" for file in benchmark.files]
            assert task["dataset_path"] == "json" and task["dataset_kwargs"]["data_files"][benchmark.split] == places
        else:
            assert (task["dataset_path"], task.get("dataset_name")) == (benchmark.dataset, benchmark.config)
        for key, function in [("process_docs", "docs"), ("doc_to_text", "text"), ("process_results", "results")]:
            assert task[key] == f"utils.{name}_{function}"
        assert task.get("unsafe_code", False) == (benchmark.tests is not None)  # the harness asks before it runs code
    base = yaml.safe_load((LM_EVAL_TASKS / "_recursivemas.yaml").read_text())
    assert [metric["metric"] for metric in base["metric_list"]] == ["strict", "release"]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_task_asks_the_question_and_judges_as_the_command_does(name, utils):
    rows, _, right, _, wrong = SCHEMAS[name]
    (doc,) = getattr(utils, f"{name}_docs")(datasets.Dataset.from_list(rows))
    row = read_row(BENCHMARKS[name], rows[0], "here")
    assert (doc["question"], doc["answer"]) == (row["question"], row["answer"])
    asked = getattr(utils, f"{name}_text")(doc)
    assert row["question"] in asked and "<|" not in asked and ("boxed" in asked or "```python" in asked)
    for text in (right, wrong) if right else (f"\\boxed{{{row['answer']}}}", "?"):
        (verdict,) = scoring.verdicts(BENCHMARKS[name], [row], [text])
        assert getattr(utils, f"{name}_results")(doc, [text]) == verdict


def offline(name, folder):
    """A task of the harness with the rows of a file in the place of the Hub's, as a user would write it."""
    path = write(SCHEMAS[name][0] * 2, folder, "jsonl")
    (folder / "offline.yaml").write_text(
        f"include: {LM_EVAL_TASKS / f'recursivemas_{name}.yaml'}\ntask: offline\ndataset_path: json\n"
        f"dataset_name: null\ndataset_kwargs: {{data_files: {{{BENCHMARKS[name].split}: {path}}}}}\n"
        "generation_kwargs: {until: [], do_sample: false, max_gen_toks: 8}\n"
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["math500", "mbppplus"])
def test_a_stock_model_is_measured_by_the_harness(name, tmp_path):
    pytest.importorskip("lm_eval")
    model, tokenizer = tiny_base("qwen2")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    command = [
        *(sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu", "--batch_size", "2"),
        *("--model_args", f"pretrained={tmp_path / 'model'},max_length=2048", "--tasks", "offline"),
        *("--include_path", str(offline(name, tmp_path))),
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": ""}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    if name == "mbppplus":
        assert done.returncode and "confirm_run_unsafe_code" in done.stderr + done.stdout
        command.append("--confirm_run_unsafe_code")
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "strict" in done.stdout and "release" in done.stdout
