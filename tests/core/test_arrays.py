"""Arrays of every kind: those that are taken, and what is said of others."""

import numpy as np
import pytest
import torch

import finecal

MASK = [True, True, False, False]
LABELS = [0, 1, 0, 1]
LOGITS = np.array([[9.0, 4.0, 1.0, 2.0], [3.0, 8.0, 0.0, 1.0]] * 2)
f = finecal
WRONG_CALLS = {
    "complex logits": (lambda: f.predict(LOGITS * 1j, MASK), TypeError, "logits is ndarray of dtype complex128"),
    "logits of words": (lambda: f.predict([["a", "b"]], MASK), TypeError, "logits is list of dtype <U1"),
    "ragged logits": (lambda: f.predict([[1.0], [1.0, 2.0]], MASK), TypeError, "logits cannot be read as an array"),
    "estimate for a mask": (
        lambda: f.evaluate(LOGITS, LABELS, f.GammaEstimate(1.0, "", "", 1)),
        TypeError,
        "seen_mask is one GammaEstimate; pass a torch tensor",
    ),
    "a pair for logits": (
        lambda: f.estimators.mixture_gamma((LOGITS, np.array(LABELS)), LOGITS, MASK),
        TypeError,
        r"^seen is a tuple of 2 items; pass logits, or Samples\(logits, features=\.\.\.\)$",
    ),
    "names as labels": (
        lambda: f.Samples(LOGITS, ["a", "b"]).margins(MASK),
        TypeError,
        "labels hold class names, such as 'a'",
    ),
    "masked array": (
        lambda: f.predict(np.ma.masked_less(LOGITS, 1), MASK),
        TypeError,
        r"masked entries; fill or drop them: logits\.filled",
    ),
    "no mask": (lambda: f.predict(LOGITS, None), TypeError, "seen_mask is None; pass a torch tensor"),
    "tensors with gradients": (
        lambda: f.predict([torch.ones(4, requires_grad=True)] * 2, MASK),
        TypeError,
        "logits cannot be read as an array .*requires grad",
    ),
    "gamma first": (lambda: f.AdditiveBias(1.0, MASK), TypeError, "seen_mask is one float; pass a torch tensor"),
}


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_wrong_call(name):
    call, error, message = WRONG_CALLS[name]
    with pytest.raises(error, match=message):
        call()


class TestUnusualArrays:
    """Arrays that torch refuses, or warns of (warnings are errors here)."""

    def check(self, array):
        mask = np.array([True, False, False])
        expected = finecal.predict(np.ascontiguousarray(array).copy(), mask, 0.5)
        before = np.array(array)
        assert finecal.predict(array, mask, 0.5).tolist() == expected.tolist()
        assert np.array_equal(array, before)

    def test_read_only(self, rng):
        array = rng.normal(size=(5, 3)).astype(np.float32)
        array.flags.writeable = False
        self.check(array)
        assert not array.flags.writeable

    def test_memory_mapped(self, rng, tmp_path):
        np.save(tmp_path / "logits.npy", rng.normal(size=(5, 3)))
        self.check(np.load(tmp_path / "logits.npy", mmap_mode="r"))

    def test_negative_strides_and_steps(self, rng):
        array = rng.normal(size=(10, 6))
        self.check(array[::-1, ::-2])
        self.check(array[::2, ::2])

    def test_foreign_byte_order(self, rng):
        self.check(rng.normal(size=(5, 3)).astype(">f4"))

    def test_broadcast(self):
        self.check(np.broadcast_to(np.array([1.0, 2.0, 3.0]), (4, 3)))

    def test_read_only_mask_and_labels(self):
        mask, labels = np.array([True, False]), np.array([0, 1])[::-1]
        mask.flags.writeable = labels.flags.writeable = False
        assert len(finecal.Samples(np.zeros((2, 2)), labels).margins(mask)) == 2

    def test_unsigned_labels(self):
        for kind in (np.uint8, np.int16, np.uint16, np.uint64):
            assert finecal.Samples(np.zeros((2, 2)), np.array([0, 1], kind)).margins([True, False]).label.tolist() == [
                0,
                1,
            ]


def test_what_is_no_array_is_named():
    for call in (finecal.calibrate_logits, finecal.predict):
        with pytest.raises(TypeError, match="^logits is list of dtype <U1, which torch cannot hold"):
            call([["a", "b"]], [True, False], 0.0)
