"""What is promised to threads and processes: loading side by side, forking after a load, many first starts at once."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from recursivemas.system_loader import load_mas_system
from tiny import tiny_chain


def digest(mas):
    return [(name, value.dtype, float(value.double().sum())) for name, value in mas.state_dict().items()]


@pytest.mark.slow
def test_loading_in_threads_gives_what_loading_alone_gives(chain_folder, tmp_path):
    """Also afterwards: threads that load side by side used to leave the process broken."""
    tiny_chain(num_rounds=1).save_pretrained(tmp_path / "other")
    loads = [(folder, dtype) for folder in (chain_folder, tmp_path / "other") for dtype in ("float32", "bfloat16")]
    expected = [digest(load_mas_system(folder, dtype=dtype)) for folder, dtype in loads]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda load: digest(load_mas_system(load[0], dtype=load[1])), loads * 3))
    assert found == expected * 3
    assert [digest(load_mas_system(folder, dtype=dtype)) for folder, dtype in loads] == expected


FORK = """
import os, sys, threading, time
import torch
from recursivemas.system_loader import load_mas_system
from recursivemas.threads_recursivemas import one_at_a_time
torch.set_num_threads(2)
mas = load_mas_system(sys.argv[1])
big = torch.ones(1500, 1500)
expected = float((big @ big).sum()), mas.solve("Why?", max_new_tokens=4)[0].text  # the parent's threads are at work
def hold():
    with one_at_a_time():
        time.sleep(60)
threading.Thread(target=hold, daemon=True).start()
time.sleep(0.5)
if (pid := os.fork()) == 0:
    again = load_mas_system(sys.argv[1])
    for system in (mas, again):
        assert (float((big @ big).sum()), system.solve("Why?", max_new_tokens=4)[0].text) == expected
    os._exit(7)
os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_a_child_that_is_forked_after_a_load_answers_and_loads(chain_folder):
    """Though the parent computes in two threads, and another of its threads is loading."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-W", "ignore", "-c", FORK, str(chain_folder)]
    assert subprocess.run(command, env=environment, timeout=120, check=False).returncode == 7


@pytest.mark.slow
def test_six_first_starts_at_once_all_answer(chain_folder, tmp_path):
    code = "import sys; from recursivemas.system_loader import load_mas_system as load\n"
    code += "print(repr(load(sys.argv[1]).solve('Why?', max_new_tokens=4)[0].text))"
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-W", "ignore", "-c", code, str(chain_folder)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    starts = [subprocess.Popen(command, env=environment, **pipes) for _ in range(6)]
    texts = [start.communicate(timeout=900) for start in starts]
    assert all(start.returncode == 0 for start in starts), texts
    assert len({text for text, _ in texts}) == 1
