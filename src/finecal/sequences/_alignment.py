"""The likeliest CTC path of a text through the frames of its line, by Viterbi's algorithm."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad


def align(
    log_probs: Tensor, targets: Tensor, input_lengths: Tensor, target_lengths: Tensor, blank: int
) -> tuple[Tensor, Tensor]:
    r"""Return for each line the path of the largest probability that spells its text, and the logarithm of that.

    .. math:: \max_\pi \sum_t \log p_t(\pi_t), \quad \mathcal B(\pi) = \text{text}

    where :math:`\mathcal B` merges repeated classes, then drops blanks.

    Parameters
    ----------
    log_probs : (B, T, C)
    targets : (B, S) int64
        Any class beyond the length of a text.
    input_lengths, target_lengths : (B,) int64
    blank : int

    Returns
    -------
    paths : (B, T) int64
        A class for each frame, blank beyond the length of the line.
    totals : (B,)
        -inf where no path spells the text; then the path says nothing.

    Notes
    -----
    `O(BTS)` time and bytes; the lines of a batch are aligned together. Graves et al., "Connectionist Temporal
    Classification", ICML 2006, with the sum over paths replaced by the largest.
    """
    lines, frames, _ = log_probs.shape
    count = 2 * targets.shape[1] + 1
    states = torch.full((lines, count), blank, device=log_probs.device)
    states[:, 1::2] = targets  # a text with a blank before, between and after its characters
    skips = (states != blank) & (
        states != pad(states, (2, 0), value=blank)[:, :count]
    )  # a repeated one needs the blank
    scores = log_probs.gather(2, states[:, None].expand(-1, frames, -1))
    # Before the first frame a line stands before its first blank; from there it enters that or the first character.
    best = torch.full_like(states, -math.inf, dtype=log_probs.dtype)
    best[:, 0] = 0.0
    moves = torch.zeros((frames, *states.shape), dtype=torch.uint8, device=log_probs.device)
    for frame in range(frames):
        padded = pad(best, (2, 0), value=-math.inf)
        choices = torch.stack([best, padded[:, 1:-1], padded[:, :-2].where(skips, -math.inf)])
        entered, moves[frame] = choices.max(0)
        is_inside = (frame < input_lengths)[:, None]
        best = torch.where(is_inside, entered + scores[:, frame], best)
        moves[frame] *= is_inside
    last = 2 * target_lengths[:, None]
    ends = best.gather(1, torch.cat([last, (last - 1).clamp(min=0)], 1))
    totals, before_last = ends.max(1)
    state = torch.where(target_lengths > 0, last[:, 0] - before_last, 0)
    paths = torch.full((lines, frames), blank, device=log_probs.device)
    for frame in reversed(range(frames)):
        inside = frame < input_lengths
        paths[:, frame] = torch.where(inside, states.gather(1, state[:, None])[:, 0], blank)
        state = state - moves[frame].gather(1, state[:, None])[:, 0]
    return paths, totals
