"""Running a program of unknown intent: `run_python` and, for many at once, `run_many`.

What a program can reach depends on the machine; `Outcome.protection` says what was in force, and `require` refuses to
run with less (see docs/tools.md for what each word means):

    files         it sees no file but Python's own libraries, the system's, and a private folder that goes with it
    network       it reaches nobody, not even this machine
    processes     it sees no foreign process, signals none, and everything that it starts ends with it
    system_calls  the kernel's riskier parts are closed to it
    limits        processor and wall time, memory, files, processes and output are bounded
"""

import contextlib
import functools
import importlib.util
import json
import marshal
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors_recursivemas import InputError, RecursiveMASError

PROTECTIONS = ("files", "network", "processes", "system_calls", "limits")
PACKAGES = ("numpy", "sympy", "mpmath")  # what a program may import beside the standard library
SETUP_SECONDS = 20.0  # for starting, however busy the machine is
STARTER = "import sys; sys.path.insert(0, {folder!r}); import jail; jail.main({fds})"


class SandboxError(RecursiveMASError, RuntimeError):
    """A program that was not run, because the machine cannot hold it as was asked."""


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        seconds: wall time, counted from when its first line could run.
        memory: bytes of address space of each process, and of memory of all of them together.
        file_bytes: of any one file.
        disk: bytes of the private folder (kept in memory).
        processes: processes and threads at a time.
        output: bytes of standard output, of standard error and of a call's value; what comes after ends the program.
        open_files: at a time.
        stack: bytes.
    """

    seconds: float = 10.0
    memory: int = 1 << 30
    file_bytes: int = 16 << 20
    disk: int = 64 << 20
    processes: int = 16
    output: int = 1 << 20
    open_files: int = 64
    stack: int = 64 << 20


@dataclass(frozen=True)
class Job:
    """A program and how it is run.

    Attributes:
        source: its text.
        stdin: what it reads.
        function: called once the program has run, with `arguments` (plain values); `Class.method` of a new object.
        arguments: of `function`.
        test: a script that runs behind the program, in a process of its own, with the program's functions.
        limits: what it may use.
    """

    source: str
    stdin: str = ""
    function: str | None = None
    arguments: Sequence[Any] = ()
    test: str | None = None
    limits: Limits = Limits()


@dataclass(frozen=True)
class Outcome:
    """What a program did.

    Attributes:
        stdout: what it printed; what is no UTF-8 is replaced.
        error: `None` where it ended well; else why it ended, or its traceback.
        seconds: how long it ran.
        protection: word of `PROTECTIONS` -> whether it was in force.
        value: of a job with a function, what that returned, as JSON has it.
    """

    stdout: str
    error: str | None
    seconds: float
    protection: dict[str, bool] = field(default_factory=dict)
    value: Any = None

    @property
    def passed(self) -> bool:
        """Whether the program (or the test script behind it) ran to its end without an error."""
        return self.error is None


def run_python(job: Job | str, *, require: Iterable[str] = ()) -> Outcome:
    """Runs a program in a sandbox, as strong as this machine allows, and waits for its end.

    Args:
        job: the program, or its text.
        require: words of `PROTECTIONS`; or `"all"` of them.

    Raises:
        InputError: `require` names no protection.
        SandboxError: something in `require` cannot be had here, or nothing could be started; nothing was run.
    """
    job = Job(job) if isinstance(job, str) else job
    required = set(PROTECTIONS) if require == "all" else {require} if isinstance(require, str) else set(require)
    if required - set(PROTECTIONS):
        raise InputError(
            "A required protection is unknown.", where="require", found=sorted(required), expected=PROTECTIONS
        )
    namespaces, reason = namespaces_here()
    missing = sorted(required - {word for word, held in protection_here().items() if held}) if required else []
    if missing:
        raise SandboxError(
            "This machine cannot hold a program as is required.",
            where="require",
            found=f"without {', '.join(missing)}" + (f" ({reason})" if reason else ""),
            hint="allow user namespaces (docs/tools.md), or require less",
        )
    return _run(job, namespaces)


def run_many(jobs: Sequence[Job | str], *, workers: int | None = None, require: Iterable[str] = ()) -> list[Outcome]:
    """`run_python` of every job, side by side on all cores (or so many `workers`); outcomes in the jobs' order."""
    with ThreadPoolExecutor(workers or cores()) as pool:
        return list(pool.map(functools.partial(run_python, require=require), jobs))


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def namespaces_here() -> tuple[bool, str]:
    """Whether this machine gives a program namespaces of its own; if not, what it said."""
    if sys.platform != "linux":
        return False, f"{sys.platform} has no namespaces"
    try:
        return _run(Job(""), True).passed, ""
    except SandboxError as error:
        return False, str(error).replace("\n", " ")


@functools.cache
def protection_here() -> dict[str, bool]:
    """Word of `PROTECTIONS` -> whether this machine has it."""
    return _run(Job(""), namespaces_here()[0]).protection


@functools.cache
def package_paths() -> tuple[str, ...]:
    """Folders and files of the packages that a program may import, with the libraries beside them."""
    paths = []
    for name in PACKAGES:
        found = importlib.util.find_spec(name)
        if found is not None and found.origin:
            folder = Path(found.origin).resolve().parent
            paths += [path for path in (folder, folder.with_name(f"{name}.libs")) if path.is_dir()]
    return tuple(map(str, paths))


