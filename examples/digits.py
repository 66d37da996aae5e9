"""
Calibrate a training script
===========================

Calibrate a training script: handwritten digits, fine-tuned on faint and noisy copies of the even ones only.

Needs scikit-learn, no network and a few seconds: python examples/digits.py [SEED]
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import finecal

SEEN_MASK = finecal.seen_mask_from_indices(torch.tensor([0, 2, 4, 6, 8]), num_classes=10)
Split = tuple[Tensor, Tensor]  # images, labels


def load(seed: int) -> tuple[Split, Split, Split, Split]:
    """Return plain digits for pre-training, and faint ones for fine-tuning (even digits), held out (even), test."""
    torch.manual_seed(seed)
    digits = load_digits()
    plain, labels = torch.from_numpy(digits.images).float().unsqueeze(1) / 16, torch.from_numpy(digits.target)
    faint = 0.6 + 0.4 * plain + 0.1 * torch.randn_like(plain)
    source, target, test = torch.randperm(len(labels)).split([400, 897, 500])
    fine_tuning, held_out = target[SEEN_MASK[labels[target]]].tensor_split([350])
    return (plain[source], labels[source]), *((faint[i], labels[i]) for i in (fine_tuning, held_out, test))


def make_model() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 10)),
    )


def train(model: nn.Module, split: Split, epochs: int, learning_rate: float) -> None:
    images, labels = split
    optimiser = torch.optim.SGD(model.parameters(), learning_rate, momentum=0.9)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(32):
            optimiser.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimiser.step()


@torch.no_grad()
def score(model: nn.Module, split: Split) -> Split:
    """Return logits and labels."""
    return model.eval()(split[0]), split[1]


def show(name: str, report: finecal.SeenAbsentReport) -> None:
    seen, absent, overall = (100 * value for value in (report.acc_seen, report.acc_absent, report.acc_all))
    print(f"{name:<40} {report.gamma:6.2f} {seen:7.1f} {absent:7.1f} {overall:7.1f}")


if __name__ == "__main__":
    source, fine_tuning, held_out, test = load(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    model = make_model()
    train(model, source, epochs=40, learning_rate=0.05)
    print(f"{'test accuracy, %':<40} {'gamma':>6} {'seen':>7} {'absent':>7} {'all':>7}")
    show("pre-trained on all ten digits", finecal.evaluate(*score(model, test), SEEN_MASK))
    train(model, fine_tuning, epochs=20, learning_rate=0.01)
    show("fine-tuned on the even digits", finecal.evaluate(*score(model, test), SEEN_MASK))

    # From here on it is finecal: no sample of an odd digit is needed.
    estimate = finecal.estimate_gamma(SEEN_MASK, train=score(model, fine_tuning))
    logits, labels = score(model, test)
    calibrated = finecal.calibrate_logits(logits, SEEN_MASK, estimate)
    show("calibrated, by estimate_gamma", finecal.evaluate(logits, labels, SEEN_MASK, estimate))
    # For comparison: another estimator, on held-out even digits, and the best gamma that the test labels could find.
    gap = finecal.max_logit_gap(*score(model, held_out), SEEN_MASK)
    show("calibrated, by max_logit_gap (held out)", finecal.evaluate(logits, labels, SEEN_MASK, gap))
    oracle = finecal.search_gamma(logits, labels, SEEN_MASK)
    show("oracle: the best on the test labels", finecal.evaluate(logits, labels, SEEN_MASK, oracle))

    changed = (calibrated.argmax(1) != logits.argmax(1)).sum()
    print(f"\n{estimate}\nIt changes the prediction for {changed} of {len(labels)} test images.")
