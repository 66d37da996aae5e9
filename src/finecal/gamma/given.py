"""The labelled samples that an estimate is made from, as the arguments `train` and `held_out` bring them."""

from typing import Any, TypeAlias

from ..evaluation.scan import LabelledScan
from ..inputs.arrays import ArrayLike, Groups, Mask
from ..inputs.warning import naming
from .estimate import scan_seen

Labelled: TypeAlias = tuple[ArrayLike, ArrayLike]
LabelledFeatures: TypeAlias = tuple[ArrayLike, ArrayLike, ArrayLike]


def scanned(
    seen_mask: Mask,
    train: object,
    held_out: object,
    train_groups: Groups | None = None,
    held_out_groups: Groups | None = None,
) -> dict[str, LabelledScan]:
    """Return the labelled samples, checked, by the names of the arguments."""
    scans = {}
    for name, value, groups in (("train", train, train_groups), ("held_out", held_out, held_out_groups)):
        pair = labelled_pair(value, name, f"{name}_groups")
        check_belongs(groups, pair, name)
        if pair is not None:
            with naming(name):
                scans[name] = scan_seen(
                    *pair,
                    seen_mask,
                    "estimate_gamma",
                    min_seen=1,
                    groups=groups,
                    groups_name=f"{name}_groups",
                )
    return scans


def check_belongs(groups: object, value: object, name: str) -> None:
    """Groups come with the samples that they are of, the argument `name`."""
    if groups is not None and value is None:
        raise ValueError(f"{name}_groups are of the samples of {name}: pass {name}= as well")


def labelled_pair(value: object, name: str, groups_name: str = "") -> Labelled | None:
    """Check that `value`, if given, is a pair of logits and labels; `groups_name` is the argument for their groups."""
    if value is None:
        return None
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        # collect_logits returns a triple for dense outputs.
        has_groups = isinstance(value, (tuple, list)) and len(value) == 3 and getattr(value[2], "ndim", 0) == 1
        hint = f", and groups as {groups_name}=" if groups_name and has_groups else ""
        raise TypeError(f"{name} is {_kind(value)}; pass a pair: {name}=(logits, labels){hint}")
    return value[0], value[1]


def labelled_with_features(value: object, name: str) -> tuple[Labelled | None, ArrayLike | None]:
    """Check that `value`, if given, is a pair of logits and labels, with features or not; return the pair and these."""
    if isinstance(value, (tuple, list)) and len(value) == 3:
        return (value[0], value[1]), check_features_are_no_groups(value[2], name)
    return labelled_pair(value, name), None


def logits_with_features(value: Any, name: str) -> tuple[Any, Any]:
    """Return logits, and the features that come with them in a tuple, or None."""
    if not isinstance(value, tuple) or len(value) != 2:
        return value, None
    return value[0], check_features_are_no_groups(value[1], name)


def check_features_are_no_groups(features: Any, name: str) -> Any:
    """Return features; groups in their place, as `collect_logits` returns them of dense outputs, are refused."""
    if getattr(features, "ndim", 0) == 1:
        raise ValueError(
            f"{name} has one number per sample where features (N, D) go; if these are groups, pass them as "
            f"{name}_groups="
        )
    return features


def _kind(value: object) -> str:
    return f"a {type(value).__name__}" + (f" of {len(value)} items" if isinstance(value, (tuple, list)) else "")
