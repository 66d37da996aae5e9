"""The demo: fine-tune on half of the classes, find gamma without samples of the others, and show what comes back."""

from __future__ import annotations

import importlib.util
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch import Tensor

from ..calibrators.compare import compare_estimators
from ..calibrators.comparison import EstimatorComparison
from ..evaluation.diagnose import diagnose
from ..evaluation.diagnosis import Diagnosis
from ..evaluation.samples import Samples
from ..gamma.auto import estimate_gamma
from ..gamma.estimate import GammaEstimate
from ..gamma.folds import pseudo_cv_splits
from ..inputs.numbers import check_seed
from ..inputs.warning import without_warnings
from ..logits.predict import predict
from ..plots._curves import plot_tradeoff
from ..plots._estimators import plot_estimators
from ..plots._margins import plot_margins
from ..results.files import write_atomically
from .classifier import SplitLogits, train_fold, train_names
from .names import NamesTask, load_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EXTRA = ("pycountry", "matplotlib", "tqdm")
SHOWN_NAMES = 10


def run_demo(
    out: Path | None = None, seed: int = 0, progress: bool = True, *, epochs: tuple[int, int] = (10, 25)
) -> str:
    """Pre-train and fine-tune a small network, estimate gamma in every way, add prototypes, and report.

    Parameters
    ----------
    out : Path, optional
        Directory for `report.md`, `tradeoff.png`, `margins.png`, `estimators.png`, the samples of the fine-tuned model
        (`train.npz`, `held_out.npz` with features, `test.npz` with features and pretrained logits), `classes.txt` and
        `seen.txt`.
    seed : int
        Chooses the seen classes, the splits, the initial weights and the batches.
    progress : bool
        Whether to show progress bars, on stderr.
    epochs : (int, int)
        Of pre-training and of fine-tuning.

    Returns
    -------
    str
        The report as Markdown, without the pictures.

    Raises
    ------
    ImportError
        If a package of the extra ``demo`` is not installed.
    NotADirectoryError
        If `out`, or a parent of it, is a file.
    ValueError
        If `seed` is negative, or 2**63 or more.
    """
    check_seed(seed)
    if out is not None:
        _check_folder(out)
    missing = [package for package in EXTRA if importlib.util.find_spec(package) is None]
    if missing:
        raise ImportError(f"the demo needs {', '.join(missing)}: pip install 'finecal[demo]'")
    task = load_names(seed)
    logits = train_names(task, seed, progress, epochs)
    comparison = _compare(task, logits, seed, progress, epochs[1])
    with without_warnings():  # The report has them in its text.
        chosen = estimate_gamma(task.seen_mask, train=(logits.train, task.train.labels))
        test = Samples(logits.test, task.test.labels, pretrained_logits=logits.pretrained_test)
        diagnosis = diagnose(test, task.seen_mask)
    text = _report(task, logits, comparison, diagnosis, chosen, seed)
    if out is not None:
        _write(out, task, logits, comparison, chosen, text)
    return text


def _check_folder(out: Path) -> None:
    """Refuse a file before anything is trained."""
    existing = next((path for path in (out, *out.parents) if path.exists()), None)
    if existing is not None and not existing.is_dir():
        raise NotADirectoryError(f"{existing} is a file; give a folder")


def _compare(task: NamesTask, logits: SplitLogits, seed: int, progress: bool, epochs: int) -> EstimatorComparison:
    """Estimate gamma in every way, with refits on halves of the seen classes, and add prototypes of the test names."""
    mask = task.seen_mask
    halves = pseudo_cv_splits(mask, seed=seed)
    return compare_estimators(
        mask,
        train=(logits.train, task.train.labels),
        held_out=_held_out(task, logits),
        unlabelled=Samples(logits.test, features=logits.test_features),
        seen_share=float(mask.double().mean()),
        folds=[train_fold(task, logits.pretrained, half, seed, epochs=epochs, progress=progress) for half in halves],
        test=_test(task, logits),
        seed=seed,
    )


