"""Dense outputs that tests of several modules share."""

import numpy as np
import torch

MASK = np.array([True, True, False])
LABELS = [0, 2, 0, 1]
LOGITS = np.array(
    [
        [4.0, 1.0, 3.0],  # class 0, then class 2 from gamma = 1 on
        [2.0, 5.0, 4.5],  # class 1, then class 2 from gamma = 0.5 on
        [6.0, 1.0, 2.0],  # class 0, then class 2 from gamma = 4 on
        [0.0, 3.0, 1.0],  # class 1, then class 2 from gamma = 2 on
    ]
)
BREAKPOINTS = [0.5, 1.0, 2.0, 4.0]
IOUS = np.array([[1, 1 / 2, 0], [1, 1, 1], [1 / 2, 1, 1 / 2], [1 / 2, 0, 1 / 3], [0, 0, 1 / 4]])
"""Of each class, at each operating point."""
PICTURES = 3


def problem(seed, most=24, spread=3):
    """Small integer logits, full of ties, some -inf; labels of which some do not count; and perhaps background."""
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(2, 8))
    mask = rng.permutation(np.arange(classes) < rng.integers(1, classes))
    n = int(rng.integers(2, most))
    logits = rng.integers(-spread, spread + 1, (n, classes)).astype(np.float32)
    logits[:, 0] += 2 * ((logits >= 0) & (logits <= 1)).all(1)  # finecal refuses what looks like probabilities
    logits[rng.random(logits.shape) < 0.15] = -np.inf
    labels = rng.integers(0, classes, n)
    labels[:2] = mask.argmax(), mask.argmin()
    ignored = rng.random(n) < 0.2
    ignored[:2] = False
    labels[ignored] = 255
    background = [int(c) for c in rng.permutation(np.flatnonzero(mask)) if c != labels[0]][: rng.integers(0, 3)]
    return logits, labels, mask, background or None


def pictures(seed=0, classes=5, dtype=torch.float32):
    """Return `(B, C, H, W)` logits of integers, `(B, H, W)` labels with 255, and a mask."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (PICTURES, 4, 6), generator=g)
    logits = torch.randint(-3, 4, (PICTURES, classes, 4, 6), generator=g).float()
    logits.scatter_add_(1, labels.unsqueeze(1), torch.full((PICTURES, 1, 4, 6), 2.0))
    labels[torch.rand(labels.shape, generator=g) < 0.2] = 255
    return logits.to(dtype), labels, torch.arange(classes) < classes // 2 + 1
