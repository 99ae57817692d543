"""Ctrl-C without loss: the first takes effect after the current dispatch, the second immediately."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether there was an interrupt.

    A dispatch donates its input state, so that an exception during a dispatch would leave no state. Outside the main
    thread, or if the program has its own handler of interrupts, nothing is changed.
    """
    interrupted = False

    def handle(signum, frame):
        nonlocal interrupted
        if interrupted:
            raise KeyboardInterrupt
        interrupted = True
        print("\nstopping after this dispatch; interrupt again to stop at once", file=sys.stderr)

    is_ours = threading.current_thread() is threading.main_thread()
    if not is_ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return
    signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: interrupted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
