"""
Put gamma into the model
========================

Put gamma into the model: wrap it, save it, load it, export it. Continues digits.py; needs scikit-learn.

Needs no network and a few seconds: python examples/wrap_model.py
"""

import tempfile
from pathlib import Path

import torch
from digits import SEEN_MASK, Split, load, make_model, score, train
from torch import nn

import finecal


def accuracies(model: nn.Module, split: Split) -> str:
    report = finecal.evaluate(*score(model, split), SEEN_MASK)
    return (
        f"seen {100 * report.acc_seen:.1f} %, absent {100 * report.acc_absent:.1f} %, all {100 * report.acc_all:.1f} %"
    )


def main() -> None:
    source, fine_tuning, _, test = load(seed=0)
    model = make_model()
    train(model, source, epochs=40, learning_rate=0.05)
    train(model, fine_tuning, epochs=20, learning_rate=0.01)
    print(f"fine-tuned:     {accuracies(model, test)}")

    estimate = finecal.estimate_gamma(SEEN_MASK, train=score(model, fine_tuning))
    calibrated = nn.Sequential(model, finecal.AdditiveBias(SEEN_MASK, estimate)).eval()
    print(f"wrapped:        {accuracies(calibrated, test)}")
    print(f"                {calibrated[1]}")

    with tempfile.TemporaryDirectory() as folder:
        # Gamma and the seen classes are buffers: they are in the state_dict, with the weights.
        weights = Path(folder) / "model.pt"
        torch.save(calibrated.state_dict(), weights)
        restored = nn.Sequential(make_model(), finecal.AdditiveBias(SEEN_MASK, gamma=0.0))
        restored.load_state_dict(torch.load(weights, weights_only=True))
        print(f"saved, loaded:  {accuracies(restored, test)}")

        # The exported program has gamma inside, and runs where finecal is not installed.
        program = Path(folder) / "model.pt2"
        batch = {0: torch.export.Dim("batch")}
        torch.export.save(torch.export.export(calibrated, (test[0][:2],), dynamic_shapes=(batch,)), program)
        exported = torch.export.load(program).module()
    report = finecal.evaluate(exported(test[0]).detach(), test[1], SEEN_MASK)
    print(f"exported:       all {100 * report.acc_all:.1f} %")


if __name__ == "__main__":
    main()
