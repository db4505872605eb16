"""An interrupt stays one, whatever it meets on its way.

Ctrl-C raises KeyboardInterrupt wherever Python is at that moment. Inside a library that may be a callback from C, a
finaliser, or an operator whose error is read as "not implemented": the interrupt is lost there, or comes back as a
TypeError, and the work goes on or ends in an error that is none. So around such work it is written down.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["interrupts_kept"]


@contextmanager
def interrupts_kept() -> Iterator[None]:
    """A KeyboardInterrupt that comes in the meantime leaves as one, also where code on the way lost or renamed it.

    The caller's handler of SIGINT is asked as before, and is in place again afterwards: one that raises nothing
    interrupts nothing. Off the main thread, which alone is interrupted, nothing is done.
    """
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[KeyboardInterrupt] = []

    def asked(number: int, frame: FrameType | None) -> None:
        try:
            before(number, frame)
        except KeyboardInterrupt as interrupt:
            came.append(interrupt)
            raise

    signal.signal(signal.SIGINT, asked)
    try:
        yield
    except Exception as error:
        if came:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt
