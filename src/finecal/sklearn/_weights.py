"""Sample weights as scikit-learn has them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def checked_weights(sample_weight: Any, num_samples: int) -> NDArray[np.float64]:
    """Return `sample_weight` as ``(num_samples,)`` finite numbers of at least 0; None gives ones."""
    if sample_weight is None:
        return np.ones(num_samples)
    weights = np.asarray(sample_weight)
    if weights.dtype.kind not in "biuf":
        raise TypeError(f"sample_weight holds {weights.dtype}; pass numbers")
    if weights.shape != (num_samples,):
        raise ValueError(f"sample_weight has shape {weights.shape}; pass one number for each of {num_samples} samples")
    if not ((weights >= 0) & np.isfinite(weights)).all():
        raise ValueError("sample_weight has negative, infinite or NaN entries; pass finite weights of at least 0")
    return weights.astype(np.float64)
