"""Ctrl-C and SIGTERM while a training runs: what must not be cut in two is finished first."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

LONGEST = 6.0  # seconds that a signal waits: whoever sent it may kill ten seconds later
# What `signal.getsignal` gives: a function, one of the two constants, or None for what C code set.
Handler = Callable[[int, FrameType | None], Any] | int | None


class Signals:
    """Lets Ctrl-C and SIGTERM wait while they are held, then does what they would have done.

    That is the handler of whoever calls, such as the command line's; SIGTERM without one becomes
    `KeyboardInterrupt` too, so that worker processes end and the folder is given back. A second
    signal does not wait, and none does for more than `LONGEST` seconds. Elsewhere than in the main
    thread, where Python gets no signals, nothing is held.
    """

    def __init__(self) -> None:
        self.held = False
        self.waiting: int | None = None  # the signal that came while they were held
        self._before: dict[int, Handler] = {}
        self._timer: threading.Timer | None = None

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                before = signal.getsignal(number)
                if before is not None and before is not signal.SIG_IGN:
                    self._before[number] = before
                    signal.signal(number, self._came)
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for number, before in self._before.items():
            signal.signal(number, before)

    @contextmanager
    def holding(self) -> Iterator[None]:
        """While it lasts they wait, unless it ends with an error."""
        self.held = True
        yield
        self.let_go()

    def let_go(self) -> None:
        """Hold them no more; one that waited does its work now."""
        self.held = False
        number, self.waiting = self.waiting, None
        if number is not None:
            self._pass_on(number, None)

    def stop(self) -> None:
        """As if SIGTERM had come, unless another one waits: another process was told to stop."""
        if self.waiting is None:
            self.waiting = signal.SIGTERM
        self.let_go()

    def _came(self, number: int, frame: FrameType | None) -> None:
        if self.held and self.waiting is None:
            self.waiting = number
            self._timer = threading.Timer(LONGEST, self._again)
            self._timer.daemon = True
            self._timer.start()
            return
        self._pass_on(number, frame)

    def _again(self) -> None:
        """The signal once more, to the main thread, which it wakes where it waits."""
        main = threading.main_thread().ident
        if self.waiting is not None and main is not None:
            signal.pthread_kill(main, self.waiting)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        before = self._before.get(number)
        if callable(before):
            before(number, frame)
        else:
            raise KeyboardInterrupt
