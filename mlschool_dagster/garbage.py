"""Suspension of the garbage collector."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager

# At exit, the collector would scan all objects several times: two seconds after Evidently and
# MLflow were imported, for memory that is freed anyway.
atexit.register(gc.freeze)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Disable garbage collection while objects that live on are created.

    Importing and tracing create a million of them. Scanning them repeatedly takes a third of a
    short training, and a fifth of monitoring a small window.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
