"""Every public callable, every argument, forty kinds of junk: an error of finecal that names the argument, or a reason.

The reasons are `Call.legal`, per call, and `LEGAL`, for arguments that mean the same everywhere.
"""

import tempfile

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import settings
from sklearn.linear_model import LogisticRegression
from torch import nn

import finecal
import finecal.distributed
import finecal.plots
import finecal.sklearn
import finecal.streaming
from junk import KINDS, Call, outcome, quietly
from profiles import ALL as EVERY_EXAMPLE
from public_names import PUBLIC

matplotlib.use("agg")

RNG = np.random.default_rng(0)
N, C = 12, 4
ALL_LABELS = np.arange(N) % C
SEEN_LABELS = np.arange(N) % 3
MASK = np.array([True, True, True, False])
LOGITS = (3 * np.eye(C)[ALL_LABELS] + RNG.normal(size=(N, C))).astype(np.float32)
SEEN_LOGITS = (3 * np.eye(C)[SEEN_LABELS] + RNG.normal(size=(N, C))).astype(np.float32)
FEATURES = RNG.normal(size=(N, 5)).astype(np.float32)
HEAD = (RNG.normal(size=(C, 5)).astype(np.float32), np.zeros(C, dtype=np.float32))
BOOTSTRAP = {"n_bootstrap": 2, "seed": 0}
GROUPS = 5 - np.arange(N) // 2
SEEN = {"logits": SEEN_LOGITS, "labels": SEEN_LABELS, "seen_mask": MASK}
ALL = {"logits": LOGITS, "labels": ALL_LABELS, "seen_mask": MASK}
MARGINS = finecal.Samples(LOGITS, ALL_LABELS).margins(MASK)
CURVE = MARGINS.curve()
FEATURE_TENSOR = torch.from_numpy(FEATURES)
LOGIT_TENSOR = torch.from_numpy(LOGITS)
SHARED = 3
"""Classes of a head that fine-tuning has made anew."""
BATCHES = [(FEATURE_TENSOR, torch.from_numpy(SEEN_LABELS))]
FOLDER = tempfile.TemporaryDirectory()
FIELDS = {
    "logits": SEEN_LOGITS,
    "labels": SEEN_LABELS,
    "features": FEATURES,
    "groups": GROUPS,
    "pretrained_logits": SEEN_LOGITS,
    "pretrained_features": FEATURES,
}
FOLD = {
    "logits": SEEN_LOGITS,
    "labels": SEEN_LABELS,
    "pseudo_seen_mask": np.array([True, True, False, False]),
    "pretrained_logits": SEEN_LOGITS,
    "groups": GROUPS,
}


def scored():
    features = {"features": FEATURES, "pretrained_features": FEATURES}
    return finecal.Samples(LOGITS, ALL_LABELS, pretrained_logits=LOGITS, **features)


def can_be_iterated(make):
    try:
        return bool(list(quietly(make)))
    except Exception:
        return False


def fold(*, pseudo_seen_mask, **samples):
    return finecal.estimators.PseudoFold(finecal.Samples(**samples), pseudo_seen_mask)


def folds():
    return [fold(**FOLD)]


def net():
    torch.manual_seed(0)
    return nn.Linear(5, C)


def fine_tuned():
    tuned = net()
    with torch.no_grad():
        tuned.weight += 0.1 * torch.eye(C, 5)
    return tuned


def bias():
    return finecal.AdditiveBias(MASK, 1.0)


def prototypes():
    return finecal.calibrators.Prototypes(MASK, 1.0, HEAD[0], np.zeros(5, dtype=np.float32))


def folded():
    return {"model": finecal.fold_into_head(net(), bias()), "calibrator": bias()}


def trained(mask):
    return finecal.estimators.PseudoFold((SEEN_LOGITS, SEEN_LABELS), mask)


def fresh(**arguments):
    """Return the function that gives these arguments, each time in a dict of its own."""
    return lambda: dict(arguments)


def of(function, **arguments):
    return Call(function.__name__, function, fresh(**arguments))


