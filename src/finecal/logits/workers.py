"""Threads that share out rows, each with one thread of torch's own.

Loops over tiles call many short operations. When torch shares out each of them, its threads wait for one another each
time, and for whatever else runs on the machine: two of them may take far longer than one.
"""

import functools
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Barrier

import torch
from torch import Tensor

_LEAST_ELEMENTS = 1 << 21
"""Number of logits from which threads pay off."""


def map_row_chunks(
    kernel: Callable[..., tuple[Tensor, ...]], *columns: Tensor, elements: int | None = None
) -> tuple[Tensor, ...]:
    """Run a kernel on slices of rows, in as many threads as torch may use, and join what it returns.

    The first of `columns` are logits, or else `elements` says how many of them the kernel looks at. On one thread, for
    few of them, on other devices and in graphs it runs as it is.
    """
    first = columns[0]
    elements = first.numel() if elements is None else elements
    if torch.compiler.is_compiling() or first.device.type != "cpu" or elements < _LEAST_ELEMENTS:
        return kernel(*columns)
    threads = min(torch.get_num_threads(), first.shape[0])
    if threads == 1:
        return kernel(*columns)
    inference = torch.is_inference_mode_enabled()  # of this thread alone, as is the next

    def run(part: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        with torch.inference_mode(inference), torch.no_grad():
            return kernel(*part)

    parts = zip(*(column.tensor_split(threads) for column in columns), strict=True)
    return concat_columns(_pool(threads).map(run, parts))


def concat_columns(parts: Iterable[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Join what a kernel returned for parts of the rows, column by column."""
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    before, all_started = torch.get_num_threads(), Barrier(threads)

    def start() -> None:
        torch.get_num_threads()  # The first call of a thread takes over the number of the process.
        torch.set_num_threads(1)
        all_started.wait()

    pool = ThreadPoolExecutor(threads, "finecal", start)
    wait([pool.submit(int) for _ in range(threads)])
    torch.set_num_threads(before)  # New threads of others take over what was set last.
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # Threads do not survive a fork.
