"""What commands print, where the reader may stop early (`| head`)."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def cut_short() -> Iterator[None]:
    """End without a word, and with the status of other commands, where nobody reads the output any more."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left has somewhere to go at exit
        raise SystemExit(128 + signal.SIGPIPE) from None
