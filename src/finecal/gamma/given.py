"""The labelled samples that an estimate is made from, as the arguments `train` and `held_out` bring them."""

from typing import TypeAlias

from torch import Tensor

from ..evaluation.scan import LabelledScan
from ..inputs.arrays import ArrayLike, Mask
from ..inputs.features import check_features
from ..inputs.warning import naming
from .estimate import scan_seen

Labelled: TypeAlias = tuple[ArrayLike, ArrayLike]
LabelledFeatures: TypeAlias = tuple[ArrayLike, ArrayLike, ArrayLike]


def scanned(seen_mask: Mask, train: object, held_out: object) -> tuple[dict[str, LabelledScan], dict[str, Tensor]]:
    """Return the labelled samples, checked, and their features, where there are any, by the names of the arguments."""
    scans, features = {}, {}
    for name, value in (("train", train), ("held_out", held_out)):
        if value is not None:
            logits, labels, given = _labelled(value, name)
            with naming(name):
                scans[name] = scan_seen(logits, labels, seen_mask, "estimate_gamma", min_seen=1)
                if given is not None:
                    features[name] = check_features(given, len(scans[name].labels), scans[name].logits.device)
    return scans, features


def _labelled(value: object, name: str) -> tuple[ArrayLike, ArrayLike, ArrayLike | None]:
    """Check that `value` is logits and labels, or these and features; without features the third is None."""
    if not isinstance(value, (tuple, list)) or len(value) not in (2, 3):
        raise TypeError(f"{name} is {_kind(value)}; pass {name}=(logits, labels), or (logits, labels, features)")
    logits, labels, features = (*value, None)[:3]
    return logits, labels, features


def labelled_pair(value: object, name: str) -> Labelled | None:
    """Check that `value`, if given, is a pair of logits and labels."""
    if value is None:
        return None
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{name} is {_kind(value)}; pass a pair: {name}=(logits, labels)")
    return value[0], value[1]


def _kind(value: object) -> str:
    return f"a {type(value).__name__}" + (f" of {len(value)} items" if isinstance(value, (tuple, list)) else "")
