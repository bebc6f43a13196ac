"""When not to look for garbage."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager

# An interpreter that ends would look through all objects several times, for two seconds after
# Evidently and MLflow; their memory is given back anyway.
atexit.register(gc.freeze)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Importing and tracing make a million objects that live on.

    Looking for garbage among them again and again would cost a third of a short training, and a
    fifth of monitoring a small window.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
