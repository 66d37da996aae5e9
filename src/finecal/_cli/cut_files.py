"""Files that another program cuts while a command reads them."""

import ctypes
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)


@contextmanager
def explain_cut_files(given: Mapping[str, Any], program: str) -> Iterator[None]:
    """End the process with a sentence where a mapped file of those in `given` has lost what is to be read of it.

    The system sends SIGBUS then, and the instruction that reads cannot go on: a handler of Python's `signal`, which
    waits for its end, would never be called.
    """
    if not hasattr(signal, "SIGBUS"):
        yield
        return
    entries = [entry for value in given.values() for entry in (value if isinstance(value, list) else [value])]
    sizes = {path: os.path.getsize(path) for path in entries if isinstance(path, Path) and os.path.isfile(path)}

    def explain(number: int) -> None:
        cut = [str(path) for path, size in sizes.items() if not os.path.isfile(path) or os.path.getsize(path) < size]
        name = cut[0] if cut else "a file"
        os.write(2, f"{program}: error: {name} was cut while it was read; replace such files as a whole\n".encode())
        os._exit(2)

    handler = _Handler(explain)  # which has to stay alive
    install = ctypes.CDLL(None).signal
    install.argtypes, install.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    before = install(signal.SIGBUS, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        install(signal.SIGBUS, before)
