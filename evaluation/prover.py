"""Asking math-verify whether two answers are equal, in a process of its own that is ended when it takes too long."""

import atexit
import json
import os
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

from ..errors_recursivemas import InputError

SECONDS = 5.0  # for one comparison


class Prover:
    """math-verify in a process of its own, started when it is first needed and again after it had to be ended.

    May be called from any thread, and after a fork. A comparison that takes longer than `seconds` counts as unequal.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._lock, self._owner = threading.Lock(), 0
        self._process: subprocess.Popen[str] | None = None
        atexit.register(self.close)

    def __call__(self, prediction: str, gold: str) -> bool:
        require_math_verify()
        if self._owner != os.getpid():  # a fork shares neither the pipe nor a lock that somebody held
            self._lock, self._process, self._owner = threading.Lock(), None, os.getpid()
        with self._lock:
            process = self._running()
            timer = threading.Timer(self.seconds, process.kill)
            timer.start()
            try:
                reply = self._ask(process, prediction, gold)
            finally:
                timer.cancel()
            if not reply:
                self.close()
            return reply.strip() == "true"

    def close(self) -> None:
        """Ends the process, if this one started it."""
        if self._process and self._owner == os.getpid():
            self._process.kill()
            self._process.communicate()
            self._process = None

    @staticmethod
    def _ask(process: subprocess.Popen[str], prediction: str, gold: str) -> str:
        assert process.stdin and process.stdout
        try:
            process.stdin.write(json.dumps([prediction, gold]) + "\n")
            process.stdin.flush()
            return process.stdout.readline()
        except OSError:
            return ""

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            # Its folder and the current one stay out of the path: their modules have names that libraries have too.
            code = (
                "import runpy, sys; sys.path = [p for p in sys.path if p]; runpy.run_path(sys.argv[1], {}, '__main__')"
            )
            script = str(Path(__file__).with_name("math_worker.py"))
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(
                [sys.executable, "-c", code, script],
                stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, encoding="utf-8",
            )  # fmt: skip
            self._ask(self._process, "1", "1")  # libraries are imported before the time runs
        return self._process


def require_math_verify() -> None:
    """
    Raises:
        InputError: math-verify is not installed.
    """
    if find_spec("math_verify") is None:
        raise InputError(
            "The strict scorer of mathematics needs math-verify, which is not installed.",
            where="metric math",
            hint="pip install 'recursivemas[benchmark]' (or: pip install math-verify)",
        )


prove = Prover()
