"""The paper's protocol: pre-train on all classes of a source, fine-tune on some of a target, score all of them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import finecal
from models import Classifier, CosineClassifier, trainable_copy

NUM_FOLDS = 3
BATCH_SIZE = 64
MAX_TEST, MAX_HELD_OUT = 1500, 400
LONG_TAIL = 30
"""Samples of the most frequent class for one of the rarest."""


class Samples(NamedTuple):
    """Inputs ``(N, ...)`` and labels ``(N,)``."""

    inputs: Tensor
    labels: Tensor

    def __getitem__(self, index: Tensor) -> "Samples":
        return Samples(self.inputs[index], self.labels[index])


@dataclass(frozen=True)
class Domains:
    """Samples of the same classes in two domains, and the encoder that suits them."""

    source: Samples
    target: Samples
    num_classes: int
    encoder: Callable[[], nn.Module]


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune."""

    optimiser: str = "sgd"
    learning_rate: float = 0.02
    epochs: int = 20
    trained: str = "all"
    label_smoothing: float = 0.0
    masked_loss: bool = False
    """Whether the loss compares the seen classes alone, as class-incremental code often does."""
    new_head: float | None = None
    """Times `learning_rate`: the rate of a new head, of the fine-tuned classes alone. None keeps the head."""

    def steps(self, model: Classifier) -> torch.optim.Optimizer:
        """Return the optimiser of the weights that require a gradient."""
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        if self.new_head is not None:
            head = list(model.head.parameters())
            body = [weight for weight in weights if all(weight is not own for own in head)]
            weights = [{"params": body}, {"params": head, "lr": self.new_head * self.learning_rate}]
            weights = [group for group in weights if group["params"]]
        if self.optimiser == "sgd":
            return torch.optim.SGD(weights, lr=self.learning_rate, momentum=0.9, weight_decay=1e-4)
        optimiser = {
            "adam": torch.optim.Adam,
            "adamw": torch.optim.AdamW,
            "rmsprop": torch.optim.RMSprop,
        }
        return optimiser[self.optimiser](weights, lr=self.learning_rate)


@dataclass(frozen=True)
class Setting:
    """Which classes are seen, and what of their samples is for fine-tuning.

    A control is fine-tuned on all classes, and `seen_fraction` of them are called seen nevertheless.
    """

    seen_fraction: float = 0.5
    train_per_class: int | None = None
    long_tail: bool = False
    control: bool = False


# --- data -------------------------------------------------------------------------------------------------------------


class Splits(NamedTuple):
    """Samples of the target domain; those for fine-tuning are of all classes in a control, else of the seen ones."""

    seen_mask: Tensor
    train: Samples
    held_out: Samples
    test: Samples


def split_target(domains: Domains, setting: Setting, seed: int) -> Splits:
    """Put three tenths of each class aside for testing; of the others hold out a sixth, and train on the rest."""
    rng = np.random.default_rng(seed)
    seen = np.zeros(domains.num_classes, bool)
    num_seen = max(2, round(setting.seen_fraction * domains.num_classes))
    order = rng.permutation(domains.num_classes)
    seen[order[:num_seen]] = True
    labels = domains.target.labels.numpy()
    train, held_out, test = [], [], []
    for rank, label in enumerate(order):
        index = rng.permutation(np.flatnonzero(labels == label))
        n_test = round(0.3 * len(index))
        n_held_out = max(1, round((len(index) - n_test) / 6))
        test.append(index[:n_test])
        if seen[label] or setting.control:
            rest = index[n_test + n_held_out :][: setting.train_per_class]
            kept = max(1, round(len(rest) * LONG_TAIL ** (-rank / num_seen))) if setting.long_tail else len(rest)
            train.append(rest[:kept])
            held_out.append(index[n_test : n_test + n_held_out])

    def chosen(parts: list[np.ndarray], most: int | None = None) -> Samples:
        index = rng.permutation(np.concatenate(parts))[:most]
        return domains.target[torch.from_numpy(index)]

    return Splits(torch.from_numpy(seen), chosen(train), chosen(held_out), chosen(test, MAX_TEST))


def of_classes(samples: Samples, mask: Tensor) -> Samples:
    """Return the samples whose classes are True in `mask`."""
    return samples[mask[samples.labels]]


def stratified_part(samples: Samples, share: float, seed: int) -> Tensor:
    """Return a mask that is True for about `share` of each class's samples, one of two at the least."""
    order = torch.randperm(len(samples.labels), generator=torch.Generator().manual_seed(seed))
    chosen = torch.zeros(len(samples.labels), dtype=torch.bool)
    for label in samples.labels.unique():
        index = order[samples.labels[order] == label]
        chosen[index[: max(len(index) > 1, round(share * len(index)))]] = True
    return chosen


# --- training and scoring ---------------------------------------------------------------------------------------------


def pretrain(domains: Domains, head: str, epochs: int, seed: int) -> Classifier:
    """Return a model with a "linear" or "cosine" head, trained on all of the source."""
    torch.manual_seed(seed)
    model = (CosineClassifier if head == "cosine" else Classifier)(domains.encoder(), domains.num_classes)
    return _fit(model, domains.source, Recipe("adamw", 0.002, epochs), seed)


