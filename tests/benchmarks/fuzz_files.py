"""Flip every bit of a small file of each kind, and count what reading it then says.

``MALLOC_PERTURB_=85 python tests/benchmarks/fuzz_files.py [KIND]``, with ``tests`` in PYTHONPATH; minutes. Exit status
1 if a file that carries a checksum was read as another content. The variable lets glibc fill memory: without it, what a
reader leaves unfilled may hold the right numbers from the read before.
"""

import sys
import tempfile
import time
from pathlib import Path

from damage import KINDS, Refusal, outcome
from finecal._core.results import format_table


def flip_all(kind, path):
    """Return the numbers of bits, and of files refused, read as they were, and read as others."""
    kind.write(path)
    data, expected = bytearray(path.read_bytes()), outcome(kind, path)
    counts = {"refused": 0, "same": 0, "other": 0}
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        data[bit // 8] ^= 1 << bit % 8
        found = outcome(kind, path)
        counts["refused" if isinstance(found, Refusal) else "same" if found == expected else "other"] += 1
    return 8 * len(data), *counts.values()


def main(names):
    rows, wrong = [], 0
    for name, kind in KINDS.items():
        if names and name not in names:
            continue
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            counts = flip_all(kind, Path(folder) / kind.file)
        wrong += counts[-1] if kind.is_checked else 0
        seconds = f"{time.perf_counter() - start:.0f}"
        rows.append([name, "yes" if kind.is_checked else "no", *map(str, counts), seconds])
    print(format_table(["file", "checksum", "bits", "refused", "same", "other", "seconds"], rows))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
