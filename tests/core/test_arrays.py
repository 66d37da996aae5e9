"""Arrays of every kind: those that are taken, and what is said of others."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch

import finecal
import finecal.streaming
from finecal._core.arrays import as_tensor

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


class Stubborn(torch.Tensor):
    """As MONAI's MetaTensor, which refuses operations that its metadata do not fit."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") not in ("as_subclass", "__get__"):
            raise ValueError("inconsistent metadata")
        return super().__torch_function__(function, types, args, kwargs)


def stubborn(values):
    return torch.as_tensor(np.asarray(values)).as_subclass(Stubborn)


def test_subclasses_of_tensor_become_plain_tensors():
    logits, labels, mask = (stubborn(values) for values in (LOGITS, LABELS, MASK))
    groups = stubborn([0, 0, 1, 1])
    samples = finecal.Samples(logits, labels, features=logits, groups=groups, pretrained_logits=logits)
    fields = (samples.logits, samples.labels, samples.features, samples.groups, samples.pretrained_logits)
    assert {type(field) for field in fields} == {torch.Tensor}
    assert samples.logits.data_ptr() == logits.as_subclass(torch.Tensor).data_ptr()
    assert str(finecal.evaluate(samples, mask)) == str(finecal.evaluate(LOGITS, LABELS, MASK))
    assert type(finecal.predict(logits, mask, 0.5)) is torch.Tensor
    dense = stubborn(LOGITS.reshape(2, 2, 4)), stubborn(np.reshape(LABELS, (2, 2)))
    assert str(finecal.dense.evaluate_iou(*dense, mask)) == str(finecal.dense.evaluate_iou(LOGITS, LABELS, MASK))


def test_added_logits_are_of_the_subclass_that_came():
    class Named(torch.Tensor):
        pass

    found = finecal.calibrate_logits(torch.tensor(LOGITS).as_subclass(Named), MASK, 1.0)
    assert type(found) is Named
    assert np.array_equal(found, finecal.calibrate_logits(LOGITS, MASK, 1.0))


def test_bfloat16_of_ml_dtypes():
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    array, tensor = LOGITS.astype(bfloat16), torch.tensor(LOGITS, dtype=torch.bfloat16)
    array.flags.writeable = False
    for given, expected in ((array, tensor), (array[::-1, ::-2], tensor.flip(0, 1)[:, ::2])):
        mask = torch.tensor(MASK[: expected.shape[1]]).logical_and(torch.arange(expected.shape[1]) < 1)
        found = finecal.calibrate_logits(given, mask, 1.5)
        assert found.dtype == bfloat16
        assert found.astype(np.float32).tolist() == finecal.calibrate_logits(expected, mask, 1.5).tolist()
        assert np.array_equal(finecal.predict(given, mask, 1.5), finecal.predict(expected, mask, 1.5))
    samples = finecal.Samples(array, LABELS, features=array)
    assert samples.logits.dtype == samples.features.dtype == bfloat16
    assert samples.labels.dtype == np.int64
    assert str(finecal.evaluate(samples, MASK)) == str(finecal.evaluate(tensor, torch.tensor(LABELS), MASK))
    assert samples.margins(MASK).margin.dtype == np.float32
    with pytest.raises(TypeError, match="dtype bfloat16; expected integer"):
        finecal.Samples(LOGITS, np.zeros(4, bfloat16))