def fine_tune(pretrained: Classifier, samples: Samples, recipe: Recipe, seed: int) -> Classifier:
    """Return a copy of `pretrained`, trained by the recipe with cross-entropy over all classes, or those of a new head.

    The rows of a new head are the classes of the samples in ascending order.
    """
    torch.manual_seed(seed)
    model = trainable_copy(pretrained, recipe.trained)
    if recipe.new_head is not None:
        classes = samples.labels.unique()
        model.head = nn.Linear(model.head.in_features, len(classes))
        samples = Samples(samples.inputs, torch.searchsorted(classes, samples.labels))
    return _fit(model, samples, recipe, seed)


def _fit(model: Classifier, samples: Samples, recipe: Recipe, seed: int) -> Classifier:
    generator = torch.Generator().manual_seed(seed)
    # A frozen backbone keeps its running statistics, too.
    model.train(recipe.trained == "all")
    batches = [
        batch
        for _ in range(recipe.epochs)
        for batch in torch.split(torch.randperm(len(samples.labels), generator=generator), BATCH_SIZE)
        if len(batch) > 1
    ]
    optimiser = recipe.steps(model)
    absent = torch.ones(model.head.out_features, dtype=torch.bool)
    absent[samples.labels.unique()] = False
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, len(batches))
    for batch in batches:
        optimiser.zero_grad()
        inputs, labels = samples[batch]
        logits = model(inputs)
        if recipe.masked_loss:
            logits = logits.masked_fill(absent, -math.inf)
        F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing).backward()
        optimiser.step()
        schedule.step()
    return model.eval()


class Scores(NamedTuple):
    """Logits ``(N, C)`` and the features ``(N, D)`` that they were made from."""

    logits: np.ndarray
    features: np.ndarray


@torch.no_grad()
def score(model: Classifier, samples: Samples) -> Scores:
    """Score the samples."""
    weight, bias = model.linear_head()
    features = torch.cat([model.features(part) for part in torch.split(samples.inputs, 256)])
    return Scores((features @ weight.T + bias).numpy(), features.numpy())


# --- a task file ------------------------------------------------------------------------------------------------------


def task_arrays(
    domains: Domains,
    pretrained: Classifier,
    setting: Setting,
    recipe: Recipe,
    seed: int,
) -> dict[str, np.ndarray]:
    """Fine-tune, refit on pseudo cross-validation's halves, and return all that the task file holds.

    For a new head fine-tune once more with the old one, in place of pseudo cross-validation.
    """
    splits = split_target(domains, setting, seed)
    model = fine_tune(pretrained, splits.train, recipe, seed)
    keep = replace(recipe, new_head=None)
    kept = None if keep == recipe else fine_tune(pretrained, splits.train, keep, seed)
    arrays = {"seen_mask": splits.seen_mask.numpy()}
    for name, samples in splits._asdict().items():
        if name == "seen_mask":
            continue
        samples = samples if name == "test" else of_classes(samples, splits.seen_mask)
        if name == "held_out":
            name, samples = (
                "val",
                samples[torch.arange(len(samples.labels))[:MAX_HELD_OUT]],
            )
        scores, before = score(model, samples), score(pretrained, samples)
        arrays |= {
            f"{name}_labels": samples.labels.numpy(),
            f"{name}_logits": scores.logits,
            f"{name}_features": scores.features.astype(np.float16),
            f"pretrained_{name}_logits": before.logits.astype(np.float16),
        }
        if kept is not None:
            arrays[f"kept_{name}_logits"] = score(kept, samples).logits
        if name != "train":
            arrays[f"pretrained_{name}_features"] = before.features.astype(np.float16)
    for prefix, classifier in (("", model), ("pretrained_", pretrained)):
        weight, bias = classifier.linear_head()
        arrays |= {f"{prefix}weight": weight.numpy(), f"{prefix}bias": bias.numpy()}
    return arrays if setting.control or kept is not None else arrays | _fold_arrays(pretrained, splits, recipe, seed)


def _fold_arrays(pretrained: Classifier, splits: Splits, recipe: Recipe, seed: int) -> dict[str, np.ndarray]:
    """Refit on half of the seen classes each time, and score samples of all seen classes that were kept aside."""
    arrays = {}
    num_train = len(splits.train.labels)
    for fold, pseudo_seen in enumerate(finecal.estimators.pseudo_cv_splits(splits.seen_mask, NUM_FOLDS, seed)):
        aside = stratified_part(splits.train, min(0.25, MAX_HELD_OUT / num_train), seed + fold)
        model = fine_tune(
            pretrained,
            of_classes(splits.train[~aside], pseudo_seen),
            recipe,
            seed + fold,
        )
        scored = splits.train[aside]
        arrays |= {
            f"pcv{fold}_pseudo_seen_mask": pseudo_seen.numpy(),
            f"pcv{fold}_labels": scored.labels.numpy(),
            f"pcv{fold}_logits": score(model, scored).logits,
            f"pcv{fold}_pretrained_logits": score(pretrained, scored).logits.astype(np.float16),
        }
    return arrays
