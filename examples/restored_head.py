"""
A head that was made anew
=========================

Fine-tuning has made the head anew, for the fine-tuned classes alone. The others come back, without a sample of them.

The data are those of ``finecal demo``: names of countries, currencies and scripts. A network learns all of them in
English and the Romance languages. Then it is fine-tuned on other languages, on names of half of the classes, with a
new head for these.

Needs pycountry and tqdm (the extra ``demo``), no network and about 30 seconds: ``python examples/restored_head.py``
"""

import copy
import warnings

import torch
from torch import Tensor, nn

import finecal
from finecal._demo.names import load_names
from finecal._demo.run import fine_tune, pretrain

# %%
# Fine-tune with a new head
# -------------------------
# The new head has a row for each seen class, in their order, and the labels are numbered by it.

task = load_names(seed=0)
generator = torch.Generator().manual_seed(0)
pretrained = pretrain(task, 0, generator)

seen = task.seen_mask.nonzero().squeeze(1)
new_of_old = torch.full((len(task.seen_mask),), -1)
new_of_old[seen] = torch.arange(len(seen))

start = copy.deepcopy(pretrained)
torch.manual_seed(0)
start.head = nn.Linear(start.head.in_features, len(seen))
split = type(task.train)(task.train.names, new_of_old[task.train.labels])
tuned = fine_tune(start, split, generator)
print(f"head of the fine-tuned model: {len(seen)} of {len(new_of_old)} classes")


# %%
# Restore it
# ----------
# `finecal.restore_head` runs both models over samples of the seen classes, here those of the training. Where unlabelled
# names of all classes are at hand, as here half of the test names, the other rows get better. Gamma is in the new
# head: the argmax is right as it is.


def batches(names: tuple[str, ...], labels: Tensor | None = None) -> list:
    codes = pretrained.encode(names)
    return [codes] if labels is None else [(codes, labels)]


met, later = range(0, len(task.test), 2), range(1, len(task.test), 2)
unlabelled = batches(tuple(task.test.names[row] for row in met))
codes = pretrained.encode([task.test.names[row] for row in later])
labels = task.test.labels[list(later)]


def restored(**more: object) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", finecal.FinecalWarning)
        return finecal.restore_head(
            copy.deepcopy(tuned),
            pretrained,
            batches(split.names, split.labels),
            new_to_old=seen,
            verbose=False,
            **more,
        )


models = {
    "pre-trained": pretrained,
    "restored from seen samples alone": restored(),
    "with unlabelled samples": restored(unlabelled_loader=unlabelled),
    "with prototypes of them": restored(
        unlabelled_loader=unlabelled, with_prototypes=True
    ),
}

# %%
# What it brings
# --------------
# Accuracies on the test names that were not among the unlabelled ones, every class allowed. The fine-tuned model itself
# cannot name an absent class at all.

print(f"{'test accuracy, %':<34}   all  seen absent")
for name, model in models.items():
    with torch.no_grad():
        report = finecal.evaluate(model(codes), labels, task.seen_mask)
    shown = report.acc_all, report.acc_seen, report.acc_absent
    print(f"{name:<34}", *(f"{100 * accuracy:5.1f}" for accuracy in shown))

# %%
# The model is of its own class, with a wider last layer: it is saved, loaded and exported as before, and needs no
# finecal.

print(models["with prototypes of them"].head)
