"""Try finecal and the packages beside it, feature by feature, and print the tables of docs/comparison.md.

    python -m venv peers && peers/bin/pip install . safetensors scikit-learn netcal probmetrics numba \
        torch-uncertainty lightning rich torchvision pytorch-ood mapie torchmetrics
    OMP_NUM_THREADS=1 peers/bin/python tests/benchmarks/features.py

It takes a quarter of a minute. Every cell is what a call returned, raised or warned of, or what a search of the public
names of the package found; each row says in a sentence how. A package that is missing ends the run.
"""

import contextlib
import datetime
import importlib
import inspect
import io
import logging
import pkgutil
import re
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import peer_calibrators as calibrators
import peers
import torch
from peer_calibrators import Fit, softmax
from performance import Problem, problem
from torch import Tensor

import finecal
from finecal._core.results import format_table

CLASSES, FITTED_ON, SCORED_ON, GAP, LEAD = 20, 2000, 4000, 4.0, 2.5
SEEN = torch.arange(CLASSES) % 2 == 0
OF_SOMETHING_ELSE = {("probmetrics", "save"), ("pytorch-ood", "save")}  # predictions, and tensors
NONE = "-"


class Samples(NamedTuple):
    logits: Tensor
    labels: Tensor


class Peer(NamedTuple):
    """A package, and what a row cannot find out by itself."""

    name: str
    package: str
    fits: Callable[..., dict[str, Fit]] | None = None
    look: Fit | None = None  # what takes logits and labels, if not the first calibrator
    probabilities: str = ""  # whether calibrators ask for them "only", or take them "also"
    restored: Callable[[Samples], str] | None = None
    written: Callable[[Samples, Path], None] | None = None
    merged: Callable[[list[Samples]], bool] | None = None

    def methods(self) -> dict[str, Fit]:
        return self.fits(CLASSES) if self.fits else {}

    def first(self) -> Fit | None:
        return self.look or next(iter(self.methods().values()), None)


class Feature(NamedTuple):
    """A row of the table: its name, how it is tested, and the test; or what is searched for among the public names."""

    name: str
    tested: str
    cell: Callable[[Peer], str]
    pattern: str | None = None

    def how(self, compared: list[Peer]) -> str:
        """Say how it is tested, and what a search has found."""
        if self.pattern is None:
            return self.tested
        return f"{self.tested} {in_words(self.pattern, compared)}."


def draw(n: int, classes: Tensor, seed: int) -> Samples:
    """Logits whose seen classes have outgrown the others by a constant."""
    generator = torch.Generator().manual_seed(seed)
    labels = classes[torch.randint(len(classes), (n,), generator=generator)]
    own = torch.nn.functional.one_hot(labels, CLASSES)
    return Samples(torch.randn(n, CLASSES, generator=generator) + LEAD * own + GAP * SEEN, labels)


@cache
def seen_samples() -> Samples:
    return draw(FITTED_ON, torch.arange(CLASSES)[SEEN], 0)


@cache
def test_samples() -> Samples:
    return draw(SCORED_ON, torch.arange(CLASSES), 1)


# --- the accuracies that calibrators reach ----------------------------------------------------------------------------


def tensors(samples: Samples) -> tuple[Any, Any]:
    return samples.logits, samples.labels


def arrays(samples: Samples) -> tuple[Any, Any]:
    return samples.logits.numpy(), samples.labels.numpy()


def accuracies(scores: Any) -> tuple[float, float, float]:
    """Accuracy on all, seen and absent test samples."""
    labels = test_samples().labels
    if tuple(scores.shape) != (SCORED_ON, CLASSES):
        raise ValueError(f"{scores.shape[1]} columns for {CLASSES} classes")
    hit, seen = torch.as_tensor(scores).argmax(1) == labels, SEEN[labels]
    return tuple(float(hit[rows].double().mean()) for rows in (labels >= 0, seen, ~seen))


