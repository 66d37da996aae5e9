"""The demo: fine-tune on half of the classes, find gamma without samples of the others, and show what comes back."""

import importlib.util
import warnings
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, SupportsFloat, cast

from torch import Tensor

from . import (
    FinecalWarning,
    GammaEstimate,
    SeenAbsentReport,
    average_logit_gap,
    estimate_gamma,
    evaluate,
    known_share_gamma,
    margins,
    max_logit_gap,
    mixed_pair_gap,
    mixture_gamma,
    predict,
    search_gamma,
    seen_budget_gamma,
)
from ._table import format_table
from .datasets import NamesTask, load_names
from .io import LogitsFile, write_atomically, write_logits
from .name_classifier import SplitLogits, train_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EXTRA = ("pycountry", "matplotlib", "tqdm")
SHOWN_NAMES = 10


def run_demo(
    out: Path | None = None, seed: int = 0, progress: bool = True, *, epochs: tuple[int, int] = (10, 25)
) -> str:
    """Pre-train and fine-tune a small network, estimate gamma in every way, and report.

    Parameters
    ----------
    out : Path, optional
        Directory for `report.md`, `tradeoff.png`, `margins.png`, the logits of the fine-tuned model (`train.npz`,
        `held_out.npz`, `test.npz`: ``logits``, ``labels``, ``class_names``), `classes.txt` and `seen.txt`.
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
    """
    if out is not None:
        _check_folder(out)
    missing = [package for package in EXTRA if importlib.util.find_spec(package) is None]
    if missing:
        raise ImportError(f"the demo needs {', '.join(missing)}: pip install 'finecal[demo]'")
    task = load_names(seed)
    logits = train_names(task, seed, progress, epochs)
    with warnings.catch_warnings():
        # The report has them in its text.
        warnings.simplefilter("ignore", FinecalWarning)
        rows = _estimates(task, logits)
        chosen = estimate_gamma(task.seen_mask, train=(logits.train, task.train.labels))
    text = _report(task, logits, rows, chosen, seed)
    if out is not None:
        _write(out, task, logits, rows, chosen, text)
    return text


def _check_folder(out: Path) -> None:
    """Refuse a file before anything is trained."""
    existing = next((path for path in (out, *out.parents) if path.exists()), None)
    if existing is not None and not existing.is_dir():
        raise NotADirectoryError(f"{existing} is a file; give a folder")


class _Row(NamedTuple):
    name: str
    estimate: GammaEstimate
    needs: str


def _estimates(task: NamesTask, logits: SplitLogits) -> list[_Row]:
    """Estimate gamma in every way; the oracle comes last."""
    mask = task.seen_mask
    train, held_out = (logits.train, task.train.labels, mask), (logits.held_out, task.held_out.labels, mask)
    share = float(mask[task.test.labels].double().mean())
    return [
        _Row("+ average_logit_gap", average_logit_gap(*train), "training logits"),
        _Row("+ max_logit_gap", max_logit_gap(*train), "training logits"),
        _Row("+ mixed_pair_gap", mixed_pair_gap(*train), "training logits"),
        _Row("+ max_logit_gap", max_logit_gap(*held_out), "held-out logits"),
        _Row("+ seen_budget_gamma", seen_budget_gamma(*held_out), "held-out logits"),
        _Row("+ mixture_gamma", mixture_gamma(logits.held_out, logits.test, mask), "held-out, unlabelled logits"),
        _Row("+ known_share_gamma", known_share_gamma(logits.test, mask, share), "unlabelled logits, true share"),
        _Row("oracle", search_gamma(logits.test, task.test.labels, mask), "test labels"),
    ]


def _report(task: NamesTask, logits: SplitLogits, rows: list[_Row], chosen: GammaEstimate, seed: int) -> str:
    estimates = [*(row.estimate for row in rows), chosen]
    doubts = dict.fromkeys(f"Warning of {estimate.method}: {s}" for estimate in estimates for s in estimate.warnings)
    splits = f"{len(task.train)} for fine-tuning, {len(task.held_out)} held out, {len(task.test)} for testing"
    return "\n\n".join(
        [
            f"Names of countries, currencies and scripts, seed {seed}: {len(task.class_names)} classes, of which "
            f"{int(task.seen_mask.sum())} are seen; {len(task.source)} names for pre-training, {splits}.",
            _table(task, logits, rows),
            *doubts,
            _changes(task, logits.test, chosen),
        ]
    )


def _table(task: NamesTask, logits: SplitLogits, rows: list[_Row]) -> str:
    def report(test_logits: Tensor, gamma: SupportsFloat = 0.0) -> SeenAbsentReport:
        return evaluate(test_logits, task.test.labels, task.seen_mask, gamma)

    def cells(at: SeenAbsentReport) -> list[str]:
        every_class, own_group = (at.acc_seen, at.acc_absent, at.acc_all), (at.acc_seen_within, at.acc_absent_within)
        percent = [f"{100 * accuracy:.1f}" for accuracy in (*every_class, *own_group, at.harmonic_mean)]
        return [f"{at.gamma:.2f}", *percent, f"{at.ausuc:.3f}"]

    fine_tuned, oracle = report(logits.test), report(logits.test, rows[-1].estimate)
    gain = oracle.acc_all - fine_tuned.acc_all

    def line(row: _Row) -> list[str]:
        at = report(logits.test, row.estimate)
        recovered = f"{100 * (at.acc_all - fine_tuned.acc_all) / gain:.0f}" if gain > 0 else "-"
        return [row.name, *cells(at), recovered, row.needs]

    columns = ["gamma", "Acc_S/Y", "Acc_U/Y", "Acc_Y/Y", "Acc_S/S", "Acc_U/U", "harmonic", "AUSUC", "recovered %"]
    return format_table(
        ["accuracies in %", *columns, "needs"],
        [
            ["pre-trained", *cells(report(logits.pretrained_test)), "", ""],
            ["fine-tuned", *cells(fine_tuned), "", ""],
            *map(line, rows),
        ],
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


def _write(out: Path, task: NamesTask, logits: SplitLogits, rows: list[_Row], chosen: GammaEstimate, text: str) -> None:
    from .plots import plot_margins, plot_tradeoff

    samples = margins(logits.test, task.test.labels, task.seen_mask)
    marked = {row.name.removeprefix("+ "): row.estimate for row in rows if row.needs == "training logits"}
    seen_names = [name for name, seen in zip(task.class_names, task.seen_mask.tolist(), strict=True) if seen]
    report = f"# finecal demo\n\n{text}\n\n![Seen-absent curve](tradeoff.png) ![Margins](margins.png)\n"
    files = {
        "tradeoff.png": _png(plot_tradeoff(samples.curve(), gammas=marked)),
        "margins.png": _png(plot_margins(samples, gamma=chosen)),
        "classes.txt": "\n".join([*task.class_names, ""]).encode(),
        "seen.txt": "\n".join([*seen_names, ""]).encode(),
        "report.md": report.encode(),
    }
    splits = {
        "train.npz": LogitsFile(logits.train, task.train.labels, task.class_names),
        "held_out.npz": LogitsFile(logits.held_out, task.held_out.labels, task.class_names),
        "test.npz": LogitsFile(logits.test, task.test.labels, task.class_names),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, scores in splits.items():
        write_logits(out / name, scores)
    for name, content in files.items():
        write_atomically(out / name, content)


def _png(axes: "Axes") -> bytes:
    file = BytesIO()
    cast("Figure", axes.figure).savefig(file)
    return file.getvalue()
