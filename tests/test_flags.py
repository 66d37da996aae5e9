"""A text in place of a flag, such as a configuration in YAML may hold, is not taken for True."""

import importlib

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

import finecal
import finecal.distributed
import finecal.sklearn
import public_names
from flags import PHRASE, flags_of

SPACES = (*public_names.SPACES, "streaming", "distributed", "plots", "sklearn")
MASK = torch.tensor([True, True, True, False])
INPUTS, LABELS = torch.eye(4)[:3].repeat(8, 1), torch.arange(24) % 3
SEEN = finecal.Samples(INPUTS, LABELS)
FOLD = finecal.estimators.PseudoFold(SEEN, [True, True, False, False])


def on_batches(function, **settings):
    return lambda **flag: function(nn.Linear(4, 4), [(INPUTS, LABELS)], **settings, **flag)


def refitted(**flag):
    return finecal.estimators.pseudo_cv(lambda mask: SEEN, MASK, **flag)


def classifier(**flag):
    fitted = LogisticRegression().fit(INPUTS, LABELS)
    return finecal.sklearn.SeenAbsentCalibratedClassifier(fitted, seen_classes=[0, 1], **flag).fit(INPUTS, LABELS)


def at_two_weights(**flag):
    models, loader = (nn.Linear(4, 4), nn.Linear(4, 4)), [(INPUTS, LABELS)]
    return finecal.weights.search_interpolation(*models, loader, alphas=[0.0, 1.0], max_seen_drop=0.5, **flag)


def restored(**flag):
    models = nn.Linear(4, 3), nn.Linear(4, 4)
    return finecal.restore_head(*models, [(INPUTS, LABELS)], new_to_old=[0, 1, 2], **{"verbose": False, **flag})


def beside(**flag):
    models = nn.Linear(4, 3), nn.Linear(4, 4)
    return finecal.weights.run_side_by_side(
        *models, [(INPUTS, LABELS)], new_to_old=[0, 1, 2], **{"verbose": False, **flag}
    )


def restored_from_samples(**flag):
    samples = finecal.Samples(INPUTS[:, :3], LABELS, features=INPUTS, pretrained_logits=INPUTS)
    return finecal.weights.fit_restored_head(samples, torch.ones(3, 4), None, new_to_old=[0, 1, 2], **flag)


def prompted(**flag):
    model, prompts = nn.Linear(4, 4), ["1", "2"]
    return finecal.sequences.label_token_samples(
        model, lambda texts: {"input_ids": [ord(letter) for letter in texts]}, prompts, choices=["A"], **flag
    )


CALLS = {
    "CtcFrames(batch_first)": finecal.sequences.CtcFrames,
    "CtcFrames(best_only)": lambda **flag: finecal.sequences.CtcFrames(batch_first=True, **flag),
    "greedy_decode(batch_first)": lambda **flag: finecal.sequences.greedy_decode(INPUTS[None], MASK, **flag),
    "Positions(class_balanced)": lambda **flag: finecal.Positions(per_item=2, **flag),
    "calibrate_model(is_held_out)": on_batches(finecal.calibrate_model, seen_mask=MASK),
    "calibrate_model(verbose)": on_batches(finecal.calibrate_model, seen_mask=MASK, is_held_out=False),
    "calibrate_model(with_prototypes)": on_batches(finecal.calibrate_model, seen_mask=MASK, is_held_out=False),
    "collect_logits(progress)": on_batches(finecal.collect_logits),
    "collect_logits(with_features)": on_batches(finecal.collect_logits),
    "collect_sharded(progress)": on_batches(
        finecal.distributed.collect_sharded, into=finecal.streaming.MarginRows(MASK)
    ),
    "compile_kernels(enabled)": finecal.logits.compile_kernels,
    "pseudo_cv(constrained)": refitted,
    "pseudo_cv(progress)": refitted,
    "pseudo_cv_gamma(constrained)": lambda **flag: finecal.estimators.pseudo_cv_gamma([FOLD], MASK, **flag),
    "label_token_samples(progress)": prompted,
    "run_side_by_side(is_held_out)": beside,
    "run_side_by_side(verbose)": beside,
    "restore_head(is_held_out)": restored,
    "restore_head(verbose)": restored,
    "restore_head(with_prototypes)": restored,
    "fit_restored_head(is_held_out)": restored_from_samples,
    "fit_restored_head(with_prototypes)": restored_from_samples,
    "task_biases(is_held_out)": lambda **flag: finecal.estimators.task_biases(SEEN, [0, 0, 0, 1], **flag),
    "search_interpolation(progress)": at_two_weights,
    "MarginRows(keep_labels)": lambda **flag: finecal.streaming.MarginRows(MASK, **flag),
    "EntityReport.scores(at_zero)": finecal.sequences.EntityReport(1.0, *[("PER",)] * 2, *[(1,)] * 5).scores,
    "SeenAbsentCalibratedClassifier(held_out)": classifier,
    "SeenAbsentCalibratedClassifier(prototypes)": classifier,
}


def test_all_flags_are_tested():
    assert flags_of(finecal, *(importlib.import_module(f"finecal.{space}") for space in SPACES)) == CALLS.keys()


@pytest.mark.parametrize("name", CALLS)
def test_a_text_is_no_flag(name):
    flag = name.partition("(")[2].removesuffix(")")
    with pytest.raises(TypeError, match=f"^{flag} {PHRASE}"):
        CALLS[name](**{flag: "no"})
