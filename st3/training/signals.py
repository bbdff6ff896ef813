"""How a run is asked to end: Ctrl-C, kill, a closed terminal, the warning of a batch system."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

GRACE = 1.0
ASKING = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1


class Interruption(KeyboardInterrupt):
    """A signal has asked this process to end; what can be saved is saved."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class Signals:
    """Within `with Signals() as signals`, the first of `ASKING` raises `Interruption`, and one that comes `GRACE`
    seconds later or more ends at once. Those before are the same one: batch systems send it to all processes, and
    torchrun, which has it, too, passes it on.

    Within `with signals.noted()` the first is only noted, in `asked`: what is under way is brought to an end there.
    Signals that somebody else handles or ignores (Submitit, nohup) stay as they are.
    """

    def __init__(self) -> None:
        self.asked = 0
        """The number of the signal; 0: none has come."""
        self._asked_at = 0.0
        self._noting = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Signals":
        ours = signal.SIG_DFL, signal.default_int_handler
        if threading.current_thread() is threading.main_thread():  # no other thread may
            self._before = {each: handler for each in ASKING if (handler := signal.getsignal(each)) in ours}
        for each in self._before:
            signal.signal(each, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)  # type: ignore[arg-type]

    @contextmanager
    def noted(self) -> Iterator[None]:
        self._noting = True
        yield
        self._noting = False  # an error is to be told first

    def obey(self) -> None:
        """Raises `Interruption` where a signal has been noted."""
        if self.asked:
            raise Interruption(self.asked)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            if time.monotonic() - self._asked_at >= GRACE:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self.asked, self._asked_at = number, time.monotonic()
        if not self._noting:
            raise Interruption(number)