def _file(data: bytes) -> Any:
    """A temporary file without a name, opened to be read only."""
    file = tempfile.NamedTemporaryFile()  # noqa: SIM115 — the reader outlives it
    with file:
        file.write(data)
        file.flush()
        return open(file.name, "rb")


def _run(job: Job, namespaces: bool) -> Outcome:
    """Starts jail.py, feeds it, listens until it ends or must be ended."""
    limits = job.limits
    with contextlib.ExitStack() as stack:
        folder = "" if namespaces else stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        if folder:
            os.chmod(folder, 0o777)
        inside: dict[str, Any] = {
            "kind": "script" if job.test is not None else "call" if job.function else "program",
            **{"source": job.source, "function": job.function, "arguments": list(job.arguments), "test": job.test},
            **{"namespaces": namespaces, "stage": os.path.realpath(tempfile.gettempdir()), "folder": folder},
            **{"packages": list(package_paths()), "limits": asdict(limits)},
        }
        inside["limits"]["cpu_seconds"] = int(limits.seconds) + 1
        job_file = stack.enter_context(_file(marshal.dumps(inside)))
        stdin = stack.enter_context(_file(job.stdin.encode("utf-8", "surrogateescape")))
        (status_r, status_w), (result_r, result_w) = os.pipe(), os.pipe()
        fds = (job_file.fileno(), status_w, result_w)
        starter = STARTER.format(folder=os.path.dirname(os.path.abspath(__file__)), fds=", ".join(map(str, fds)))
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-X", "utf8", "-c", starter],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=fds,
            env={},
            cwd="/",
            start_new_session=True,
        )
        os.close(status_w)
        os.close(result_w)
        assert process.stdout and process.stderr
        pipes = {
            "stdout": process.stdout,
            "stderr": process.stderr,
            "status": stack.enter_context(open(status_r, "rb")),
            "result": stack.enter_context(open(result_r, "rb")),
        }
        try:
            read, reason = _listen(process, pipes, limits)
            if not reason:
                process.wait()  # every pipe is closed: its end is near, and nobody need ask again and again
        finally:
            _end(process)
            process.stdout.close()
            process.stderr.close()
    return _outcome(job, read, reason, process)


def _listen(process: subprocess.Popen, pipes: dict[str, Any], limits: Limits) -> tuple[dict[str, bytearray], str]:
    """What comes out of each pipe until all are closed; or until a limit is passed, and which."""
    read = {name: bytearray() for name in pipes}
    deadline, started = time.monotonic() + SETUP_SECONDS, False
    with selectors.DefaultSelector() as selector:
        for name, pipe in pipes.items():
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, selectors.EVENT_READ, name)
        while selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                return read, f"time limit: {limits.seconds:g} s" if started else "time limit: it did not start"
            for key, _ in selector.select(min(left, 0.05)):
                data = os.read(key.fd, 1 << 16)
                if not data:
                    selector.unregister(key.fileobj)
                read[key.data] += data
                if len(read[key.data]) > limits.output:
                    return read, f"output limit: {limits.output} bytes of {key.data}"
            if not started and b"\n" in read["status"]:
                started, deadline = True, time.monotonic() + limits.seconds
            if started and memory_of(process.pid) > limits.memory:
                return read, f"memory limit: {limits.memory} bytes"
    return read, ""


def memory_of(pid: int) -> int:
    """Bytes in memory of a process and all below it; 0 where nobody can say."""
    total, pids = 0, [pid]
    for one in pids:  # grows
        try:
            with open(f"/proc/{one}/statm", "rb") as file:
                total += int(file.read().split()[1]) * 4096
            with open(f"/proc/{one}/task/{one}/children", "rb") as file:
                pids += map(int, file.read().split())
        except (OSError, IndexError):  # ended meanwhile, or no /proc
            continue
    return total


def _end(process: subprocess.Popen) -> None:
    """Ends whatever still runs of a sandbox, and waits for it."""
    if process.poll() is None:
        process.terminate()  # the guard ends what is inside, and then itself
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _outcome(job: Job, read: dict[str, bytearray], reason: str, process: subprocess.Popen) -> Outcome:
    """An outcome of what came out of the pipes; the status is what only the walls can have said."""
    status: dict[str, Any] = {}
    for line in read["status"].splitlines():
        status |= json.loads(line)
    stderr = _text(read["stderr"], job.limits.output).strip()
    if "failed" in status or "protection" not in status:
        raise SandboxError(
            "A sandbox could not be built; the program was not run.",
            where="sandbox",
            found=status.get("failed") or reason or stderr[-500:] or f"exit status {process.returncode}",
        )
    code = status.get("status", 0)
    if not reason and "status" not in status:
        reason = "the sandbox was ended from outside"
    elif not reason and code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        reason = "time limit: processor time" if name == "SIGXCPU" else f"ended by {name}"
    elif not reason and code:
        reason = "" if stderr else f"exit status {code}"
        reason = reason if not stderr or code == 1 else f"exit status {code}"
    error = "\n".join(filter(None, (reason, stderr if reason or code else ""))) or None
    value = None
    if job.function and error is None:
        try:
            value = json.loads(read["result"])["value"]
        except (ValueError, RecursionError, KeyError, TypeError):
            error = "the call returned no value of JSON"
    seconds = status.get("seconds", job.limits.seconds)
    return Outcome(_text(read["stdout"], job.limits.output), error, seconds, status["protection"], value)


def _text(data: bytearray, limit: int) -> str:
    return bytes(data[:limit]).decode("utf-8", "replace")
