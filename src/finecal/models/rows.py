"""Store logits, labels and features that come in batches, in no more memory than the rows need."""

import torch
from torch import Tensor

from ..evaluation.samples import Samples
from ..inputs.checks import check_labels, labels_as_tensor
from ..inputs.features import check_features
from .head_inputs import HeadInputs

_BLOCK_BYTES = 1 << 26
"""Large enough for the allocator to give freed blocks back to the system."""


class Rows:
    """Rows of numbers that come in batches, on the CPU.

    They fill large blocks, which the allocator gives back one by one as they are joined: the rows are never in memory
    twice, as they would be in a list of batches and its concatenation.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._blocks: list[Tensor] = []
        self._count = 0
        self._alike: tuple[torch.Size, torch.dtype] | None = None

    def append(self, batch: Tensor) -> None:
        """Add a copy of a batch, since the model may reuse its memory."""
        alike = batch.shape[1:], batch.dtype
        if self._alike is not None and self._alike != alike:
            (width, dtype), (other_width, other_dtype) = self._alike, alike
            raise ValueError(
                f"rows of {self._name} have shape {tuple(width)} and dtype {dtype} in the first batches, then "
                f"{tuple(other_width)} and {other_dtype}; they must be of one model in one setting"
            )
        self._alike = alike
        size = max(1, _BLOCK_BYTES // max(1, batch[:1].nbytes))
        while batch.shape[0]:
            start = self._count % size
            if start == 0:
                self._blocks.append(torch.empty((size, *batch.shape[1:]), dtype=batch.dtype, device="cpu"))
            part = batch[: size - start]
            self._blocks[-1][start : start + part.shape[0]] = part
            self._count += part.shape[0]
            batch = batch[part.shape[0] :]

    def joined(self) -> Tensor:
        """Return all rows; only once, since the blocks are freed."""
        shape, dtype = self._alike or (torch.Size(), torch.float32)
        rows = torch.empty((self._count, *shape), dtype=dtype, device="cpu")
        start = 0
        self._blocks.reverse()
        while self._blocks:
            block = self._blocks.pop()[: self._count - start]
            rows[start : start + block.shape[0]] = block
            start += block.shape[0]
        return rows


class FeatureRows(Rows):
    """The recorded inputs of the head for all batches; no rows if `recorded` is None."""

    def __init__(self, recorded: HeadInputs | None) -> None:
        super().__init__("features")
        self._recorded = recorded

    @property
    def are_recorded(self) -> bool:
        """Whether anything records features."""
        return self._recorded is not None

    def take(self, logits: Tensor) -> None:
        """Add the recorded inputs of the batch with these logits."""
        if self._recorded is not None:
            self.append(check_features(self._recorded.pop(), logits.shape[0], logits.device))


def have_labels(labels: object, before: bool | None) -> bool:
    """Return whether a batch has labels, and refuse it if earlier batches (`before`) differ."""
    labelled = labels is not None
    if before not in (None, labelled):
        raise ValueError("some batches have labels and some have none; give all of them labels, or none")
    return labelled


class SampleRows:
    """The logits, labels and features of all samples: the state that `collect_logits` feeds unless it is given another.

    Attributes
    ----------
    features : FeatureRows
        Without rows, unless features are recorded.
    """

    def __init__(self, recorded: HeadInputs | None = None) -> None:
        self._logits, self._labels, self.features = Rows("logits"), Rows("labels"), FeatureRows(recorded)
        self._labelled: bool | None = None

    def update(self, logits: Tensor, labels: object) -> None:
        """Add a batch, and check its labels at once, so that wrong ones are not found after hours."""
        self._labelled = have_labels(labels, self._labelled)
        if self._labelled:
            own = labels_as_tensor(labels, "labels").cpu()
            self._labels.append(check_labels(own, logits.shape[0], logits.shape[1], own.device))
        self._logits.append(logits)
        self.features.take(logits)

    def samples(self) -> Samples:
        """Return all samples, with labels and features if they have these; only once."""
        labels = self._labels.joined() if self._labelled else None
        features = self.features.joined() if self.features.are_recorded else None
        return Samples(self._logits.joined(), labels, features=features)