FUNCTIONS = [
    of(finecal.estimators.average_logit_gap, **SEEN, **BOOTSTRAP),
    of(finecal.estimators.max_logit_gap, **SEEN, **BOOTSTRAP),
    of(finecal.estimators.mixed_pair_gap, **SEEN, **BOOTSTRAP, seen_share=0.5),
    of(finecal.estimators.residual_gap, **SEEN, **BOOTSTRAP, seen_share=0.5, temperature=1.0),
    of(finecal.estimators.seen_budget_gamma, **SEEN, **BOOTSTRAP, max_seen_drop=0.5, confidence=0.5),
    of(finecal.estimators.head_drift_gamma, **SEEN, **BOOTSTRAP, features=FEATURES, head=HEAD, pretrained_head=HEAD),
    of(finecal.search_gamma, **ALL, **BOOTSTRAP, objective="overall", max_seen_drop=0.5),
    of(finecal.estimators.known_share_gamma, logits=LOGITS, seen_mask=MASK, seen_share=0.5, **BOOTSTRAP),
    of(finecal.estimators.mixture_gamma, seen=SEEN_LOGITS, unlabelled=LOGITS, seen_mask=MASK, **BOOTSTRAP),
    Call(
        "pseudo_cv_gamma",
        finecal.estimators.pseudo_cv_gamma,
        lambda: {"folds": folds(), "seen_mask": MASK, **BOOTSTRAP},
    ),
    of(finecal.estimators.pseudo_cv_splits, seen_mask=MASK, n_splits=2, seed=0),
    Call(
        "pseudo_cv",
        finecal.estimators.pseudo_cv,
        fresh(fine_tune=trained, seen_mask=MASK, n_splits=1, progress=False, **BOOTSTRAP),
        unchecked={"fine_tune": ("class", "class of numbers"), "directory": ("text", "empty text")},
    ),
    Call(
        "estimate_gamma",
        finecal.estimate_gamma,
        lambda: {
            "seen_mask": MASK,
            "train": (SEEN_LOGITS, SEEN_LABELS),
            "held_out": (SEEN_LOGITS, SEEN_LABELS),
            "unlabelled": LOGITS,
            "seen_share": 0.5,
            "folds": folds(),
            **BOOTSTRAP,
        },
    ),
    of(
        finecal.compare_estimators,
        seen_mask=MASK,
        train=(SEEN_LOGITS, SEEN_LABELS),
        held_out=(SEEN_LOGITS, SEEN_LABELS),
        unlabelled=LOGITS,
        seen_share=0.5,
        folds=folds(),
        labelled=(LOGITS, ALL_LABELS),
        test=(LOGITS, ALL_LABELS),
        **BOOTSTRAP,
    ),
    of(finecal.calibrate_logits, logits=LOGITS, seen_mask=MASK, gamma=1.0, dim=-1),
    of(finecal.predict, logits=LOGITS, seen_mask=MASK, gamma=1.0, dim=-1),
    of(finecal.tradeoff_curve, **ALL, average="micro"),
    of(finecal.evaluate, **ALL, gamma=1.0, average="micro"),
    of(finecal.dense.evaluate_iou, **ALL, gamma=1.0, dim=1, ignore_index=255, background=0),
    of(finecal.dense.iou_curve, **ALL, dim=1, ignore_index=255, background=0),
    of(
        finecal.sequences.entity_scores,
        logits=LOGITS.reshape(N // 3, 3, C),
        labels=ALL_LABELS.reshape(N // 3, 3),
        seen_mask=np.array([True, False, False, True]),
        gamma=1.0,
        class_names=["O", "B-LOC", "I-LOC", "B-PER"],
        ignore_index=-100,
    ),
    of(finecal.probabilities.evaluate_probabilities, **ALL, gamma=1.0, n_bins=5),
    of(
        finecal.diagnose,
        samples=scored(),
        seen_mask=MASK,
        reference=scored(),
        head=HEAD,
        pretrained_head=HEAD,
    ),
    of(finecal.logits.drop_classes, **ALL, classes=[0]),
    of(
        finecal.sequences.greedy_decode,
        logits=LOGITS[None],
        seen_mask=MASK,
        gamma=1.0,
        batch_first=True,
        blank=0,
        input_lengths=np.array([N]),
    ),
    of(
        finecal.sequences.character_scores,
        predicted=[[1, 2], [3]],
        texts=[[1, 2], [1]],
        seen_mask=MASK,
        blank=0,
    ),
    of(finecal.seen_mask_from_labels, labels=SEEN_LABELS, num_classes=C),
    of(finecal.seen_mask_from_indices, indices=[0, 1], num_classes=C),
    of(finecal.seen_mask_from_names, seen_names=["x"], class_names=["x", "y"]),
    of(finecal.calibrators.fit_temperature, logits=LOGITS, labels=ALL_LABELS, bounds=(0.1, 10.0)),
    of(finecal.calibrators.fit_group_temperature, **ALL, bounds=(0.1, 10.0)),
    of(finecal.calibrators.fit_normalized_logits, **SEEN),
    Call(
        "fit_prototypes",
        finecal.calibrators.fit_prototypes,
        fresh(
            samples=scored(),
            seen_mask=MASK,
            gamma=1.0,
            held_out=finecal.Samples(SEEN_LOGITS, SEEN_LABELS, features=FEATURES),
        ),
    ),
    of(finecal.calibrators.fit_class_bias, **ALL, shrinkage=1.0, objective="overall", seed=0),
    of(finecal.calibrators.class_bias_from_shares, **SEEN, class_shares=np.array([0.4, 0.3, 0.2, 0.1]), gamma=1.0),
    of(
        finecal.estimators.task_biases,
        logits=SEEN_LOGITS,
        labels=SEEN_LABELS,
        task_of_class=np.array([1, 1, 1, 0]),
        is_held_out=True,
        exemplars=(LOGITS, ALL_LABELS),
        seed=0,
    ),
    of(
        finecal.html_report,
        **ALL,
        gamma=1.0,
        class_names=list("abcd"),
        average="micro",
        title="A title",
        prototypes=(prototypes(), FEATURES),
    ),
    Call("normalize_head", finecal.weights.normalize_head, lambda: {"linear": net(), "tau": 1.0}),
    Call("fold_into_head", finecal.fold_into_head, lambda: {"model": net(), "calibrator": bias()}),
    Call("unfold_from_head", finecal.unfold_from_head, folded),
    Call(
        "save",
        finecal.save,
        lambda: {"calibrator": bias(), "path": f"{FOLDER.name}/calibrator.safetensors"},
        passed_on=("path",),  # tests/calibrators/test_file.py
    ),
]


class LanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.logits = nn.Embedding(99, 99)

    def forward(self, input_ids):
        return self.logits(input_ids)


def tokenizer(texts):
    return {"input_ids": list(map(ord, texts)) if isinstance(texts, str) else [list(map(ord, text)) for text in texts]}


FUNCTIONS += [
    of(finecal.sequences.label_token_ids, tokenizer=tokenizer, choices=["A", "B"], prompt="1"),
    of(
        finecal.sequences.label_token_samples,
        model=LanguageModel(),
        tokenizer=tokenizer,
        prompts=["1", "22", "33"],
        answers=["A", "B", "B"],
        choices=["A", "B"],
        batch_size=2,
        progress=False,
    ),
    Call(
        "logit_bias",
        finecal.sequences.logit_bias,
        lambda: {"calibrator": bias(), "token_ids": np.arange(C), "offset": 1.0},
    ),
]
CONSTRUCTORS = [
    of(finecal.AdditiveBias, seen_mask=MASK, gamma=1.0, dim=1),
    of(finecal.calibrators.ClassBias, bias=np.zeros(C), dim=1),
    of(finecal.calibrators.GroupTemperature, seen_mask=MASK, seen_temperature=1.0, absent_temperature=1.0, dim=1),
    of(finecal.NormalizedLogits, loc=np.zeros(C), scale=np.ones(C), dim=1),
    of(finecal.calibrators.Prototypes, seen_mask=MASK, gamma=1.0, weight=np.ones((C, 5)), center=np.zeros(5), dim=1),
    of(finecal.Temperature, temperature=1.0),
    Call(
        "CtcFrames",
        lambda **given: finecal.sequences.CtcFrames(**given).update(LOGITS[None]).samples(),
        fresh(batch_first=True, blank=0, best_only=True, min_confidence=0.1),
    ),
    Call(
        "CtcFrames.update",
        lambda **given: finecal.sequences.CtcFrames(batch_first=True).update(**given),
        fresh(logits=LOGITS[None], labels=np.array([[1, 2, 0]])),
    ),
    Call("CalibratedModel", finecal.CalibratedModel, lambda: {"model": net(), "calibrator": bias()}),
    of(finecal.logits.compile_kernels, enabled=False),
    Call("Samples", lambda **given: finecal.estimate_gamma(MASK, held_out=finecal.Samples(**given)), fresh(**FIELDS)),
    Call(
        "PseudoFold",
        lambda **given: finecal.estimators.pseudo_cv_gamma([finecal.estimators.PseudoFold(**given)], MASK),
        fresh(samples=(SEEN_LOGITS, SEEN_LABELS), pseudo_seen_mask=FOLD["pseudo_seen_mask"]),
    ),
    Call(
        "PseudoFold of Samples",
        lambda **given: finecal.estimators.pseudo_cv_gamma([fold(**given)], MASK),
        fresh(**FOLD),
    ),
]
MARGIN_FIELDS = {name: getattr(MARGINS, name) for name in ("margin", "is_seen", "hit", "label")}
CONSTRUCTORS.append(Call("Margins", lambda **fields: finecal.logits.Margins(**fields).curve(), fresh(**MARGIN_FIELDS)))
CALIBRATORS = [
    Call(f"{type(module).__name__}.forward", module.forward, fresh(logits=torch.from_numpy(LOGITS)))
    for module in (
        bias(),
        finecal.calibrators.ClassBias(np.zeros(C)),
        finecal.calibrators.GroupTemperature(MASK, 1.0, 1.0),
        finecal.NormalizedLogits(np.zeros(C), np.ones(C)),
        finecal.Temperature(1.0),
    )
]
CALIBRATORS.append(
    Call(
        "Prototypes.forward",
        finecal.calibrators.Prototypes(MASK, 1.0, np.ones((C, 5)), np.zeros(5)).forward,
        fresh(logits=torch.from_numpy(LOGITS), features=FEATURE_TENSOR),
    )
)
METHODS = [
    Call("Samples.margins", scored().margins, fresh(seen_mask=MASK)),
    Call("Samples.__getitem__", scored().__getitem__, fresh(rows=GROUPS)),
    Call("Samples.to", scored().to, fresh(device="cpu")),
    Call(
        "Samples.save",
        scored().save,
        fresh(path=f"{FOLDER.name}/samples.npz", class_names=list("abcd")),
        passed_on=("path",),  # tests/logits/test_file.py
    ),
    Call("TradeoffCurve.best", CURVE.best, fresh(objective="overall", max_seen_drop=0.5)),
    Call("TradeoffCurve.at", CURVE.at, fresh(gamma=1.0)),
    Call("TradeoffCurve.plot", CURVE.plot, fresh()),
    Call("IoUCurve.best", finecal.dense.iou_curve(**ALL).best, fresh(objective="overall")),
    Call("IoUCurve.at", finecal.dense.iou_curve(**ALL).at, fresh(gamma=1.0)),
    Call("Margins.curve", MARGINS.curve, fresh(average="micro")),
    Call("Margins.plot", MARGINS.plot, fresh()),
    Call(
        "SeenAbsentReport.to_html",
        finecal.evaluate(**ALL).to_html,
        fresh(class_names=list("abcd"), title="A title"),
    ),
]
OF_BATCHES = [kind for kind, make in KINDS.items() if can_be_iterated(make)]
"""What is in them goes to the model as batches."""
OF_NOTHING = [*OF_BATCHES, "empty text", "empty list", "empty array", "empty matrix"]
"""What is not gone through, for a model without batch norms."""
MODELS = [
    Call(
        "restore_head",
        finecal.restore_head,
        lambda: {
            "model": nn.Linear(5, SHARED),
            "pretrained": net(),
            "loader": [(FEATURE_TENSOR, torch.arange(N) % SHARED)],
            "new_to_old": np.arange(SHARED),
            "is_held_out": True,
            "unlabelled_loader": [FEATURE_TENSOR],
            "with_prototypes": True,
            "seen_share": 0.5,
            "seed": 0,
            "verbose": False,
        },
        unchecked={"loader": OF_BATCHES, "unlabelled_loader": OF_BATCHES},
    ),
    Call(
        "run_side_by_side",
        finecal.weights.run_side_by_side,
        lambda: {
            "model": nn.Linear(5, SHARED),
            "pretrained": net(),
            "loader": [(FEATURE_TENSOR, torch.arange(N) % SHARED)],
            "new_to_old": np.arange(SHARED),
            "is_held_out": True,
            "seen_share": 0.5,
            "seed": 0,
            "verbose": False,
        },
        unchecked={"loader": OF_BATCHES},
    ),
    Call(
        "fit_restored_head",
        finecal.weights.fit_restored_head,
        lambda: {
            "samples": finecal.Samples(
                LOGITS[:, :SHARED], np.arange(N) % SHARED, features=FEATURES, pretrained_logits=LOGITS
            ),
            "weight": HEAD[0][:SHARED],
            "bias": HEAD[1][:SHARED],
            "new_to_old": np.arange(SHARED),
            "old_weight": HEAD[0],
            "is_held_out": True,
            "unlabelled": finecal.Samples(LOGITS, features=FEATURES, pretrained_logits=LOGITS),
            "with_prototypes": True,
            "seen_share": 0.5,
            "seed": 0,
        },
    ),
    Call(
        "calibrate_model",
        finecal.calibrate_model,
        lambda: {
            "model": net(),
            "seen_loader": BATCHES,
            "is_held_out": True,
            "seen_mask": MASK,
            "unlabelled_loader": [FEATURE_TENSOR],
            "seen_share": 0.5,
            "verbose": False,
            "with_prototypes": True,
            "n_bootstrap": 2,
        },
        unchecked={"seen_loader": OF_BATCHES, "unlabelled_loader": OF_BATCHES},
    ),
    Call(
        "collect_logits",
        finecal.collect_logits,
        lambda: {"model": net(), "loader": BATCHES, "progress": False, "with_features": False},
        unchecked={"loader": OF_BATCHES},
    ),
    Call(
        "Positions",
        lambda **given: finecal.collect_logits(
            nn.Identity(),
            [(LOGIT_TENSOR, torch.from_numpy(ALL_LABELS))],
            positions=finecal.Positions(**given),
            progress=False,
        ),
        fresh(dim=1, ignore_index=255, per_item=2, class_balanced=True, background=0, shift=0, seed=0),
    ),
    Call(
        "collect_sharded",
        finecal.distributed.collect_sharded,
        lambda: {
            "model": net(),
            "loader": BATCHES,
            "into": finecal.streaming.MarginRows(MASK),
            "progress": False,
        },
        unchecked={"loader": OF_BATCHES},
    ),
    of(finecal.distributed.merge_across_processes, state=finecal.streaming.MarginRows(MASK)),
    Call(
        "interpolate_weights",
        finecal.weights.interpolate_weights,
        lambda: {"pretrained": net(), "finetuned": fine_tuned(), "alpha": 0.5},
        unchecked={"batch_norm_loader": OF_NOTHING},
    ),
    Call(
        "search_interpolation",
        finecal.weights.search_interpolation,
        lambda: {
            "pretrained": net(),
            "finetuned": fine_tuned(),
            "loader": BATCHES,
            "alphas": [0.0, 1.0],
            "max_seen_drop": 0.0,
            "seen_mask": MASK,
            "seen_share": 0.5,
            "progress": False,
        },
        unchecked={"loader": OF_BATCHES, "batch_norm_loader": OF_NOTHING},
    ),
]


def bins():
    return finecal.streaming.MarginBins(MASK, 8).update(LOGITS, ALL_LABELS)


STATES = {
    "AccuracySums": (lambda: finecal.streaming.AccuracySums(MASK), {"seen_mask": MASK, "gamma": 1.0}),
    "BestGamma": (lambda: finecal.streaming.BestGamma(bins()), {"bins": bins(), "objective": "overall"}),
    "ClassSums": (lambda: finecal.streaming.ClassSums(MASK), {"seen_mask": MASK}),
    "GapSums": (lambda: finecal.streaming.GapSums(MASK), {"seen_mask": MASK}),
    "IoUBins": (
        lambda: finecal.streaming.IoUBins(MASK, 8),
        {"seen_mask": MASK, "n_bins": 8, "scale": 16.0, "background": 0},
    ),
    "IoUSums": (lambda: finecal.streaming.IoUSums(MASK), {"seen_mask": MASK, "gamma": 1.0, "background": 0}),
    "MarginBins": (lambda: finecal.streaming.MarginBins(MASK), {"seen_mask": MASK, "n_bins": 8, "scale": 16.0}),
    "MarginRows": (lambda: finecal.streaming.MarginRows(MASK), {"seen_mask": MASK, "keep_labels": True}),
    "ProbabilitySums": (
        lambda: finecal.streaming.ProbabilitySums(MASK),
        {"seen_mask": MASK, "gamma": 1.0, "n_bins": 5, "mass_edges": [0.0, 0.5, 1.0]},
    ),
}


def calls_of_state(name):
    make, arguments = STATES[name]
    yield Call(name, getattr(finecal.streaming, name), fresh(**arguments))
    yield Call(f"{name}.update", make().update, fresh(logits=SEEN_LOGITS, labels=SEEN_LABELS))
    yield Call(f"{name}.merge", make().merge, lambda: {"other": make()})
    yield Call(f"{name}.load_state_dict", make().load_state_dict, lambda: {"state_dict": make().state_dict()})
    yield Call(f"{name}.to", make().to, fresh(device="cpu"))


def prototype_sums():
    return finecal.streaming.PrototypeSums(MASK, 1.0, 5)


OF_PROTOTYPES = [
    of(finecal.streaming.PrototypeSums, seen_mask=MASK, gamma=1.0, num_features=5),
    Call("PrototypeSums.update", prototype_sums().update, fresh(samples=scored())),
    Call("PrototypeSums.merge", prototype_sums().merge, lambda: {"other": prototype_sums()}),
    Call(
        "PrototypeSums.load_state_dict",
        prototype_sums().load_state_dict,
        lambda: {"state_dict": prototype_sums().state_dict()},
    ),
    Call("PrototypeSums.to", prototype_sums().to, fresh(device="cpu")),
    Call(
        "Prototypes.from_sums",
        finecal.calibrators.Prototypes.from_sums,
        lambda: {"sums": prototype_sums().update(scored())},
    ),
]
STREAMING = [call for name in STATES for call in calls_of_state(name)] + [
    *OF_PROTOTYPES,
    Call("AccuracySums.compute", finecal.streaming.AccuracySums(MASK).compute, fresh(average="micro")),
    Call(
        "GapSums.estimate",
        finecal.streaming.GapSums(MASK).update(SEEN_LOGITS, SEEN_LABELS).estimate,
        fresh(method="max_logit_gap"),
    ),
    *(
        Call(f"BinnedCurve.{name}", getattr(bins().compute(), name), fresh(objective="overall"))
        for name in ("best", "shortfall", "windows")
    ),
    *(
        Call(
            f"BinnedIoUCurve.{name}",
            getattr(finecal.streaming.IoUBins(MASK, 8).update(LOGITS, ALL_LABELS).compute(), name),
            fresh(objective="overall"),
        )
        for name in ("best", "shortfall")
    ),
]
PLOTS = [
    of(finecal.plots.plot_accuracy, curve=CURVE, gamma=1.0),
    of(finecal.plots.plot_margins, margins=MARGINS, gamma=1.0),
    of(finecal.plots.plot_tradeoff, curve=CURVE, gammas={"mine": 1.0}),
    of(finecal.plots.plot_reliability, report=finecal.probabilities.evaluate_probabilities(**ALL)),
    of(finecal.plots.plot_gaps, diagnosis=quietly(finecal.diagnose, scored(), MASK, reference=scored())),
    of(
        finecal.plots.plot_estimators,
        comparison=quietly(finecal.compare_estimators, MASK, train=(SEEN_LOGITS, SEEN_LABELS)),
    ),
]

ANIMALS = np.array(["cat", "dog", "elk", "fox"])
CLASSIFIER = LogisticRegression().fit(LOGITS, ANIMALS[ALL_LABELS])
SCORED = {"y_true": ANIMALS[ALL_LABELS], "y_score": LOGITS, "seen_classes": ANIMALS[:3], "labels": ANIMALS}
PREDICTED = {"y_true": ANIMALS[ALL_LABELS], "y_pred": ANIMALS[ALL_LABELS], "seen_classes": ANIMALS[:3]}
WEIGHTED = {"average": "micro", "sample_weight": np.ones(N)}


def fit_classifier(X, y, sample_weight=None, *, X_unlabelled=None, **options):
    return finecal.sklearn.SeenAbsentCalibratedClassifier(CLASSIFIER, **options).fit(
        X, y, sample_weight, X_unlabelled=X_unlabelled
    )


def classifier_with(
    *, gamma="auto", seen_classes="auto", held_out=False, seen_share=None, temperature=None,
    response_method="auto", random_state=0,
):  # fmt: skip
    return fit_classifier(SEEN_LOGITS, ANIMALS[SEEN_LABELS], **locals())


SKLEARN = [
    of(finecal.sklearn.seen_accuracy_score, **PREDICTED, **WEIGHTED),
    of(finecal.sklearn.absent_accuracy_score, **PREDICTED, **WEIGHTED),
    of(finecal.sklearn.harmonic_mean_score, **PREDICTED, **WEIGHTED),
    of(finecal.sklearn.ausuc_score, **SCORED, **WEIGHTED),
    # A callable is called, and an error in it comes as it is.
    Call(
        "SeenAbsentCalibratedClassifier",
        classifier_with,
        fresh(),
        unchecked={"gamma": ("function", "class", "class of numbers")},
    ),
    Call(
        "SeenAbsentCalibratedClassifier.fit",
        fit_classifier,
        fresh(X=SEEN_LOGITS, y=ANIMALS[SEEN_LABELS], sample_weight=np.ones(N)),
        passed_on=("X", "X_unlabelled"),
    ),
]
for display, own in (
    (finecal.sklearn.TradeoffDisplay, {"average": "micro", "gammas": {"mine": 1.0}}),
    (finecal.sklearn.MarginDisplay, {"gamma": 1.0}),
    (finecal.sklearn.GroupReliabilityDisplay, {"gamma": 1.0, "n_bins": 5}),
):
    SKLEARN.append(Call(f"{display.__name__}.from_predictions", display.from_predictions, fresh(**SCORED, **own)))
    by_estimator = {name: value for name, value in own.items() if name in ("average", "n_bins")}
    SKLEARN.append(
        Call(
            f"{display.__name__}.from_estimator",
            display.from_estimator,
            fresh(estimator=CLASSIFIER, X=LOGITS, y=ANIMALS[ALL_LABELS], seen_classes=ANIMALS[:3], **by_estimator),
            passed_on=("X",),
        )
    )


def drawn(display):
    return lambda **arguments: display(**arguments).plot()


SKLEARN += [
    Call("TradeoffDisplay.plot", drawn(finecal.sklearn.TradeoffDisplay), fresh(curve=CURVE, gammas={"mine": 1.0})),
    Call("MarginDisplay.plot", drawn(finecal.sklearn.MarginDisplay), fresh(margins=MARGINS, gamma=1.0)),
    Call(
        "GroupReliabilityDisplay.plot",
        drawn(finecal.sklearn.GroupReliabilityDisplay),
        fresh(report=quietly(finecal.probabilities.evaluate_probabilities, **ALL)),
    ),
]

CALLS = [*FUNCTIONS, *CONSTRUCTORS, *CALIBRATORS, *METHODS, *MODELS, *STREAMING, *PLOTS, *SKLEARN]


MORE = "one entry more, of its shape"
SYNONYMS = {
    "logits": ["features have shape"],
    "class_names": ["class names"],
    "seen_loader": ["loader"],
    "unlabelled_loader": ["loader"],
}
"""What messages call an argument otherwise."""
FLAGS = {"bool", "numpy bool"}
LEGAL = {
    **dict.fromkeys(
        (
            "batch_first",
            "best_only",
            "class_balanced",
            "constrained",
            "enabled",
            "held_out",
            "is_held_out",
            "keep_labels",
            "progress",
            "verbose",
            "with_features",
            "with_prototypes",
        ),
        FLAGS,
    ),
    "gamma": {"negative", "None"},
    "dim": {"negative"},
    "ignore_index": {"negative"},
    "per_item": {"huge int"},
    "batch_size": {"huge int"},
    "prompt": {"text", "empty text"},
    "offset": {"negative"},
    "gammas": {"dict"},
    "title": {"text", "empty text"},
    "tau": {"negative"},
    "shrinkage": {"inf", "huge int"},
    "random_state": {"bool", "None"},
    # Of a class that does not occur among the labels; names may come in any order.
    "seen_classes": {"set", "text array", "series of text", "categorical"},
    "sample_weight": {"long doubles, of its shape"},
    "y_score": {"long doubles, of its shape"},
    **{name: {"float8, of its shape", "meta, of its shape", MORE} for name in ("bias", "loc", "scale")},
    **{name: {MORE} for name in ("labels", "seen", "seen_mask", "unlabelled")},
}
"""Junk that is none for arguments of this name, besides None where that is the default."""
UNCHECKED_VALUES = {f"{kind}, of its shape" for kind in ("NaN in it", "+inf in it", "one dimension more", "empty")}
LEGAL_IN = {
    ("calibrate_logits", "logits"): UNCHECKED_VALUES | {"meta, of its shape", MORE},
    ("predict", "logits"): UNCHECKED_VALUES | {"meta, of its shape", MORE},
    **{(call.name, "logits"): UNCHECKED_VALUES | {MORE} for call in CALIBRATORS},
    # A calibrator may be made on the meta device; its values are checked when they are loaded.
    **{(name, "seen_mask"): {MORE, "meta, of its shape"} for name in ("AdditiveBias", "GroupTemperature")},
    ("Prototypes", "seen_mask"): {"meta, of its shape"},
    ("Prototypes.forward", "features"): {"NaN in it, of its shape", "+inf in it, of its shape"},
    ("drop_classes", "logits"): UNCHECKED_VALUES | {MORE},
    ("drop_classes", "labels"): {"None"},
    **{("character_scores", name): {"ragged list"} for name in ("predicted", "texts")},
    ("CtcFrames.update", "labels"): {"None"},
    ("known_share_gamma", "logits"): {MORE},
    ("PseudoFold of Samples", "pretrained_logits"): {"None"},
    ("PseudoFold of Samples", "groups"): {"None"},
    ("Margins", "margin"): {"+inf in it, of its shape"},
    ("interpolate_weights", "batch"): {"function"},  # a model without batch norms takes no batch
    # Looked up when a model runs.
    **{(name, "output"): {"text", "empty text", "function"} for name in ("CalibratedModel", "fold_into_head")},
    **{("Samples", name): {"None"} for name in FIELDS if name not in ("logits", "labels")},
    ("Samples.__getitem__", "rows"): {"empty list", "empty array", "empty, of its shape", MORE},
    **{("Positions", name): {"None"} for name in ("ignore_index", "background", "shift")},
    ("Margins", "label"): {"None"},
    ("entity_scores", "ignore_index"): {"None"},
    ("TradeoffDisplay.plot", "gammas"): {"None"},
}


RECORDS = {
    "BinnedCurve",
    "CharacterScores",
    "ClassBiasReport",
    "ClassMoments",
    "ComparedEstimate",
    "Diagnosis",
    "EntityReport",
    "EstimatorComparison",
    "FinecalWarning",
    "GammaEstimate",
    "GapEstimates",
    "InterpolationSearch",
    "InterpolationStep",
    "IoUReport",
    "KeptClasses",
    "ProbabilityReport",
    "ProbabilityScores",
    "PrototypeParts",
    "PrototypesReport",
    "ReliabilityBins",
    "RestoredHead",
    "SeenAbsentReport",
    "SideBySide",
    "TemperatureFit",
    "TradeoffCurve",
}
"""What functions return: nobody makes one by hand, and their fields are not checked."""
FILES = {"load"}  # tests/calibrators/test_file.py
PACKAGES = (finecal.distributed, finecal.plots, finecal.sklearn, finecal.streaming)


def test_every_public_callable_has_a_call():
    public = PUBLIC.keys() | {name for package in PACKAGES for name in package.__all__}
    assert public - {call.name.split(".")[0] for call in CALLS} <= RECORDS | FILES


def is_legal(call, name, kind):
    if kind == "None" and call.may_be_none(name):
        return True
    return kind in LEGAL.get(name, ()) or kind in LEGAL_IN.get((call.name, name), ())


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("call", CALLS, ids=[call.name for call in CALLS])
def test_junk_is_refused_by_the_name_of_the_argument(call):
    quietly(call.run)
    wrong = []
    junk = list(call.junk())
    # Every third kind, but another third for the next argument; the profile `thorough` takes all.
    for name, kind, make in junk if settings.default.max_examples >= EVERY_EXAMPLE else junk[len(call.name) % 3 :: 3]:
        found = outcome(call, name, make, SYNONYMS.get(name, ()))
        if found != "clear" and not (found == "legal" and is_legal(call, name, kind)):
            wrong.append(f"{name} = {kind}: {found}")
    assert not wrong, "\n".join(wrong)
