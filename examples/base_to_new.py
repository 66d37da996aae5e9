"""
Base-to-new generalization
==========================

Prompts learned for some classes, tested on all: what the usual table of base, new and H does not show.

CoOp, CoCoOp, PromptSRC and their like freeze a model of two towers, one for samples and one for texts, and learn the
words around the names of the *base* classes. Here the two towers are small. A sample is a name of a country, currency
or script in some language, a class is its English name, and a prompt is four vectors that the text tower gets beside
the class name. Needs the extra demo, no network, and half a minute: ``python examples/base_to_new.py``
"""

# %%
# Samples and class names
# -----------------------
# Half of the classes are base classes, finecal's *seen* ones. The others are new: *absent*.

import warnings
import zlib
from collections.abc import Sequence

import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn
from torch.nn import functional as F

import finecal
from finecal._demo.names import load_names
from finecal.plots import plot_accuracy, plot_tradeoff

torch.set_num_threads(1)  # The same figures on every machine.
CODES, WIDTH, WORDS = 4096, 64, 4


def encode(texts: Sequence[str]) -> Tensor:
    """Return the codes of the n-grams of each text; 0 pads."""
    rows = []
    for text in texts:
        marked = f"<{text.casefold()}>"
        grams = [
            marked[start : start + n]
            for n in (1, 2, 3, 4)
            for start in range(len(marked) - n + 1)
        ]
        rows.append(
            torch.tensor(
                [zlib.crc32(gram.encode()) % (CODES - 1) + 1 for gram in grams]
            )
        )
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)


task = load_names(seed=0)
seen_mask, class_names = task.seen_mask, encode(task.class_names)
print(f"{len(seen_mask)} classes, {int(seen_mask.sum())} of them base")


# %%
# Two towers
# ----------
# Pre-training is that of CLIP: names in the Romance languages are matched with the names of all classes. The logits are
# cosines times a learned scale. It also learns the one prompt that stands for "a photo of a".


class TwoTowers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sample, self.name = (
            nn.EmbeddingBag(CODES, WIDTH, mode="mean", padding_idx=0)
            for _ in range(2)
        )
        self.name.load_state_dict(
            self.sample.state_dict()
        )  # Before training, equal texts are alike.
        self.between = nn.Linear(WIDTH, WIDTH, bias=False)
        nn.init.eye_(self.between.weight)
        self.text = nn.Sequential(
            nn.Linear((WORDS + 1) * WIDTH, 256),
            nn.GELU(),
            nn.Linear(256, WIDTH),
        )
        self.prompt = nn.Parameter(0.1 * torch.randn(WORDS, WIDTH))
        self.log_scale = nn.Parameter(torch.tensor(3.0))

    def samples(self, codes: Tensor) -> Tensor:
        return F.normalize(self.between(self.sample(codes)), dim=1)

    def texts(self, codes: Tensor, prompts: Tensor) -> Tensor:
        """Embed class names `(C, length)`, each with its prompt `(C, WORDS, WIDTH)`."""
        names = F.normalize(self.name(codes), dim=1)
        return F.normalize(
            names + self.text(torch.cat([names, prompts.flatten(1)], dim=1)),
            dim=1,
        )

    def logits(self, samples: Tensor, codes: Tensor, prompts: Tensor) -> Tensor:
        return self.log_scale.exp() * samples @ self.texts(codes, prompts).T


