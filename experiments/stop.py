"""Ctrl-C that leaves a usable run folder."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any


class Stop:
    """Set by ctrl-C or a termination signal; training looks at it between chunks."""

    requested = False


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """The first signal asks to stop, the second one stops at once."""
    stop = Stop()

    def handler(number: int, frame: Any) -> None:
        del number, frame
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True

    signals = (signal.SIGINT, signal.SIGTERM)
    old = {number: signal.signal(number, handler) for number in signals}
    try:
        yield stop
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)
