"""Time and peak memory of the streaming states for a validation set of large pictures, one picture at a time.

OMP_NUM_THREADS=1 python dense.py [--pictures 100] [--size 512] [--classes 150] (Linux; 1 GB, some minutes a state)
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

import torch

from finecal.streaming import AccuracySums, IoUBins, IoUSums, MarginBins, MarginRows, ProbabilitySums

LAYOUT = {"dim": 1, "ignore_index": 255}
STATES = {
    "nothing": None,
    "AccuracySums": lambda mask: AccuracySums(mask, 2.0, **LAYOUT),
    "MarginBins": lambda mask: MarginBins(mask, **LAYOUT),
    "MarginRows": lambda mask: MarginRows(mask, **LAYOUT),
    "ProbabilitySums": lambda mask: ProbabilitySums(mask, 2.0, **LAYOUT),
    "IoUSums": lambda mask: IoUSums(mask, 2.0, **LAYOUT),
    "IoUBins": lambda mask: IoUBins(mask, **LAYOUT),
}


def peak() -> float:
    """Return the largest resident memory so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name: str, pictures: int, size: int, classes: int) -> tuple[float, float]:
    """Return the seconds that the state took, and the peak of memory, in MiB."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(classes) < classes // 2
    make = STATES[name]
    state = make(mask) if make else None
    logits = torch.empty(1, classes, size, size)
    taken = 0.0
    for _ in range(pictures):
        logits.normal_(generator=generator)
        labels = logits[:, :, ::8, ::8].argmax(1).repeat_interleave(8, 1).repeat_interleave(8, 2)
        labels[:, ::8, 3::4] = 255  # at places all over the picture
        start = time.perf_counter()
        if state is not None:
            state.update(logits, labels)
        taken += time.perf_counter() - start
    if state is not None:
        state.compute()
    return taken, peak()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--size", type=int, default=512, help="a multiple of 8")
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--only", choices=STATES, help="in this process, and print seconds and MiB")
    given = parser.parse_args()
    sizes = ["pictures", "size", "classes"]
    if given.only:
        print(*measure(given.only, *(getattr(given, name) for name in sizes)))
        sys.exit()
    print(
        f"{given.pictures} pictures of {given.size} x {given.size} with {given.classes} classes; logits of one: "
        f"{4 * given.classes * given.size**2 / 2**20:.0f} MiB\n"
    )
    print("| state | ms a picture | MiB at the peak, beyond those without a state |\n| --- | ---: | ---: |")
    options = [f"--{name}={getattr(given, name)}" for name in sizes]
    alone = 0.0
    for name in STATES:
        command = [sys.executable, __file__, "--only", name, *options]
        taken, memory = map(float, subprocess.check_output(command, text=True).split())
        if name == "nothing":
            alone = memory
        else:
            print(f"| `{name}` | {1e3 * taken / given.pictures:.0f} | {memory - alone:.0f} |", flush=True)
