"""Pseudo cross-validation from end to end: a fine-tuning per split, resumed where it was interrupted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._core.arrays import ArrayLike, Mask, NumpyArray, as_tensor, check_flag, to_numpy
from .._core.files import PathLike, npz_bytes, read_npz, write_atomically
from .._core.groups import Bootstrap
from .._core.samples import Samples
from .._core.warning import error_context
from .._estimators.estimate import GammaEstimate
from .._estimators.fold_search import check_search, gamma_of_folds
from .._estimators.folds import FoldReading, PseudoFold, pseudo_cv_splits, read_fold
from .collect import with_bar

_RETRY = "delete it to train this fold again, or choose another directory"
_OPTIONAL = ("pretrained_logits", "groups")


@overload
def pseudo_cv(
    fine_tune: Callable[[Tensor], PseudoFold],
    seen_mask: Tensor,
    *,
    n_splits: int = 3,
    seed: int = 0,
    objective: str = "overall",
    constrained: bool = False,
    combine: str = "mean",
    average: str = "micro",
    n_bootstrap: int = 0,
    directory: PathLike | None = None,
    progress: bool = True,
) -> GammaEstimate: ...
@overload
def pseudo_cv(
    fine_tune: Callable[[NDArray[Any]], PseudoFold],
    seen_mask: NumpyArray | Sequence[Any],
    *,
    n_splits: int = 3,
    seed: int = 0,
    objective: str = "overall",
    constrained: bool = False,
    combine: str = "mean",
    average: str = "micro",
    n_bootstrap: int = 0,
    directory: PathLike | None = None,
    progress: bool = True,
) -> GammaEstimate: ...
def pseudo_cv(
    fine_tune: Callable[[Any], PseudoFold],
    seen_mask: Mask,
    *,
    n_splits: int = 3,
    seed: int = 0,
    objective: str = "overall",
    constrained: bool = False,
    combine: str = "mean",
    average: str = "micro",
    n_bootstrap: int = 0,
    directory: PathLike | None = None,
    progress: bool = True,
) -> GammaEstimate:
    """Fine-tune on each half of `pseudo_cv_splits`, and estimate gamma from the folds by `pseudo_cv_gamma`.

    Parameters
    ----------
    fine_tune : callable
        Takes a (C,) bool mask of the type of `seen_mask`; fine-tunes the *pre-trained* model on the samples of these
        classes by the recipe of the model that gamma is for; returns a `PseudoFold` with held-out samples of all seen
        classes.
    seen_mask : (C,) bool
        True for the seen classes; at least two.
    n_splits : int, default 3
        How many times to fine-tune.
    seed : int, default 0
        Seed of the splits and of the bootstrap.
    objective, constrained, combine, average, n_bootstrap
        As in `pseudo_cv_gamma`.
    directory : path, optional
        Where finished folds are kept, as ``fold-0.npz`` and so on; made if missing. Those that are there already are
        not trained again. A changed `fine_tune` is not noticed: choose another directory then. bfloat16 logits are kept
        as float32.
    progress : bool, default True
        Whether to show a bar, if tqdm is installed.

    Returns
    -------
    GammaEstimate
        The same, bit for bit, however often the run was interrupted, if `fine_tune` gives the same fold for the same
        split (let it set its seeds).

    Raises
    ------
    TypeError, ValueError
        As `pseudo_cv_splits` and `pseudo_cv_gamma`, as soon as the fold is trained; ValueError if `fine_tune` returns a
        fold of another split, or a file in `directory` is damaged or of another seed or `seen_mask`. What `fine_tune`
        raises passes through; finished folds stay.
    OSError
        If `directory` cannot be made or written to; before any training.

    Warns
    -----
    FinecalWarning
        As `pseudo_cv_splits` and `pseudo_cv_gamma`.

    Notes
    -----
    Only the scalars that the search needs stay in memory. Files are written whole or not at all, and read without
    unpickling. Mai et al., "Fine-Tuning is Fine, if Calibrated", NeurIPS 2024, section 5.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> seen_mask = np.arange(10) < 8
    >>> def fine_tune(mask):  # raises the logits of its classes by 4
    ...     samples = 6 * np.eye(10)[:8] + 4 * mask, np.arange(8)
    ...     return finecal.estimators.PseudoFold(samples, mask)
    >>> finecal.estimators.pseudo_cv(fine_tune, seen_mask, progress=False).gamma
    4.0
    """
    check_search(objective, combine, constrained, average)
    check_flag(progress, "progress")
    if not callable(fine_tune):
        raise TypeError(
            f"fine_tune is a {type(fine_tune).__name__}; pass a function from a pseudo_seen_mask to a PseudoFold"
        )
    bootstrap = Bootstrap.from_arguments(n_bootstrap, seed)
    splits = pseudo_cv_splits(seen_mask, n_splits, seed)
    files: list[Path] = []
    if directory is not None:
        with error_context("directory"):
            files = [Path(directory) / f"fold-{number}.npz" for number in range(len(splits))]
    run = {"seen_mask": to_numpy(seen_mask), "seed": seed}

    finished: dict[int, FoldReading] = {}
    for number, path in enumerate(files):
        if path.exists():
            fold = _stored_fold(path, run, splits[number])
            with error_context(path, ValueError):
                finished[number] = read_fold(fold, seen_mask, constrained, number, average)
    missing = [number for number in range(len(splits)) if number not in finished]
    if directory is not None and missing:
        _make_writable(Path(directory))
    bar = {"desc": "pseudo_cv", "unit": "fold", "initial": len(finished), "total": len(splits)}
    for number in with_bar(missing, **bar) if progress else missing:
        # A copy, since fine_tune may write to its mask.
        fold = fine_tune(deepcopy(splits[number]))
        if not isinstance(fold, PseudoFold):
            raise TypeError(
                f"fine_tune returned a {type(fold).__name__}; it must return a "
                "PseudoFold((logits, labels), pseudo_seen_mask)"
            )
        finished[number] = read_fold(fold, seen_mask, constrained, number, average)
        _check_split(fold, splits[number], number)
        if files:
            write_atomically(files[number], npz_bytes(run | _arrays(fold)))
    folds = [finished[number] for number in range(len(splits))]
    return gamma_of_folds(folds, objective, constrained, combine, bootstrap)


def _check_split(fold: PseudoFold, split: ArrayLike, number: int) -> None:
    returned, given = as_tensor(fold.pseudo_seen_mask, "pseudo_seen_mask"), as_tensor(split, "split")
    if not torch.equal(returned.cpu(), given.cpu()):
        raise ValueError(
            f"fold {number}: fine_tune returned a fold whose pseudo_seen_mask is not the one it was given; fine-tune "
            "on the classes of the given mask, and return that mask"
        )


# --- files ------------------------------------------------------------------------------------------------------------


def _make_writable(directory: Path) -> None:
    """Make the directory, and write to it once: what fails now costs no training."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise type(error)(
            f"directory is {directory}, which cannot be made or written to ({error.strerror or error}); choose another"
        ) from error


def _arrays(fold: PseudoFold) -> dict[str, NumpyArray]:
    given = {name: getattr(fold.samples, name) for name in ("logits", "labels", *_OPTIONAL)}
    given["pseudo_seen_mask"] = fold.pseudo_seen_mask
    return {name: to_numpy(value) for name, value in given.items() if value is not None}


def _stored_fold(path: Path, run: Mapping[str, Any], split: ArrayLike) -> PseudoFold:
    content = read_npz(path, _RETRY)
    expected = {**run, "pseudo_seen_mask": to_numpy(split)}
    lacking = [name for name in (*expected, "logits", "labels") if name not in content]
    if lacking:
        raise ValueError(f"{path} is no fold of pseudo_cv: it lacks {' and '.join(lacking)}; {_RETRY}")
    differing = [name for name, value in expected.items() if not np.array_equal(content[name], value)]
    if differing:
        raise ValueError(f"{path} is of another run: its {' and '.join(differing)} differ from those given; {_RETRY}")
    optional = {name: content[name] for name in _OPTIONAL if name in content}
    with error_context(path, ValueError):
        return PseudoFold(Samples(content["logits"], content["labels"], **optional), content["pseudo_seen_mask"])
