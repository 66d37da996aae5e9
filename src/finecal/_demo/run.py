"""The demo: train a character CNN, fine-tune it on half of the classes, estimate gamma, and report."""

from __future__ import annotations

import copy
import importlib.util
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._calibrators.compare import EstimatorComparison, compare_estimators
from .._core.arrays import check_seed
from .._core.calibrate import predict
from .._core.files import write_atomically
from .._core.samples import Samples
from .._core.warning import without_warnings
from .._estimators.auto import estimate_gamma
from .._estimators.estimate import GammaEstimate
from .._estimators.folds import PseudoFold, pseudo_cv_splits
from .._evaluation.diagnose import diagnose
from .._evaluation.diagnosis import Diagnosis
from ..plots._curves import plot_tradeoff
from ..plots._estimators import plot_estimators
from ..plots._margins import plot_margins
from .names import NamesSplit, NamesTask, load_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EXTRA = ("pycountry", "matplotlib", "tqdm")
SHOWN_NAMES = 10
_BATCH_SIZE = 64


def run_demo(
    out: Path | None = None, seed: int = 0, progress: bool = True, *, epochs: tuple[int, int] = (10, 25)
) -> str:
    """Pre-train and fine-tune a small network, compare all estimators and prototypes, and return a report.

    Parameters
    ----------
    out : Path, optional
        Directory for `report.md`, `tradeoff.png`, `margins.png`, `estimators.png`, the samples of the fine-tuned model
        (`train.npz`, `held_out.npz` with features, `test.npz` with features and pretrained logits), `classes.txt` and
        `seen.txt`.
    seed : int
        Seed of the seen classes, the splits, the initial weights and the batches.
    progress : bool
        Whether to show progress bars on stderr.
    epochs : (int, int)
        Epochs of pre-training and of fine-tuning.

    Returns
    -------
    str
        The report in Markdown, without the pictures.

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
    existing = None if out is None else next((path for path in (out, *out.parents) if path.exists()), None)
    if existing is not None and not existing.is_dir():
        raise NotADirectoryError(f"{existing} is a file; give a folder")
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


def _compare(task: NamesTask, logits: SplitLogits, seed: int, progress: bool, epochs: int) -> EstimatorComparison:
    """Compare all estimators, with refits on halves of the seen classes, and prototypes of the test names."""
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
    """Return the numbers of mended and spoiled predictions, and the first names that change."""
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


# --- the model --------------------------------------------------------------------------------------------------------


class NameClassifier(nn.Module):
    """Character CNN: 64 filters of each width from 2 to 5, their maxima over the name, and a linear head.

    Accents are characters of their own; all characters that do not occur in `names` share a code.
    """

    max_length = 40

    def __init__(self, names: Iterable[str], num_classes: int) -> None:
        super().__init__()
        alphabet = sorted({character for name in names for character in _characters(name)})
        self.codes = {character: code for code, character in enumerate(alphabet, start=2)}
        self.embedding = nn.Embedding(len(alphabet) + 2, 48, padding_idx=0)
        self.filters = nn.ModuleList(nn.Conv1d(48, 64, width, padding=width // 2) for width in (2, 3, 4, 5))
        self.head = nn.Linear(256, num_classes)

    def encode(self, names: Sequence[str]) -> Tensor:
        """Return the codes of the characters, ``(N, max_length)``; 0 is padding, 1 an unknown character."""
        codes = torch.zeros(len(names), self.max_length, dtype=torch.int64)
        for row, name in zip(codes, names, strict=True):
            characters = _characters(name)[: self.max_length]
            row[: len(characters)] = torch.tensor([self.codes.get(character, 1) for character in characters])
        return codes

    def features(self, codes: Tensor) -> Tensor:
        """Return the inputs of the head, ``(N, 256)``."""
        embedded = self.embedding(codes).transpose(1, 2)
        return torch.cat([F.relu(convolve(embedded)).amax(dim=2) for convolve in self.filters], dim=1)

    def forward(self, codes: Tensor) -> Tensor:
        """Return logits ``(N, C)``."""
        logits: Tensor = self.head(self.features(codes))
        return logits


def _characters(name: str) -> str:
    # The marks show the filters where a name begins and ends.
    return f"^{unicodedata.normalize('NFD', name.casefold())}$"


class Scores(NamedTuple):
    """Logits ``(N, C)`` and features ``(N, 256)`` of N names."""

    logits: Tensor
    features: Tensor


class SplitLogits(NamedTuple):
    """Logits and features of the fine-tuned model, logits of the pre-trained one on the test names, and both models."""

    train: Tensor
    held_out: Tensor
    test: Tensor
    pretrained_test: Tensor
    held_out_features: Tensor
    test_features: Tensor
    pretrained: NameClassifier
    fine_tuned: NameClassifier


def train_names(task: NamesTask, seed: int, progress: bool, epochs: tuple[int, int]) -> SplitLogits:
    """Pre-train on the source names, fine-tune on the seen classes, and score; `epochs` are those of both trainings."""
    generator = torch.Generator().manual_seed(seed)
    pretrained = pretrain(task, seed, generator, epochs=epochs[0], progress=progress)
    fine_tuned = fine_tune(pretrained, task.train, generator, epochs=epochs[1], progress=progress)
    held_out, test = score(fine_tuned, task.held_out), score(fine_tuned, task.test)
    return SplitLogits(
        train=score(fine_tuned, task.train).logits,
        held_out=held_out.logits,
        test=test.logits,
        pretrained_test=score(pretrained, task.test).logits,
        held_out_features=held_out.features,
        test_features=test.features,
        pretrained=pretrained,
        fine_tuned=fine_tuned,
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit torch to one thread, because results depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def pretrain(
    task: NamesTask, seed: int, generator: torch.Generator, *, epochs: int = 10, progress: bool = False
) -> NameClassifier:
    """Return a model trained on the source names; `seed` is for its initial weights, `generator` for the batches."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = NameClassifier(task.source.names + task.train.names, len(task.class_names))
    _fit(model, task.source, generator, epochs, 0.5, torch.optim.SGD, "pre-training", progress)
    return model


