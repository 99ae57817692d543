"""Ctrl-C without loss: the first is heard when what is going on has ended, the second at once."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether there was an interrupt. Does nothing where Python would not hear it itself.

    A dispatch overwrites the state that it is given: an exception in the midst of it would leave none.
    """
    heard = False

    def hear(signum, frame):
        nonlocal heard
        if heard:
            raise KeyboardInterrupt
        heard = True
        print("\nstopping after this dispatch; interrupt again to stop at once", file=sys.stderr)

    is_ours = threading.current_thread() is threading.main_thread()
    if not is_ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return
    signal.signal(signal.SIGINT, hear)
    try:
        yield lambda: heard
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