torch.manual_seed(0)
model = TwoTowers()
codes, labels = encode(task.source.names), task.source.labels
optimiser = torch.optim.Adam(model.parameters(), lr=0.005)
for _ in range(8):
    for batch in torch.randperm(len(labels)).split(128):
        prompts = model.prompt.expand(len(class_names), -1, -1)
        loss = F.cross_entropy(
            model.logits(model.samples(codes[batch]), class_names, prompts),
            labels[batch],
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
model.requires_grad_(False)
train, held_out, test = (
    model.samples(encode(split.names))
    for split in (task.train, task.held_out, task.test)
)

# %%
# Prompts
# -------
# The towers are frozen. Prompts are learned from names in the other languages, of base classes only: one prompt that
# all classes share, or one for each base class, while new classes keep that of the pre-training, the "hand-written"
# one. The loss chooses among base classes, as the new ones have no samples.


def learn(base: Tensor, shared: bool) -> Tensor:
    """Return prompts `(C, WORDS, WIDTH)`, learned from the samples of the classes that are True."""
    torch.manual_seed(0)
    columns, position = base.nonzero().squeeze(1), base.cumsum(0) - 1
    learned = (
        model.prompt.expand(1 if shared else len(columns), -1, -1)
        .clone()
        .requires_grad_()
    )
    rows = base[task.train.labels].nonzero().squeeze(1)
    optimiser = torch.optim.Adam([learned], lr=0.02)
    for _ in range(10):
        for batch in rows[torch.randperm(len(rows))].split(64):
            logits = model.logits(
                train[batch],
                class_names[columns],
                learned.expand(len(columns), -1, -1),
            )
            optimiser.zero_grad()
            F.cross_entropy(
                logits, position[task.train.labels[batch]]
            ).backward()
            optimiser.step()
    prompts = model.prompt.expand(len(base), -1, -1).clone()
    prompts[slice(None) if shared else columns] = learned.detach()
    return prompts


all_prompts = {
    "hand-written": model.prompt.expand(len(seen_mask), -1, -1),
    "learned, shared": learn(seen_mask, shared=True),
    "learned, per class": learn(seen_mask, shared=False),
}
test_logits = {
    name: model.logits(test, class_names, prompts)
    for name, prompts in all_prompts.items()
}

# %%
# The usual table, and the one that matters
# -----------------------------------------
# In the usual table a base sample can only be taken for a base class, and a new one only for a new class. In use nobody
# says which of the two a sample is, and every class is allowed.


def harmonic_mean(first: float, second: float) -> float:
    return 2 * first * second / (first + second)


print(f"{'':20} {'within groups':>20}   {'over all classes':>20}")
print(
    f"{'%':20} {'base':>6} {'new':>6} {'H':>6}   {'base':>6} {'new':>6} {'H':>6}  AUSUC"
)
for name, logits in test_logits.items():
    report = finecal.evaluate(logits, task.test.labels, seen_mask)
    within = report.acc_seen_within, report.acc_absent_within
    figures = (
        *within,
        harmonic_mean(*within),
        report.acc_seen,
        report.acc_absent,
        report.harmonic_mean,
    )
    print(
        "{:20} {:6.1f} {:6.1f} {:6.1f}   {:6.1f} {:6.1f} {:6.1f}".format(
            name, *(100 * x for x in figures)
        ),
        end="",
    )
    print(f"  {report.ausuc:.3f}")

# %%
# A prompt for each base class raises the accuracy of base samples within their group, and with it H. Over all classes
# base samples are recognised *less often* than before. The loss lowers base logits: on held-out base samples that of
# the own class by 1.3, and the largest of the others by 2.2. Nothing lowers those of new classes. So base samples are
# taken for new classes: a shift between the two groups, which one number undoes.

y = task.held_out.labels
for name in ("hand-written", "learned, per class"):
    logits = model.logits(held_out, class_names, all_prompts[name])
    own, others = (
        F.one_hot(y, len(seen_mask)).bool(),
        logits.masked_fill(~seen_mask, -torch.inf),
    )
    largest = (
        logits[own],
        others.masked_fill(own, -torch.inf).amax(1),
        logits[:, ~seen_mask].amax(1),
    )
    print(
        "{:20} own {:5.2f}, other base {:5.2f}, new {:5.2f}".format(
            name, *(float(x.mean()) for x in largest)
        )
    )

# %%
# Gamma without a label of a new class
# ------------------------------------
# Halves of the base classes play the new ones: prompts are learned for one half, and the other keeps the hand-written
# one. Or, if you know how many samples in use are of base classes, unlabelled samples are enough. `estimate_gamma` has
# the logits of base samples alone; it looks for absent classes that were pushed down, finds none, and warns.

logits, prompts = (
    test_logits["learned, per class"],
    all_prompts["learned, per class"],
)


def fold(pseudo_seen_mask: Tensor) -> finecal.estimators.PseudoFold:
    refit = learn(pseudo_seen_mask, shared=False)
    logits = model.logits(held_out, class_names, refit)
    return finecal.estimators.PseudoFold(
        (logits, task.held_out.labels), pseudo_seen_mask
    )


with warnings.catch_warnings():
    warnings.simplefilter("ignore", finecal.FinecalWarning)
    held_out_logits = model.logits(held_out, class_names, prompts)
    gammas = {
        "gamma = 0": 0.0,
        "estimate_gamma": finecal.estimate_gamma(
            seen_mask, held_out=(held_out_logits, task.held_out.labels)
        ),
        "pseudo_cv": finecal.estimators.pseudo_cv(
            fold, seen_mask, objective="harmonic", progress=False
        ),
        "known_share_gamma": finecal.estimators.known_share_gamma(
            logits, seen_mask, seen_share=0.5
        ),
    }
curve = finecal.tradeoff_curve(logits, task.test.labels, seen_mask)
gammas["oracle"] = curve.best("harmonic")
print(f"{'over all classes, %':20} gamma   base    new      H")
for method, gamma in gammas.items():
    report = curve.at(gamma)
    figures = report.acc_seen, report.acc_absent, report.harmonic_mean
    print(
        "{:20} {:5.2f} {:6.1f} {:6.1f} {:6.1f}".format(
            method, float(gamma), *(100 * x for x in figures)
        )
    )

# %%
# Two prompts, two curves
# -----------------------
# The curve of the learned prompts encloses that of the hand-written one, which is dashed. Without gamma they are used
# at a point of smaller harmonic mean than the hand-written one was.

figure, (left, right) = plt.subplots(
    1, 2, figsize=(10, 5.4), layout="constrained"
)
before = finecal.tradeoff_curve(
    test_logits["hand-written"], task.test.labels, seen_mask
)
left.plot(before.acc_seen, before.acc_absent, "--", color="grey", zorder=0)
left.plot(
    before.at(0).acc_seen,
    before.at(0).acc_absent,
    "x",
    color="grey",
    label="hand-written prompt, $\\gamma$ = 0",
)
plot_tradeoff(
    curve,
    left,
    gammas={
        method: gammas[method] for method in ("pseudo_cv", "known_share_gamma")
    },
)
plot_accuracy(curve, right, gamma=gammas["pseudo_cv"])
plt.show()