@_one_thread()
def fine_tune(
    pretrained: NameClassifier,
    split: NamesSplit,
    generator: torch.Generator,
    *,
    epochs: int = 25,
    learning_rate: float = 0.2,
    optimiser: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    progress: bool = False,
) -> NameClassifier:
    """Return a copy of `pretrained`, trained on `split` without the parameters that require no gradient.

    `optimiser` is called with the parameters, ``lr`` and ``weight_decay``; `generator` is for the batches.
    """
    model = copy.deepcopy(pretrained)
    _fit(model, split, generator, epochs, learning_rate, optimiser, "fine-tuning", progress)
    return model


def _fit(
    model: NameClassifier,
    split: NamesSplit,
    generator: torch.Generator,
    epochs: int,
    learning_rate: float,
    optimiser: Callable[..., torch.optim.Optimizer],
    title: str,
    progress: bool,
) -> None:
    """Minimise the cross-entropy over all classes with a cosine schedule."""
    from tqdm import tqdm

    codes = model.encode(split.names)
    order = torch.cat([torch.randperm(len(codes), generator=generator) for _ in range(epochs)])
    batches = torch.split(order, _BATCH_SIZE)
    stepper = optimiser(model.parameters(), lr=learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(stepper, len(batches))
    for batch in tqdm(batches, desc=title, unit=" batches", disable=not progress):
        stepper.zero_grad()
        torch.autograd.backward(F.cross_entropy(model(codes[batch]), split.labels[batch]))
        stepper.step()
        schedule.step()


@_one_thread()
@torch.no_grad()
def score(model: NameClassifier, split: NamesSplit) -> Scores:
    """Return logits and features of the names of `split`."""
    features = model.features(model.encode(split.names))
    return Scores(model.head(features), features)


def train_fold(
    task: NamesTask,
    pretrained: NameClassifier,
    pseudo_seen_mask: Tensor,
    seed: int,
    *,
    epochs: int = 25,
    progress: bool = False,
) -> PseudoFold:
    """Fine-tune `pretrained` on the names of the pseudo-seen classes, and score the held-out names of all seen ones.

    The batches depend on `seed` only, not on earlier folds.
    """
    generator = torch.Generator().manual_seed(seed)
    names = task.train.of_classes(pseudo_seen_mask)
    fine_tuned = fine_tune(pretrained, names, generator, epochs=epochs, progress=progress)
    logits, pretrained_logits = (score(model, task.held_out).logits for model in (fine_tuned, pretrained))
    samples = Samples(logits, task.held_out.labels, pretrained_logits=pretrained_logits)
    return PseudoFold(samples, pseudo_seen_mask)
