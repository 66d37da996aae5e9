"""Write the report of 50,000 samples and 1,000 classes, and say how long that takes and how large it is.

Needs the extra report: python tests/benchmarks/report_page.py [report.html]
"""

import sys
import time
from pathlib import Path

import numpy as np

import finecal

SAMPLES, CLASSES = 50_000, 1000

if __name__ == "__main__":
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, SAMPLES)
    mask = np.arange(CLASSES) < CLASSES // 2
    logits = rng.normal(size=(SAMPLES, CLASSES)).astype(np.float32) + 3 * mask.astype(np.float32)
    logits[np.arange(SAMPLES), labels] += 3.5
    start = time.perf_counter()
    page = finecal.html_report(logits, labels, mask, 2.5, class_names=[f"class {c}" for c in range(CLASSES)])
    seconds = time.perf_counter() - start
    print(f"{seconds:.1f} s, {len(page.encode()) / 1e6:.2f} MB")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(page, encoding="utf-8")