def _held_out(task: NamesTask, logits: SplitLogits) -> Samples:
    return Samples(logits.held_out, task.held_out.labels, features=logits.held_out_features)


def _test(task: NamesTask, logits: SplitLogits) -> Samples:
    return Samples(
        logits.test, task.test.labels, features=logits.test_features, pretrained_logits=logits.pretrained_test
    )


def _report(
    task: NamesTask,
    logits: SplitLogits,
    comparison: EstimatorComparison,
    diagnosis: Diagnosis,
    chosen: GammaEstimate,
    seed: int,
) -> str:
    splits = f"{len(task.train)} for fine-tuning, {len(task.held_out)} held out, {len(task.test)} for testing"
    return "\n\n".join(
        [
            f"Names of countries, currencies and scripts, seed {seed}: {len(task.class_names)} classes, of which "
            f"{int(task.seen_mask.sum())} are seen; {len(task.source)} names for pre-training, {splits}.",
            str(comparison),
            f"Diagnosis from the test names: {' '.join(diagnosis.sentences)}",
            _changes(task, logits.test, chosen),
        ]
    )


def _changes(task: NamesTask, test_logits: Tensor, estimate: GammaEstimate) -> str:
    """Say what `estimate` mends and spoils, with the first names whose prediction changes."""
    before, after = predict(test_logits, task.seen_mask), predict(test_logits, task.seen_mask, estimate)
    changed = (before != after).nonzero().squeeze(1)
    mended = int((after == task.test.labels)[changed].sum())
    spoiled = int((before == task.test.labels)[changed].sum())

    def line(sample: int) -> str:
        name, label = task.test.names[sample], int(task.test.labels[sample])
        was, now = int(before[sample]), int(after[sample])
        mark = "✓" if now == label else "✗ (spoiled)" if was == label else f"✗ ({task.class_names[label]})"
        return f"- {name}: {task.class_names[was]} → {task.class_names[now]} {mark}"

    summary = (
        f"From the training logits alone, estimate_gamma chooses {estimate.method}: gamma = {float(estimate):.2f}. The "
        f"prediction changes for {len(changed)} of {len(before)} test names: {mended} mended, {spoiled} spoiled, "
        f"{len(changed) - mended - spoiled} wrong either way. The first {SHOWN_NAMES}:"
    )
    return "\n".join([summary, "", *map(line, changed[:SHOWN_NAMES].tolist())])


def _write(
    out: Path, task: NamesTask, logits: SplitLogits, comparison: EstimatorComparison, chosen: GammaEstimate, text: str
) -> None:

    samples = Samples(logits.test, task.test.labels).margins(task.seen_mask)
    marked = {
        row.method: row.estimate
        for row in comparison.rows
        if row.estimate is not None and row.needs.startswith("training")
    }
    seen_names = [name for name, seen in zip(task.class_names, task.seen_mask.tolist(), strict=True) if seen]
    pictures = "![Seen-absent curve](tradeoff.png) ![Margins](margins.png)\n![Estimators](estimators.png)"
    report = f"# finecal demo\n\n{text}\n\n{pictures}\n"
    files = {
        "tradeoff.png": _png(plot_tradeoff(samples.curve(), gammas=marked)),
        "margins.png": _png(plot_margins(samples, gamma=chosen)),
        "estimators.png": _png(plot_estimators(comparison)),
        "classes.txt": "\n".join([*task.class_names, ""]).encode(),
        "seen.txt": "\n".join([*seen_names, ""]).encode(),
        "report.md": report.encode(),
    }
    splits = {
        "train.npz": Samples(logits.train, task.train.labels),
        "held_out.npz": _held_out(task, logits),
        "test.npz": _test(task, logits),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, split in splits.items():
        split.save(out / name, class_names=task.class_names)
    for name, content in files.items():
        write_atomically(out / name, content)


def _png(axes: Axes) -> bytes:
    file = BytesIO()
    cast("Figure", axes.figure).savefig(file)
    return file.getvalue()
