"""Ctrl-C and SIGTERM: what is done is kept, and the message says how to go on."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Interrupted(KeyboardInterrupt):
    """A run that was stopped from outside.

    Args:
        message: what is kept and how to go on.
        signum: the signal; the exit status of a command is 128 more.
    """

    def __init__(self, message: str = "", signum: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signum = int(signum)


@contextmanager
def signals_to(handler: Callable[[int], None]) -> Iterator[None]:
    """Hands SIGINT and SIGTERM to a function of the signal's number, meanwhile.

    A signal that was ignored stays so (SIGINT of a job in the background of a script); and outside the main thread,
    where Python allows no handlers, nothing changes.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, lambda signum, frame: handler(signum))
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def interruptible(say: Callable[[], str]) -> Iterator[None]:
    """Turns Ctrl-C and SIGTERM into `Interrupted`, with what `say` then tells unless it was said already."""

    def stop(signum: int) -> None:
        raise Interrupted(signum=signum)

    try:
        with signals_to(stop):
            yield
    except KeyboardInterrupt as error:
        if str(error):
            raise
        raise Interrupted(say(), getattr(error, "signum", signal.SIGINT)) from None
