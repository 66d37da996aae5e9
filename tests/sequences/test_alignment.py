"""The likeliest path against all paths, one by one."""

from itertools import groupby, pairwise, product

import numpy as np
import pytest
import torch

from finecal.sequences._alignment import align

DTYPES = {torch.float64: 1e-12, torch.float32: 1e-5}


def spelled(path, blank):
    return [c for c, _ in groupby(path) if c != blank]


def best_by_trying(log_probs, text, blank):
    """The probability of the best of all paths that spell the text; -inf if none does."""
    frames, classes = log_probs.shape
    totals = [
        sum((float(log_probs[t, c]) for t, c in enumerate(path)), 0.0)
        for path in product(range(classes), repeat=frames)
        if spelled(path, blank) == text
    ]
    return max(totals, default=-np.inf)


def problems(rng, count):
    """Batches of three lines of up to five frames: texts of all lengths, with repeated characters, some too long."""
    for _ in range(count):
        classes, frames, width = rng.integers(2, 5), rng.integers(0, 6), rng.integers(0, 4)
        blank = int(rng.integers(classes))
        others = [c for c in range(classes) if c != blank]
        lengths, widths = rng.integers(0, frames + 1, 3), rng.integers(0, width + 1, 3)
        texts = rng.choice(others, (3, width))
        logits = rng.normal(size=(3, frames, classes)) * rng.choice([0.0, 1.0, 4.0])
        logits[rng.random(logits.shape) < rng.choice([0.0, 0.2])] = -30.0
        yield logits, texts, lengths, widths, blank


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_best_path_is_the_best_of_all(rng, dtype):
    impossible = empty = repeated = 0
    for logits, texts, lengths, widths, blank in problems(rng, 170):
        log_probs = torch.tensor(logits, dtype=dtype).log_softmax(2)
        paths, totals = align(log_probs, *map(torch.tensor, (texts, lengths, widths)), blank)
        assert totals.dtype == dtype
        for line, (path, total) in enumerate(zip(paths.tolist(), totals.tolist(), strict=True)):
            frames, text = lengths[line], texts[line, : widths[line]].tolist()
            best = best_by_trying(log_probs[line, :frames], text, blank)
            assert total == pytest.approx(best, abs=DTYPES[dtype])
            assert set(path[frames:]) <= {blank}
            empty += not text
            repeated += any(a == b for a, b in pairwise(text))
            if best == -np.inf:
                impossible += 1
                continue
            assert spelled(path[:frames], blank) == text
            own = sum(float(log_probs[line, t, c]) for t, c in enumerate(path[:frames]))
            assert own == pytest.approx(best, abs=DTYPES[dtype])
    assert min(impossible, empty, repeated) > 50


def test_masked_characters_have_no_path():
    log_probs = torch.tensor([[[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]]]).log()
    _, totals = align(log_probs, torch.tensor([[2]]), torch.tensor([2]), torch.tensor([1]), 0)
    assert totals.tolist() == [-np.inf]


def test_it_is_at_most_the_sum_over_paths(rng):
    log_probs = torch.tensor(rng.normal(size=(8, 12, 6))).log_softmax(2)
    texts, lengths = torch.tensor(rng.integers(1, 6, (8, 4))), torch.tensor(rng.integers(1, 5, 8))
    frames = torch.full((8,), 12)
    losses = torch.nn.functional.ctc_loss(log_probs.transpose(0, 1), texts, frames, lengths, reduction="none")
    _, totals = align(log_probs, texts, frames, lengths, 0)
    assert bool((totals <= -losses + 1e-9).all())
    assert bool((totals > -losses - 12 * np.log(6)).all())


def test_a_hand_worked_line():
    """Two equal characters need a blank between them, though the middle frame has it with a probability of 0.1."""
    log_probs = torch.tensor([[[0.1, 0.9], [0.1, 0.9], [0.1, 0.9]]]).log()
    paths, totals = align(log_probs, torch.tensor([[1, 1]]), torch.tensor([3]), torch.tensor([2]), 0)
    assert paths.tolist() == [[1, 0, 1]]
    assert totals.exp().tolist() == pytest.approx([0.081])
