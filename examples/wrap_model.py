"""
Put gamma into the model
========================

Put gamma into the model: wrap it, save it, load it, export it.

Continues :doc:`digits`. Needs scikit-learn and matplotlib, no network and a few seconds:
``python examples/wrap_model.py``
"""

import tempfile
from pathlib import Path

import torch
from digits_data import SEEN_MASK, Split, load, make_model, score, train
from matplotlib import pyplot as plt
from torch import nn

import finecal
from finecal import plots

# %%
# A fine-tuned model
# ------------------
# It was fine-tuned on even digits; hardly any odd one is recognised.

torch.set_num_threads(1)
source, fine_tuning, _, test = load(seed=0)
model = make_model()
train(model, source, epochs=40, learning_rate=0.05)
train(model, fine_tuning, epochs=20, learning_rate=0.01)


def accuracies(model: nn.Module, split: Split) -> str:
    report = finecal.evaluate(score(model, split), SEEN_MASK)
    shares = {
        "seen": report.acc_seen,
        "absent": report.acc_absent,
        "all": report.acc_all,
    }
    return ", ".join(
        f"{name} {100 * share:.1f} %" for name, share in shares.items()
    )


print(f"fine-tuned:     {accuracies(model, test)}")

# %%
# Wrap it
# -------
# `finecal.AdditiveBias` is a module that adds gamma to the logits of the absent classes. Behind the model, it makes a
# model that is called as before.

estimate = finecal.estimate_gamma(SEEN_MASK, train=score(model, fine_tuning))
calibrated = nn.Sequential(
    model, finecal.AdditiveBias(SEEN_MASK, estimate)
).eval()
print(f"wrapped:        {accuracies(calibrated, test)}")
print(f"                {calibrated[1]}")

# %%
# A sample is predicted absent if its margin, the largest seen logit minus the largest absent one, is below 0. Of the
# bare model nearly every margin is above. Gamma moves all of them, and what was at gamma is at 0 then.

figure, (left, right) = plt.subplots(
    1, 2, figsize=(9, 4), layout="constrained", sharey=True
)
plots.plot_margins(score(model, test).margins(SEEN_MASK), left, gamma=estimate)
plots.plot_margins(score(calibrated, test).margins(SEEN_MASK), right)
left.set_title("fine-tuned")
right.set_title("wrapped")
plt.show()

# %%
# Save and load
# -------------
# Gamma and the seen classes are buffers: they are in the ``state_dict``, with the weights. The gamma that the new
# module is made with does not matter, as the one that was saved replaces it.

with tempfile.TemporaryDirectory() as folder:
    weights = Path(folder) / "model.pt"
    torch.save(calibrated.state_dict(), weights)
    restored = nn.Sequential(
        make_model(), finecal.AdditiveBias(SEEN_MASK, gamma=0.0)
    )
    restored.load_state_dict(torch.load(weights, weights_only=True))
print(f"saved, loaded:  {accuracies(restored, test)}")

# %%
# Export
# ------
# The exported program has gamma inside, and runs where finecal is not installed.

with tempfile.TemporaryDirectory() as folder:
    program = Path(folder) / "model.pt2"
    batch = {0: torch.export.Dim("batch")}
    torch.export.save(
        torch.export.export(
            calibrated, (test[0][:2],), dynamic_shapes=(batch,)
        ),
        program,
    )
    exported = torch.export.load(program).module()
report = finecal.evaluate(exported(test[0]).detach(), test[1], SEEN_MASK)
print(f"exported:       all {100 * report.acc_all:.1f} %")
