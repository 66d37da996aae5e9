import numpy as np
import pytest
import torch

from finecal._core.calibrate import Layout, per_class_view, rows_of

SHAPES = [
    ((7, 3), 1),
    ((3, 7), 0),
    ((2, 3, 4, 5), 1),
    ((2, 4, 5, 3), -1),
    ((2, 4, 3), -1),
    ((3, 4, 5), 0),
    ((2, 6, 3, 4), 2),
]
SHAPES += [((0, 3, 4, 5), 1), ((2, 3, 0, 5), -3), ((1, 3, 1, 1), 1)]


def drawn(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("shape", "dim"), SHAPES)
def test_rows_hold_all_positions_in_order(shape, dim):
    logits = drawn(shape)
    expected = logits.movedim(dim, -1).reshape(-1, shape[dim])
    assert torch.equal(torch.cat([expected[:0], *rows_of(logits, dim)]), expected)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_rows_of_pictures_are_views(memory):
    logits = drawn((2, 3, 4, 5)).to(memory_format=memory)
    first = logits.untyped_storage().data_ptr()
    assert all(rows.untyped_storage().data_ptr() == first for rows in rows_of(logits, 1))
    (rows,) = rows_of(logits[0], 0)
    assert rows.untyped_storage().data_ptr() == first


@pytest.mark.parametrize(("shape", "dim"), SHAPES)
def test_values_per_class_broadcast_along_the_classes(shape, dim):
    logits, values = drawn(shape), drawn((3,), 1)
    expected = (logits.movedim(dim, -1) + values).movedim(-1, dim)
    assert torch.equal(logits + per_class_view(values, logits.ndim, dim), expected)


@pytest.mark.parametrize("ignore_index", [None, 255, -100])
@pytest.mark.parametrize("make", [torch.Tensor.contiguous, torch.Tensor.numpy], ids=["tensor", "array"])
@pytest.mark.parametrize(("shape", "dim"), SHAPES)
def test_pieces_are_the_positions_that_count(shape, dim, ignore_index, make, monkeypatch):
    monkeypatch.setitem(Layout.pieces.__globals__["_PIECE_ELEMENTS"], "cpu", 21)
    logits = drawn(shape)
    labels = torch.randint(3, logits.movedim(dim, -1).shape[:-1], generator=torch.Generator().manual_seed(2))
    if ignore_index is not None:
        labels[drawn(labels.shape, 3) < 0] = ignore_index
    pieces = [
        (torch.as_tensor(z), torch.as_tensor(y))
        for z, y in Layout(dim, ignore_index).pieces(make(logits), make(labels))
    ]
    keep = labels.flatten() != (ignore_index if ignore_index is not None else -1)
    rows, own = logits.movedim(dim, -1).reshape(-1, 3)[keep], labels.flatten()[keep]
    assert torch.equal(torch.cat([rows[:0], *(z for z, _ in pieces)]), rows)
    assert torch.equal(torch.cat([own[:0], *(y for _, y in pieces)]), own)


@pytest.mark.parametrize(
    ("dtype", "label", "ignore_index", "ignored"),
    [
        (torch.uint8, 255, 255, True),
        (torch.uint8, 156, -100, False),
        (torch.uint8, 255, -1, False),
        (torch.int8, -1, 255, False),
        (torch.int8, -100, -100, True),
        (torch.int16, -1, 65535, False),
        (torch.int32, 255, 255, True),
    ],
)
def test_an_ignored_label_that_a_dtype_cannot_hold_is_no_other_one(dtype, label, ignore_index, ignored):
    labels = torch.tensor([0, label, 2, label]).to(dtype)
    assert Layout(1, ignore_index).counted_indices(labels).tolist() == ([0, 2] if ignored else [0, 1, 2, 3])


def test_rows_are_passed_on_as_they_came():
    logits, labels = np.zeros((2, 3)), [0, 1]
    ((rows, own),) = Layout().pieces(logits, labels)
    assert rows is logits
    assert own is labels


@pytest.mark.parametrize(
    ("layout", "labels", "match"),
    [
        (Layout(1), torch.zeros(2, 3, 4).long(), r"labels have shape \(2, 3, 4\).*dim=1; expected \(2, 4, 5\)"),
        (Layout(), torch.zeros(2, 4, 5).long(), r"expected \(2, 3, 4\).*along dimension 1, pass dim=1"),
        (Layout(4), torch.zeros(2, 4, 5).long(), r"dim is 4, but logits has shape \(2, 3, 4, 5\)"),
        (Layout(1), torch.zeros(2, 4, 5), "labels have dtype float32"),
        (Layout(1), torch.zeros(2, 1, 4, 5).long(), r"expected \(2, 4, 5\).*of size 1 out: labels.squeeze\(1\)"),
        (Layout(1), torch.zeros(2, 3, 4, 5).long(), r"for one-hot labels use labels.argmax\(1\)"),
        (Layout(1), torch.zeros(2, 8, 10).long(), r"interpolate\(logits, \(8, 10\), mode='bilinear'\)"),
        (Layout(1), torch.zeros(2, 5, 4).long(), r"expected \(2, 4, 5\), one label per position$"),
        (Layout(1, 255), torch.full((2, 4, 5), 7), r"labels contain 7, outside \[0, 3\).*pass as ignore_index"),
    ],
)
def test_labels_that_do_not_fit_are_refused(layout, labels, match):
    with pytest.raises((TypeError, ValueError), match=match):
        list(layout.pieces(drawn((2, 3, 4, 5)), labels))


@pytest.mark.parametrize(
    ("dim", "ignore_index", "name"), [(1.0, None, "dim"), (True, None, "dim"), (1, "x", "ignore_index")]
)
def test_odd_arguments_are_refused(dim, ignore_index, name):
    with pytest.raises(TypeError, match=name):
        Layout.from_arguments(dim, ignore_index)
