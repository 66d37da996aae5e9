"""Write the files that `tests/test_written_files.py` reads; see the README."""

import json
import warnings
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

import finecal
from finecal._cli.arguments import main

HERE = Path(__file__).parent
NAMES = "abcdef"
MASK = np.array([True, True, True, False, False, False])


def drawn(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """Return logits of a fine-tuned model: high for the label, and higher for seen classes than for absent ones."""
    return (rng.normal(size=(len(labels), 6)) + 3 * np.eye(6)[labels] + 3 * MASK).astype(np.float32)


def write_calibrators(rng: np.random.Generator) -> None:
    (HERE / "calibrators").mkdir(exist_ok=True)
    labels = np.arange(240) % 6
    logits = drawn(rng, labels)
    seen = logits[MASK[labels]], labels[MASK[labels]]
    estimate = finecal.estimators.max_logit_gap(*seen, MASK, n_bootstrap=100)
    # Small integers: their products and sums are exact in whatever order a machine forms them.
    weight, center, features = (
        torch.tensor(rng.integers(-4, 5, size=size), dtype=torch.float32) for size in ((6, 4), 4, (5, 4))
    )
    calibrators = {
        "additive_bias": finecal.AdditiveBias(MASK, estimate),
        "additive_bias_number": finecal.AdditiveBias(MASK, 1.25),
        "additive_bias_dim": finecal.AdditiveBias(MASK, 1.25, dim=1),
        "temperature": finecal.calibrators.fit_temperature(logits, labels),
        "temperature_number": finecal.Temperature(2.0),
        "group_temperature": finecal.calibrators.fit_group_temperature(logits, labels, MASK),
        "class_bias": finecal.calibrators.fit_class_bias(logits, labels, MASK),
        "class_bias_number": finecal.calibrators.ClassBias(torch.linspace(-1, 1, 6)),
        "normalized_logits": finecal.calibrators.fit_normalized_logits(*seen, MASK),
        "prototypes": finecal.calibrators.Prototypes(MASK, 1.25, weight, center),
        "sequence": nn.Sequential(finecal.AdditiveBias(MASK, 2.5), finecal.Temperature(1.5)),
    }
    shown = torch.from_numpy(drawn(rng, np.arange(5)))
    expected = {"seen_mask": MASK, "logits": shown.numpy(), "features": features.numpy()}
    for name, calibrator in calibrators.items():
        names = NAMES if name == "additive_bias" else None
        finecal.save(calibrator, HERE / "calibrators" / f"{name}.safetensors", class_names=names and list(names))
        inputs = (shown, features) if name == "prototypes" else (shown,)
        expected[name] = calibrator(*inputs).numpy()
    np.savez(HERE / "expected.npz", **expected)
    write_json("repr.json", {name: repr(calibrator) for name, calibrator in calibrators.items()})


def write_gamma(rng: np.random.Generator) -> None:
    labels = np.arange(60) % 3
    logits, gamma = HERE / "logits.npz", HERE / "gamma.json"
    np.savez(logits, logits=drawn(rng, labels), labels=labels, class_names=np.array(list(NAMES)))
    options = ["--held-out", logits, "--method", "residual_gap", "--seen-share", "0.5", "--bootstrap", "100"]
    for words in (
        ["estimate", *options, "--seen", "labels", "-o", gamma],
        ["apply", logits, "--gamma", gamma, "-o", HERE / "calibrated.npz"],
        ["evaluate", logits, "--gamma", gamma, "--json"],
    ):
        with redirect_stdout(StringIO()) as printed:
            assert main(list(map(str, words))) == 0
    (HERE / "evaluation.json").write_text(printed.getvalue(), encoding="utf-8")


def write_folds(rng: np.random.Generator) -> None:
    def fine_tune(pseudo_seen_mask: np.ndarray) -> finecal.estimators.PseudoFold:
        labels = np.arange(120) % 3
        pretrained = (rng.normal(size=(120, 6)) + 3 * np.eye(6)[labels]).astype(np.float32)
        logits = pretrained + 2 * pseudo_seen_mask.astype(np.float32)
        samples = finecal.Samples(logits, labels, pretrained_logits=pretrained)
        return finecal.estimators.PseudoFold(samples, pseudo_seen_mask)

    estimate = finecal.estimators.pseudo_cv(fine_tune, MASK, n_splits=2, directory=HERE / "folds", progress=False)
    write_json("folds.json", {"gamma": estimate.gamma})


def write_folded_head() -> None:
    model = nn.Sequential()
    model.body, model.classifier = nn.Linear(4, 4), nn.Linear(4, 6)
    np.save(HERE / "bias_before_folding.npy", model.classifier.bias.detach().numpy())
    parts = (finecal.load(HERE / "calibrators" / f"{name}.safetensors") for name in ("additive_bias", "class_bias"))
    finecal.fold_into_head(model, nn.Sequential(*parts))
    save_file(model.state_dict(), HERE / "folded_head.safetensors")
    write_json("folded_head.json", {"finecal_folded": model.classifier.finecal_folded})


def write_json(name: str, content: object) -> None:
    (HERE / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    warnings.simplefilter("ignore", finecal.FinecalWarning)
    torch.manual_seed(0)
    for write in (write_calibrators, write_gamma, write_folds):
        write(np.random.default_rng(0))
    write_folded_head()
