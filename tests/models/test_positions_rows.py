"""Rows of batches, joined."""

import torch

from finecal._models.positions import _BLOCK_BYTES, Rows


def test_blocks_are_joined_in_order(rng):
    rows = Rows("logits")
    numbers = torch.from_numpy(rng.normal(size=(1000, 1 << 14)))  # two blocks hold 1024 rows
    assert _BLOCK_BYTES // numbers[:1].nbytes == 512
    for part in numbers.split([0, 3, 700, 0, 297]):
        rows.append(part)
    assert torch.equal(rows.joined(), numbers)
