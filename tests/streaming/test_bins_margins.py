"""Margins batch by batch."""

import numpy as np
import pytest
import torch

import finecal
from finecal.streaming import MarginRows
from streams import samples


def test_margin_rows_equal_margins(rng, dtype):
    logits, labels, mask = samples(rng, 50, only_seen=False)
    tensor = torch.tensor(logits).to(dtype)
    whole = finecal.Samples(tensor, labels).margins(mask)
    state = MarginRows(mask, keep_labels=True)
    for rows in np.array_split(np.arange(50), 7):
        state.update(tensor[rows], labels[rows])
    streamed = state.compute()
    for name, value in vars(whole).items():
        assert torch.equal(getattr(streamed, name), value), name
        assert getattr(streamed, name).dtype == value.dtype
    assert torch.equal(streamed.curve("macro").acc_all, whole.curve("macro").acc_all)


def test_margin_rows_take_five_bytes(rng):
    logits, labels, mask = samples(rng, 50)
    state = MarginRows(mask).update(logits, labels)
    rows = {name: value for name, value in state.state_dict().items() if name != "seen_mask"}
    assert sum(value.nbytes for value in rows.values()) == 5 * 50
    streamed = state.compute()
    assert streamed.label is None
    whole = finecal.Samples(torch.tensor(logits), labels).margins(mask)
    assert torch.equal(streamed.curve().acc_seen, whole.curve().acc_seen)
    with pytest.raises(
        ValueError, match=r"without labels, which average='macro' needs: MarginRows\(keep_labels=True\)"
    ):
        streamed.curve("macro")


def test_margins_rounded_to_half_are_refused(rng):
    logits, labels, mask = samples(rng)
    taken = MarginRows(mask).update(logits, labels).state_dict()
    assert (
        MarginRows(mask).load_state_dict({**taken, "margin": taken["margin"].double()}).compute().margin.itemsize == 8
    )
    with pytest.raises(ValueError, match="state_dict has margin of .* dtype bfloat16; this MarginRows needs"):
        MarginRows(mask).load_state_dict({**taken, "margin": taken["margin"].bfloat16()})
    with pytest.raises(ValueError, match=r"state_dict has margin of shape \(\)"):
        MarginRows(mask).load_state_dict({**taken, "margin": taken["margin"][0]})


def test_single_samples_leave_few_blocks(rng):
    logits, labels, mask = samples(rng, 200)
    state = MarginRows(mask)
    for i in range(200):
        state.update(logits[i : i + 1], labels[i : i + 1]).update(logits[:0], labels[:0])
    assert len(state._blocks) < 10
    assert torch.equal(state.compute().margin, MarginRows(mask).update(logits, labels).compute().margin)


def test_margin_rows_with_and_without_labels_do_not_merge():
    with pytest.raises(ValueError, match=r"the other state has the entries \['flags', 'margin'\]; this MarginRows has"):
        MarginRows([True, False], keep_labels=True).merge(MarginRows([True, False]))


def test_margin_rows_of_one_length():
    state = MarginRows([True, False])
    entries = {**state.state_dict(), "margin": torch.zeros(3)}
    with pytest.raises(
        ValueError, match=r"state_dict has flags of shape \(0,\) and dtype uint8; .* needs shape \(3,\)"
    ):
        state.load_state_dict(entries)


def test_batches_alone_do_not_look_re_indexed():
    """A batch with the labels 0 and 1 says nothing; samples of these labels alone do."""
    state = MarginRows([False, False, True, True], keep_labels=True)
    state.update(np.eye(4)[:2] * 3, [0, 1])
    with pytest.warns(finecal.FinecalWarning, match="they look re-indexed"):
        state.compute()
    state.update(np.eye(4)[2:] * 3, [2, 3]).compute()


def test_no_margins():
    assert len(MarginRows([True, False]).compute()) == 0
