import numpy as np
import pytest
import torch

import finecal

MASK = [True, True, False, True, False]


@pytest.mark.parametrize("classes", [0, [0], [3, 0], np.array([0]), torch.tensor(3)])
@pytest.mark.parametrize("labelled", [True, False])
def test_columns_and_samples_go_and_names_stay(classes, labelled, dtype, device, rng):
    logits = torch.tensor(rng.normal(size=(40, 5))).to(device, dtype)
    labels = torch.tensor(rng.integers(0, 5, 40), device=device)
    kept = finecal.logits.drop_classes(logits, labels if labelled else None, MASK, classes)
    dropped = set(np.atleast_1d(np.asarray(classes, dtype=int)).tolist())
    names = [c for c in range(5) if c not in dropped]
    rows = [i for i in range(40) if not labelled or int(labels[i]) not in dropped]
    assert kept.rows.tolist() == rows
    assert kept.seen_mask.tolist() == [MASK[c] for c in names]
    assert kept.logits.dtype == dtype
    assert torch.equal(kept.logits, torch.stack([logits[i, names] for i in rows]))
    if labelled:
        assert [names[c] for c in kept.labels] == labels[rows].tolist()
    else:
        assert kept.labels is None


def test_arrays_stay_arrays_and_nothing_is_changed(rng):
    logits, labels, mask = rng.normal(size=(6, 5)), rng.integers(0, 5, 6), np.array(MASK)
    before = logits.copy()
    kept = finecal.logits.drop_classes(logits, labels, mask, 0)
    assert all(isinstance(value, np.ndarray) for value in kept)
    kept.logits[:] = 0
    assert np.array_equal(logits, before)
    assert finecal.logits.drop_classes(logits[:0], labels[:0], mask, 0).logits.shape == (0, 4)


@pytest.mark.parametrize(
    ("mask", "classes", "error", "match"),
    [
        (MASK, 2, ValueError, "classes contains class 2, which seen_mask says is absent"),
        (MASK, 5, ValueError, r"classes contain 5, outside \[0, 5\)"),
        (MASK, -1, ValueError, "classes contain -1"),
        (MASK, 0.0, TypeError, "classes"),
        (MASK, True, TypeError, "classes have dtype bool"),
        (MASK, [[0]], ValueError, "classes has shape"),
        (MASK, [], ValueError, "classes has shape"),
        (MASK, None, TypeError, "classes is None"),
        ([True, False, False, False, False], 0, ValueError, "seen_mask has no seen class"),
    ],
)
def test_odd_classes_are_refused(mask, classes, error, match):
    with pytest.raises(error, match=match):
        finecal.logits.drop_classes(np.zeros((2, 5)), [0, 1], mask, classes)