class OtherArray:
    """An array of another library, of which nothing is known but the protocols; its memory is not to be written to."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self, **options):
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()

    def __array_namespace__(self):
        return OtherArray

    def __float__(self):
        return float(self.tensor)

    @staticmethod
    def from_dlpack(other):
        return OtherArray(torch.from_dlpack(other))


def test_arrays_of_other_libraries(dtype):
    given = torch.tensor(LOGITS, dtype=dtype)
    logits, labels, mask = (OtherArray(values) for values in (given.clone(), torch.tensor(LABELS), torch.tensor(MASK)))
    for found, expected in (
        (finecal.calibrate_logits(logits, mask, 1.5), finecal.calibrate_logits(given, MASK, 1.5)),
        (finecal.calibrate_logits(logits, mask, 1.5, dim=0), finecal.calibrate_logits(given, MASK, 1.5, dim=0)),
        (finecal.predict(logits, mask, 7.0), finecal.predict(given, MASK, 7.0)),
        (finecal.seen_mask_from_labels(labels, 4), torch.tensor(MASK)),
        (finecal.Samples(logits, labels).logits, given),
    ):
        assert isinstance(found, OtherArray)
        assert torch.equal(found.tensor, expected)
        assert found.tensor.dtype == expected.dtype
    assert torch.equal(logits.tensor, given)
    assert str(finecal.evaluate(logits, labels, mask)) == str(finecal.evaluate(given, torch.tensor(LABELS), MASK))
    assert as_tensor(logits, "logits").data_ptr() == logits.tensor.data_ptr()


def test_arrays_of_other_libraries_in_other_layouts():
    found = finecal.calibrate_logits(OtherArray(torch.tensor(LOGITS).T), MASK, 1.5, dim=0)
    assert np.array_equal(found.tensor, finecal.calibrate_logits(LOGITS, MASK, 1.5).T)

    class Unreadable(OtherArray):
        def __dlpack__(self, **options):
            raise BufferError("on a device of its own")

    with pytest.raises(TypeError, match="logits is one Unreadable; pass a torch tensor or a NumPy array"):
        finecal.predict(Unreadable(torch.tensor(LOGITS)), MASK)


@pytest.mark.skipif(find_spec("jax") is None, reason="JAX is in no extra")
def test_jax():
    """In bfloat16 too; nothing is warned of, though arrays of JAX are read-only."""
    import jax.numpy as jax

    for dtype in ("float32", "bfloat16", "float16"):
        logits = jax.asarray(LOGITS, dtype=dtype)
        found = finecal.calibrate_logits(logits, jax.asarray(MASK), 1.5)
        assert type(found) is type(logits)
        assert found.dtype == logits.dtype
        assert found.tolist() == (logits + 1.5 * ~jax.asarray(MASK)).astype(dtype).tolist()
        assert type(finecal.predict(logits, MASK, 7.0)) is type(logits)
        assert finecal.predict(logits, MASK, 7.0).tolist() == finecal.predict(LOGITS, MASK, 7.0).tolist()
        assert logits.tolist() == LOGITS.tolist()


HINTS = {
    "a column": (lambda y: y[:, None], r"labels\.squeeze\(-?1\)"),
    "a column of floats": (lambda y: y[:, None].astype(float), r"labels\.squeeze\(-?1\)"),
    "one-hot": (lambda y: np.eye(4, dtype=int)[y], r"labels\.argmax\(-?1\)"),
    "one-hot floats": (lambda y: np.eye(4)[y], r"labels\.argmax\(-?1\)"),
}


@pytest.mark.parametrize("name", HINTS)
def test_labels_of_another_shape_are_told_how_to_get_theirs(name):
    change, hint = HINTS[name]
    labels = change(np.array(LABELS))
    metrics = finecal.streaming.MarginRows(MASK).update
    for call in (
        lambda y: finecal.Samples(LOGITS, y),
        lambda y: finecal.evaluate(LOGITS, y, MASK),
        lambda y: finecal.dense.evaluate_iou(LOGITS, y, MASK),
        lambda y: finecal.seen_mask_from_labels(y, 4),
        lambda y: finecal.logits.drop_classes(LOGITS, y, MASK, 0),
        lambda y: metrics(LOGITS, y),
        lambda y: finecal.collect_logits(torch.nn.Identity(), [(torch.tensor(LOGITS), y)], progress=False),
    ):
        with pytest.raises(ValueError, match=hint):
            call(labels)
    assert eval(hint.replace("\\", "").replace("?", "")).tolist() == LABELS


def test_logits_of_one_position_are_told_how_to_be_rows():
    class OnePosition(torch.nn.Module):
        def forward(self, x):
            return x[:, None]

    logits, labels = torch.tensor(LOGITS), torch.tensor(LABELS)
    with pytest.raises(ValueError, match=r"logits\.squeeze\(1\), or .* positions=Positions\(-1\), and labels"):
        finecal.Samples(logits[:, None], labels)
    with pytest.raises(ValueError, match=r"out\[:, 0\] .* positions=Positions\(-1\), and labels"):
        finecal.collect_logits(OnePosition(), [(logits, labels)], progress=False)
    batches = [(logits, labels[:, None])]
    samples = finecal.collect_logits(OnePosition(), batches, positions=finecal.Positions(-1), progress=False)
    assert torch.equal(samples.logits, logits)
    assert torch.equal(samples.labels, labels)


def test_what_is_no_array_is_named():
    for call in (finecal.calibrate_logits, finecal.predict):
        with pytest.raises(TypeError, match="^logits is list of dtype <U1, which torch cannot hold"):
            call([["a", "b"]], [True, False], 0.0)
