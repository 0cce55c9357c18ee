"""Running a script in a process of its own: offline, without accelerators, with limits of time and memory."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

# seconds: for starting, and for every gigabyte that is read
BASE_SECONDS, SECONDS_PER_GB = 180.0, 60.0
BASE_MEMORY = 4 << 30  # bytes: what Python and torch take by themselves, generously
# The process limits itself, so that nothing runs between fork and exec of a process with threads.
START = """
import runpy, sys
memory, script = int(sys.argv[1]), sys.argv[2]
try:
    import resource
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except (ImportError, ValueError, OSError):  # a system without limits
    pass
sys.argv = sys.argv[2:]
runpy.run_path(script, run_name="__main__")
"""


def free_ram() -> int | None:
    """Bytes of memory that a new process can have; `None` where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        try:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, OSError, ValueError):
            return None


def run_limited(
    script: str,
    arguments: Iterable[str],
    size: int,
    isolated: bool = False,
    seconds: float | None = None,
    cache: str | None = None,
) -> tuple[str, str | None]:
    """Runs a script; nobody can be asked on the terminal, and the Hub is out of reach.

    Args:
        script: a Python file.
        arguments: its arguments.
        size: bytes of weights that it reads, which decide its limits: what is free of memory and this much beside it,
            or twice this where the system does not say.
        isolated: an empty home and cache, and nothing of this process's paths and settings.
        seconds: the limit of time, in place of one by size.
        cache: its Hub cache, in place of an empty one.

    Returns:
        What it printed, and what went wrong (`None` where nothing did): the end of its standard error, or the limit.
    """
    seconds = BASE_SECONDS + SECONDS_PER_GB * size / 1e9 if seconds is None else seconds
    room = free_ram()
    memory = size + BASE_MEMORY + (2 * size if room is None else max(0, room - BASE_MEMORY))
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        if isolated:
            environment = {k: v for k, v in environment.items() if not k.startswith(("HF_", "PYTHON"))}
            environment |= {"HOME": home, "HF_HOME": home, "HF_HUB_OFFLINE": "1"}
            environment |= {"HF_HUB_CACHE": cache} if cache else {}
        options = ["-I"] if isolated else []
        process = subprocess.Popen(
            [sys.executable, *options, "-W", "ignore", "-c", START, str(memory), script, *arguments],
            cwd=home,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            output, problem = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            _end(process)
            return "", f"took more than {seconds:.0f} seconds"
        except BaseException:
            _end(process)
            raise
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        return output, f"ended by {name}" + (f": {problem.strip()[-500:]}" if problem.strip() else "")
    return output, (problem.strip() or "it ended without a word")[-2000:] if process.returncode else None


def _end(process: subprocess.Popen) -> None:
    """Ends a process and what it started."""
    with contextlib.suppress(ProcessLookupError, AttributeError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.communicate()