@cache
def reached(peer: Peer) -> dict[str, tuple[float, float, float] | str]:
    """What each method makes of the test samples, fitted on seen ones, or the error that it ends with."""
    found: dict[str, tuple[float, float, float] | str] = {}
    for name, fit in peer.methods().items():
        for kind in (arrays, tensors):  # NumPy arrays, or tensors where it takes none
            try:
                with silence():
                    scores = fit(*kind(seen_samples()))(kind(test_samples())[0])
                    found[name] = accuracies(scores.detach() if isinstance(scores, Tensor) else scores)
                break
            except Exception as error:
                found.setdefault(name, f"{type(error).__name__}: {error}")
    return found


def fits_seen_only(peer: Peer) -> str:
    values = reached(peer).values()
    return f"{sum(not isinstance(value, str) for value in values)} of {len(values)}" if values else NONE


def absent_after(peer: Peer) -> str:
    values = [value for value in reached(peer).values() if not isinstance(value, str)]
    return f"{100 * max(values)[2]:.1f} %" if values else NONE


# --- what they notice -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def silence() -> Iterator[tuple[list[warnings.WarningMessage], io.StringIO]]:
    """Catch what a package prints, logs and warns of."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setLevel(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        with (
            contextlib.redirect_stdout(text),
            contextlib.redirect_stderr(text),
            warnings.catch_warnings(record=True) as caught,
        ):
            warnings.simplefilter("always")
            yield caught, text
    finally:
        logging.getLogger().removeHandler(handler)


def said(fit: Fit, logits: Any, labels: Any) -> set[str]:
    """Return the kinds of warnings and the error of a fit and its use, if any."""
    with silence() as (caught, text):
        error = None
        try:
            fit(logits, labels)(logits)
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
    lines = [line for line in text.getvalue().splitlines() if "warn" in line.lower()]
    said = {re.sub(r"\d[\d.e+-]*", "#", message) for message in [*(str(w.message) for w in caught), *lines]}
    return said | ({error} if error else set())


def notices(peer: Peer, spoil: Callable[[Peer, Any, Any], tuple[Fit, Any, Any]], *given: Samples) -> str:
    """Say whether the spoilt input brings an error or a warning that the first sound one that is taken does not."""
    fit = peer.first()
    for samples in given:
        for kind in (tensors, arrays):
            usual = said(fit, *kind(samples)) if fit else {"Error"}
            if not any("Error" in message for message in usual):
                return "yes" if said(*spoil(peer, *kind(samples))) - usual else "no"
    return NONE


def with_nan(peer: Peer, logits: Any, labels: Any) -> tuple[Fit, Any, Any]:
    logits = logits.clone() if isinstance(logits, Tensor) else logits.copy()
    logits[3, 5] = float("nan")
    return peer.first(), logits, labels


def re_indexed(peer: Peer, logits: Any, labels: Any) -> tuple[Fit, Any, Any]:
    return peer.first(), logits, labels // 2  # every second class is seen


def probabilities_for_logits(peer: Peer, logits: Any, labels: Any) -> tuple[Fit, Any, Any]:
    return peer.first(), softmax(logits), labels


def logits_for_probabilities(peer: Peer, logits: Any, labels: Any) -> tuple[Fit, Any, Any]:
    as_they_are = next(iter(peer.fits(CLASSES, probabilities=lambda scores: scores).values()))
    return as_they_are, np.asarray(logits), np.asarray(labels)


def notices_wrong_scores(peer: Peer) -> str:
    tried = []
    if peer.probabilities != "only":
        tried.append(probabilities_for_logits)
    if peer.probabilities:
        tried.append(logits_for_probabilities)
    found = {notices(peer, spoil, seen_samples(), test_samples()) for spoil in tried}
    return found.pop() if len(found) == 1 else "one of the two"


def takes(peer: Peer) -> str:
    found = []
    for kind, name, type_ in ((tensors, "tensors", Tensor), (arrays, "arrays", np.ndarray)):
        for logits, labels in (kind(seen_samples()), kind(test_samples())):
            with contextlib.suppress(Exception), silence():
                if name not in found and isinstance(peer.first()(logits, labels)(logits), type_):
                    found.append(name)
    return "both" if len(found) == 2 else found[0] if found else NONE


# --- temperature ------------------------------------------------------------------------------------------------------


@cache
def temperature_problems() -> list[Problem]:
    usual = problem(2000, 100)
    return [usual, usual._replace(logits=8 * usual.logits)]


@cache
def least_nll(given: Problem) -> float:
    """Narrow the inverse temperature down to the least NLL, which is convex in it."""
    low, high = 1e-3, 1e3
    for _ in range(100):
        first, second = (2 * low + high) / 3, (low + 2 * high) / 3
        if peers.nll(given, 1 / first) < peers.nll(given, 1 / second):
            high = second
        else:
            low = first
    return peers.nll(given, 1 / low)


def temperature_shortfall(peer: Peer) -> str:
    """Return the larger of the two excesses in NLL."""
    fit = peers.FITS.get(peer.name)
    if fit is None:
        return NONE
    with silence():
        worst = max(peers.nll(given, fit(given)) - least_nll(given) for given in temperature_problems())
    return f"{worst:.0e}" if worst > 1e-9 else "0"


# --- what is kept -----------------------------------------------------------------------------------------------------


def restores(peer: Peer) -> str:
    return peer.restored(seen_samples()) if peer.restored else NONE


def untried(peer: Peer, start: str) -> str:
    """Make sure that there is nothing to try."""
    names = [name for name in public_names(peer.package) if name.startswith(start) and "(" not in name]
    if any((peer.name, name) not in OF_SOMETHING_ELSE for name in names):
        raise RuntimeError(f"{peer.name} has {', '.join(names)}, of which the table says nothing")
    return NONE


def writes(peer: Peer) -> str:
    if peer.written is None:
        return untried(peer, "save")
    with tempfile.TemporaryDirectory() as folder, silence():
        path = Path(folder) / "calibrator"
        peer.written(seen_samples(), path)
        content = path.read_bytes()
        zipped = zipfile.is_zipfile(path) and any(name.endswith(".pkl") for name in zipfile.ZipFile(path).namelist())
    return "a pickle" if zipped or content.startswith(b"\x80") else "no pickle"


def merges(peer: Peer) -> str:
    halves = [Samples(*part) for part in zip(*(array.chunk(2) for array in test_samples()), strict=True)]
    if peer.merged is None:
        return untried(peer, "merge_state")
    return "yes" if peer.merged(halves) else "no"


def finecal_restored(given: Samples) -> str:
    calibrator = finecal.AdditiveBias(SEEN, finecal.estimators.max_logit_gap(*given, SEEN))
    fresh = finecal.AdditiveBias(SEEN, 0.0)
    fresh.load_state_dict(calibrator.state_dict())
    return "yes" if torch.equal(fresh(given.logits), calibrator(given.logits)) else "no"


def finecal_written(given: Samples, path: Path) -> None:
    written = path.with_suffix(".safetensors")
    finecal.save(finecal.AdditiveBias(SEEN, finecal.estimators.max_logit_gap(*given, SEEN)), written)
    written.rename(path)


def finecal_merged(halves: list[Samples]) -> bool:
    first, second = (finecal.streaming.MarginRows(SEEN).update(*half) for half in halves)
    curve, whole = first.merge(second).compute().curve(), finecal.tradeoff_curve(*test_samples(), SEEN)
    return all(curve.at(gamma) == whole.at(gamma) for gamma in (-3.0, 0.0, 3.0))


def torch_uncertainty_restored(given: Samples) -> str:
    from torch.utils.data import DataLoader, TensorDataset
    from torch_uncertainty.post_processing import TemperatureScaler

    with silence():
        scaler, fresh = TemperatureScaler(torch.nn.Identity()), TemperatureScaler(torch.nn.Identity())
        scaler.fit(DataLoader(TensorDataset(*given), batch_size=FITTED_ON), progress=False)
        fresh.load_state_dict(scaler.state_dict())
        same = torch.equal(fresh(given.logits), scaler(given.logits))
    return "yes" if same and fresh.trained else "the value" if same else "no"


def pytorch_ood_restored(given: Samples) -> str:
    from pytorch_ood.detector import TemperatureScaling

    with silence():
        detector = TemperatureScaling(None).fit_logits(*given)
    if not hasattr(detector, "state_dict"):
        return "no"
    fresh = TemperatureScaling(None)
    fresh.load_state_dict(detector.state_dict())
    try:
        return "yes" if torch.equal(fresh.predict_logits(given.logits), detector.predict_logits(given.logits)) else "no"
    except Exception as error:
        return type(error).__name__


def netcal_written(given: Samples, path: Path) -> None:
    from netcal.scaling import TemperatureScaling

    scaling = TemperatureScaling()
    scaling.fit(softmax(given.logits).numpy(), given.labels.numpy(), tensorboard=False)
    scaling.save_model(str(path))


def metric_merged(make: Callable[[], Any], halves: list[Samples]) -> bool:
    first, second, whole = make(), make(), make()
    first.update(*halves[0])
    second.update(*halves[1])
    first.merge_state(second)
    for half in halves:
        whole.update(*half)
    return bool(torch.isclose(first.compute(), whole.compute()))


def torchmetrics_accuracy() -> Any:
    from torchmetrics.classification import MulticlassAccuracy

    return MulticlassAccuracy(CLASSES, average="micro")


def torchmetrics_look(logits: Any, labels: Any) -> Callable[[Any], Any]:
    metric = torchmetrics_accuracy()
    metric.update(logits, labels)
    return lambda scores: metric.compute()


def torch_uncertainty_merged(halves: list[Samples]) -> bool:
    from torch_uncertainty.metrics import CategoricalNLL

    return metric_merged(CategoricalNLL, [half._replace(logits=softmax(half.logits)) for half in halves])


# --- names ------------------------------------------------------------------------------------------------------------


def modules_of(package: str) -> Iterator[ModuleType]:
    """Import the public modules of a package, but those that lack something else."""
    root = importlib.import_module(package)
    names = [package, *(found.name for found in pkgutil.walk_packages(root.__path__, f"{package}.", onerror=id))]
    for name in names:
        if not any(part.startswith(("_", "test", "conftest", "externals")) for part in name.split(".")[1:]):
            with contextlib.suppress(Exception):
                yield importlib.import_module(name)


@cache
def public_names(package: str) -> dict[str, int]:
    """Return the public functions, classes, methods and arguments that a package defines, and how deep the first is."""
    names: dict[str, int] = {}

    def add(name: str, thing: Any, depth: int) -> None:
        names.setdefault(name, depth)
        with contextlib.suppress(TypeError, ValueError):
            for argument in inspect.signature(thing).parameters:
                names.setdefault(f"{name}({argument}=)", depth + 1)

    with silence():
        for module in sorted(modules_of(package), key=lambda module: module.__name__.count(".")):
            depth = module.__name__.count(".")
            for name, thing in vars(module).items():
                own = str(getattr(thing, "__module__", "")).split(".")[0] == package
                if name.startswith("_") or not own or not callable(thing):
                    continue
                add(name, thing, depth)
                for method, function in vars(thing).items() if inspect.isclass(thing) else ():
                    if not method.startswith("_"):
                        add(method, function, depth)
    return names


def named(pattern: str, peer: Peer) -> str:
    """Return the public name in which the pattern is found, in any case: the one that is easiest to reach."""
    names = public_names(peer.package)
    found = [name for name in names if re.search(pattern, name, re.IGNORECASE)]
    return f"`{min(found, key=lambda name: (names[name], len(name), name))}`" if found else NONE


def in_words(pattern: str, compared: list[Peer]) -> str:
    found = {peer.name: named(pattern, peer) for peer in compared}
    return ", ".join(f"{peer} {name}" for peer, name in found.items() if name != NONE) or NONE


def by_name(name: str, pattern: str) -> Feature:
    words = " or ".join(f'"{word.replace("_?", " ")}"' for word in pattern.split("|"))

    def cell(peer: Peer) -> str:
        return "no" if named(pattern, peer) == NONE else "yes"

    return Feature(name, f"A search for {words} finds", cell, pattern)


FEATURES = [
    Feature(
        "calibrators that fit on labels of seen classes alone",
        f"Each is fitted on {FITTED_ON:,} samples of the {CLASSES // 2} seen classes, and applied to logits of all "
        f"{CLASSES}. One that raises an error, or returns another number of columns, does not count.",
        fits_seen_only,
    ),
    Feature(
        "accuracy on absent classes after that",
        f"Of the calibrator with the best accuracy on all of {SCORED_ON:,} test samples.",
        absent_after,
    ),
    by_name("a mask of the seen classes", "seen_?mask|seen_?class|absent_?class"),
    by_name("ALG, PCV", "logit_?gap|pseudo_?cv"),
    by_name("seen against absent accuracy, AUSUC", "ausuc|trade_?off_?curve"),
    by_name("harmonic mean of the two", "harmonic"),
    by_name("goes into the model's own head", "fold_?into|fuse|absorb"),
    by_name("prototypes from unlabelled samples", "fit_?prototypes|test_?time_?adjust|t3a"),
    by_name("weights between before and after", "interpolate_?weights|wise_?ft"),
    Feature(
        "notices NaN",
        "One logit is NaN. Does the package's first calibrator in the first table (for torchmetrics: its accuracy) "
        "raise an error or warn about it?",
        lambda peer: notices(peer, with_nan, seen_samples(), test_samples()),
    ),
    Feature(
        "notices re-indexed labels",
        "Labels of the seen classes count from 0, as in a folder that has only these classes; judged in the same way. "
        "Scikit-learn cannot be tried, because it raises an error for the right labels as well.",
        lambda peer: notices(peer, re_indexed, seen_samples()),
    ),
    Feature(
        "notices scores of the wrong kind",
        "Probabilities where logits are expected, and logits where probabilities are; judged in the same way. "
        "Probmetrics takes either, and notices logits for probabilities.",
        notices_wrong_scores,
    ),
    Feature(
        "fitted temperature: NLL above the best",
        "In nats, on 2,000 samples of 100 classes, and on the same logits 8 times as large; the worse of the two. A "
        "search in float64 gives the best value.",
        temperature_shortfall,
    ),
    Feature(
        "survives its `state_dict`",
        "The state of a fitted calibrator is loaded into a new one, and the outputs are compared. In torch-uncertainty "
        "the value comes back, but not that it was fitted, and it warns; pytorch-ood's detector has no `state_dict`.",
        restores,
    ),
    Feature(
        "its own file",
        "The package's own function writes a fitted calibrator, and the bytes are checked. The others have no such "
        "function: `save` of probmetrics writes predictions, that of pytorch-ood tensors.",
        writes,
    ),
    Feature(
        "a state that takes batches, and merges",
        "Two halves of the test samples, merged, give the same as all at once: the curve of finecal at three gammas, "
        "accuracy of torchmetrics, NLL of torch-uncertainty. The others have no `merge_state`.",
        merges,
    ),
    Feature(
        "takes and returns",
        "A fit and its use with tensors and with NumPy arrays, on the CPU; the output must be of the same kind.",
        takes,
    ),
    by_name("reliability diagram", "reliability|calibration_?display|calibration_?curve"),
    by_name("a report", "html_?report|classification_?report"),
]

OTHERS = {
    "conformal prediction sets": "conformal_?cl",
    "isotonic regression": "isotonic",
    "histogram binning, BBQ": "histogram_?binning|bbq",
    "beta or Dirichlet calibration": "beta_?cal|dirichlet_?(cal|scal)",
    "Venn-Abers": "venn_?abers",
    "splines": "spline_?calib",
    "matrix or vector scaling": "(matrix|vector)_?scal|^svs|^sms",
    "calibration of regression": "variance_?scaling|conformal_?regress|conformal_?reg",
    "calibration of object detection": r"\(detection=",
    "ensembles, MC dropout": "deep_?ensemble|mc_?dropout|bagging_?classifier",
    "detectors of unknown classes": "open_?max|isolation_?forest|ood_?criteri",
    "smooth or adaptive calibration error": "smooth_?calibration|adaptive_?calibration|^ace$",
    "control of a risk": "risk_?control|seen_?budget",
}


def others(compared: list[Peer]) -> list[list[str]]:
    """Say for each of OTHERS what finecal and the other packages have that is called so."""
    rest = [peer for peer in compared if peer is not FINECAL]
    return [[name, named(pattern, FINECAL), in_words(pattern, rest)] for name, pattern in OTHERS.items()]


FINECAL = Peer(
    "finecal",
    "finecal",
    calibrators.of_finecal,
    restored=finecal_restored,
    written=finecal_written,
    merged=finecal_merged,
)

PEERS = [
    FINECAL,
    Peer("scikit-learn", "sklearn", calibrators.of_scikit_learn),
    Peer("netcal", "netcal", calibrators.of_netcal, probabilities="only", written=netcal_written),
    Peer("probmetrics", "probmetrics", calibrators.of_probmetrics, probabilities="also"),
    Peer(
        "torch-uncertainty",
        "torch_uncertainty",
        calibrators.of_torch_uncertainty,
        restored=torch_uncertainty_restored,
        merged=torch_uncertainty_merged,
    ),
    Peer("pytorch-ood", "pytorch_ood", calibrators.of_pytorch_ood, restored=pytorch_ood_restored),
    Peer("MAPIE", "mapie", calibrators.of_mapie, probabilities="only"),
    Peer(
        "torchmetrics",
        "torchmetrics",
        look=torchmetrics_look,
        merged=lambda halves: metric_merged(torchmetrics_accuracy, halves),
    ),
]


def feature_rows(compared: list[Peer]) -> list[list[str]]:
    return [[feature.name, *(feature.cell(peer) for peer in compared)] for feature in FEATURES]


def accuracy_rows(compared: list[Peer]) -> list[list[str]]:
    def cells(value: tuple[float, float, float] | str) -> list[str]:
        return ["", "", "", value] if isinstance(value, str) else [*(f"{100 * part:.1f}" for part in value), ""]

    rows = [["", "none", *cells(accuracies(test_samples().logits))]]
    for peer in compared:
        rows += [[peer.name, f"`{name}`", *cells(value)] for name, value in reached(peer).items()]
    return rows


def versions(compared: list[Peer]) -> list[str]:
    """Return the versions of the packages; end if one is missing."""
    found, missing = [f"finecal {finecal.__version__}"], []
    for peer in compared:
        if peer is FINECAL:
            continue
        try:
            found.append(f"{peer.name} {metadata.version(peer.name)}")
        except metadata.PackageNotFoundError:
            missing.append(peer.name.lower())
    if missing:
        sys.exit(f"features.py compares packages that are not installed: pip install {' '.join(missing)}")
    return found


def main() -> None:
    torch.set_num_threads(1)
    found = versions(PEERS)
    names = [peer.name for peer in PEERS]
    print(f"{datetime.date.today()}: {', '.join(found)}, torch {torch.__version__.partition('+')[0]}.\n")
    print(format_table(["package", "calibrator", "all", "seen", "absent", "error"], accuracy_rows(PEERS)), "\n")
    print(format_table(["feature", *names], feature_rows(PEERS)), "\n")
    print("\n".join(f"- *{feature.name}*: {feature.how(PEERS)}" for feature in FEATURES), "\n")
    print(format_table(["what", "finecal", "others"], others(PEERS)))


if __name__ == "__main__":
    main()
