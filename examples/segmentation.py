"""
Segmentation
============

A small network that segments pictures of icons is fine-tuned on half of their classes, and loses the other half. Gamma
is found on positions of the fine-tuning pictures, and folded into the 1 x 1 convolution at the network's end.

Needs matplotlib, no network and half a minute: ``python examples/segmentation.py``
"""

import copy
import warnings

import torch
from _icons import CLASSES, Pictures, draw_pictures
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from torch import Tensor, nn
from torch.nn import functional as F

import finecal
from finecal.plots._axes import palette_of

torch.set_num_threads(1)  # The same figures on every machine.
# An estimate that is not sure says so; that is no reason to stop.
warnings.simplefilter("default", finecal.FinecalWarning)

# %%
# The pictures
# ------------
# Twenty kinds of icons on textured ground. Each icon that is seen has a look-alike that is absent: a disc and a ring, a
# square and a frame. Class 0 is the background, which is neither seen nor absent: gamma is not added to it, so the mask
# is True there. For pre-training there are clear pictures with all icons. Then there is fog, and to fine-tune there are
# foggy pictures with the seen icons only.

BACKGROUND = 0
IGNORED = 255  # the label of positions that do not count
SEEN = range(1, len(CLASSES), 2)
SEEN_MASK = finecal.seen_mask_from_indices(
    torch.tensor([BACKGROUND, *SEEN]), len(CLASSES)
)


def draw(count: int, seed: int, **options: object) -> Pictures:
    return draw_pictures(
        count, seed=seed, size=64, icons=(4, 7), radii=(0.12, 0.19), **options
    )


clear = draw(1600, seed=0)
fine_tuning = draw(400, seed=1, classes=SEEN, foggy=True)
held_out = draw(100, seed=2, classes=SEEN, foggy=True)
test = draw(200, seed=3, foggy=True)

# %%
# The network
# -----------
# A U-Net with 100,000 weights. Its last layer is a 1 x 1 convolution with an output for each class, at half the
# resolution of the picture. `score` interpolates the logits to the full one.


def block(n_in: int, n_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(n_out),
        nn.ReLU(),
    )


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_half = block(3, 16, stride=2)
        self.to_quarter = nn.Sequential(block(16, 32, stride=2), block(32, 32))
        self.to_eighth = nn.Sequential(
            block(32, 64, stride=2), block(64, 64), block(64, 64)
        )
        self.back_to_quarter = block(64 + 32, 16)
        self.back_to_half = block(16 + 16, 32)
        self.classifier = nn.Conv2d(32, len(CLASSES), kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        half = self.to_half(images)
        quarter = self.to_quarter(half)
        x = F.interpolate(self.to_eighth(quarter), scale_factor=2)
        x = self.back_to_quarter(torch.cat([x, quarter], dim=1))
        x = F.interpolate(x, scale_factor=2)
        return self.classifier(self.back_to_half(torch.cat([x, half], dim=1)))


def train(
    model: nn.Module, pictures: Pictures, epochs: int, learning_rate: float
) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), learning_rate)
    batches = [
        batch
        for _ in range(epochs)
        for batch in torch.randperm(len(pictures.images)).split(16)
    ]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, learning_rate, total_steps=len(batches)
    )
    weight = torch.ones(len(CLASSES))
    weight[BACKGROUND] = 0.2  # Most of a picture is background.
    model.train()
    for batch in batches:
        optimiser.zero_grad()
        labels = pictures.label_maps[batch, ::2, ::2]
        F.cross_entropy(
            model(pictures.images[batch]), labels, weight, ignore_index=IGNORED
        ).backward()
        optimiser.step()
        schedule.step()


@torch.no_grad()
def score(model: nn.Module, images: Tensor) -> Tensor:
    logits = [model.eval()(batch) for batch in images.split(50)]
    return F.interpolate(torch.cat(logits), images.shape[2:], mode="bilinear")


# %%
# Train as usual
# --------------

torch.manual_seed(0)
pretrained = UNet().to(memory_format=torch.channels_last)
train(pretrained, clear, epochs=5, learning_rate=0.01)
model = copy.deepcopy(pretrained)
train(model, fine_tuning, epochs=4, learning_rate=0.005)

# %%
# What fine-tuning did
# --------------------
# `finecal.dense.evaluate_iou` tells the mean IoU (intersection over union) of the seen classes, of the absent ones, and
# their harmonic mean (hIoU). Fog is hard for the network before fine-tuning. After it the network segments what is
# seen, and takes most absent icons for seen ones. That costs the seen classes, too: a ring that is taken for a disc
# enlarges the
# union of discs.

DENSE = {"dim": 1, "background": BACKGROUND, "ignore_index": IGNORED}


def show(
    name: str, logits: Tensor, gamma: object = 0.0, pictures: Pictures = test
) -> None:
    report = finecal.dense.evaluate_iou(
        logits, pictures.label_maps, SEEN_MASK, gamma, **DENSE
    )
    seen, absent, harmonic = (
        100 * value
        for value in (report.iou_seen, report.iou_absent, report.iou_harmonic)
    )
    print(
        f"{name:<38} {report.gamma:6.2f} {seen:7.1f} {absent:7.1f} {harmonic:9.1f}"
    )


header = f"{'mean IoU, %':<38} {'gamma':>6} {'seen':>7} {'absent':>7} {'harmonic':>9}"
pretrained_logits = score(pretrained, test.images)
logits = score(model, test.images)
print(header)
show("pre-trained on all classes", pretrained_logits)
show("fine-tuned on the seen ones", logits)

# %%
# Has fine-tuning damaged the absent classes? No: where only the classes of its own group are allowed for a position
# ("own group allowed"), the network has become better at absent icons, which it has not seen in the fog. What it has
# lost is the balance between the groups. (These are shares of the positions that are not background.)


def positions(logits: Tensor, label_maps: Tensor) -> finecal.logits.KeptClasses:
    """Return rows of logits, one for each position, without the background."""
    rows = logits.movedim(1, -1).flatten(0, 2)
    return finecal.logits.drop_classes(
        rows, label_maps.flatten(), SEEN_MASK, BACKGROUND
    )


for name, dense in {
    "pre-trained": pretrained_logits,
    "fine-tuned": logits,
}.items():
    kept = positions(dense, test.label_maps)
    print(name, finecal.evaluate(*kept[:3]), sep="\n", end="\n\n")

# %%
# Find gamma
# ----------
# Estimators take rows of logits. `finecal.collect_logits` draws 50 positions of each picture, interpolates logits to
# the size of the label maps, and leaves the background out. Positions of one picture are much alike, so it also says
# which picture each one is of: the interval comes from resampling whole pictures.


def loader(pictures: Pictures) -> list[tuple[Tensor, Tensor]]:
    return list(
        zip(
            pictures.images.split(50),
            pictures.label_maps.split(50),
            strict=True,
        )
    )


def sample(model: nn.Module, pictures: Pictures) -> finecal.Samples:
    return finecal.collect_logits(
        model,
        loader(pictures),
        positions=finecal.Positions(per_item=50, **DENSE),
        progress=False,
    )


train_samples = sample(model, fine_tuning)
held_out_samples = sample(model, held_out)
estimate = finecal.estimate_gamma(
    SEEN_MASK[1:],  # without the background, as the rows are
    train=train_samples,
    held_out=held_out_samples,
    n_bootstrap=100,
)
print(estimate)

# %%
# What it buys
# ------------
# For comparison: gamma from the training pictures alone, two other estimators, and the gamma with the best harmonic
# mean that the test labels could find.

curve = finecal.dense.iou_curve(logits, test.label_maps, SEEN_MASK, **DENSE)
oracle = curve.best("harmonic")
print(header)
show("pre-trained on all classes", pretrained_logits)
show("fine-tuned on the seen ones", logits)
for name, gamma in {
    "estimate_gamma": estimate,
    "estimate_gamma: training pictures only": finecal.estimate_gamma(
        SEEN_MASK[1:], train=train_samples
    ),
    "residual_gap: held-out": finecal.estimators.residual_gap(
        held_out_samples, SEEN_MASK[1:]
    ),
    "max_logit_gap: held-out": finecal.estimators.max_logit_gap(
        held_out_samples, SEEN_MASK[1:]
    ),
    "oracle: the best on the test pictures": oracle,
}.items():
    show(name, logits, gamma)

# %%
# Mean IoU at every gamma, exactly: it changes only where a position changes its class.

_, ax = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
colours = palette_of(ax)
drawn = (curve.gamma > -2) & (curve.gamma < 10)
for name, values, style in (
    ("seen", curve.iou_seen, {"color": colours.seen}),
    ("absent", curve.iou_absent, {"color": colours.absent, "ls": "--"}),
    ("harmonic mean", curve.iou_harmonic, {"color": colours.ink, "ls": ":"}),
):
    ax.plot(
        curve.gamma[drawn].numpy(),
        100 * values[drawn].numpy(),
        label=name,
        **style,
    )
for name, gamma, colour in (
    ("estimate_gamma", estimate.gamma, colours.gamma),
    ("oracle", oracle, colours.best),
):
    ax.axvline(gamma, color=colour, lw=1.2, label=f"{name}: {gamma:.2f}")
ax.axvline(0, color=colours.guide, lw=0.8)
ax.set(
    xlabel="gamma", ylabel="mean IoU, %", ylim=(0, None), title="Test pictures"
)
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %%
# Put it into the model
# ---------------------
# Behind the model, or into the bias of its last convolution, where it costs nothing:

calibrator = finecal.AdditiveBias(SEEN_MASK, estimate, dim=1)
calibrated = finecal.CalibratedModel(model, calibrator)
folded = copy.deepcopy(model)
finecal.fold_into_head(folded, calibrator, inputs=test.images[:2])
after = score(folded, test.images)
torch.testing.assert_close(after, score(calibrated, test.images))
show("folded into the head", after)

# %%
# The first pictures with three icons. Seen classes have the strong colours, their absent look-alikes the pale ones:

# sphinx_gallery_thumbnail_number = 2
CHOSEN = [i for i, kinds in enumerate(test.labels) if len(kinds) == 3][:4]
COLOURS = ListedColormap([(0.13, 0.13, 0.13), *plt.get_cmap("tab20").colors])
maps = {
    "truth": test.label_maps,
    "fine-tuned": logits.argmax(1),
    "with gamma": after.argmax(1),
}
figure, axes = plt.subplots(
    len(CHOSEN), 4, figsize=(7.5, 8.4), layout="constrained"
)
for row, index in zip(axes, CHOSEN, strict=True):
    row[0].imshow(test.images[index].movedim(0, -1).numpy())
    for ax, classes in zip(row[1:], maps.values(), strict=True):
        ax.imshow(
            classes[index].numpy(),
            cmap=COLOURS,
            vmin=-0.5,
            vmax=len(CLASSES) - 0.5,
            interpolation="nearest",
        )
for ax, title in zip(axes[0], ("picture", *maps), strict=True):
    ax.set_title(title)
for ax in axes.flat:
    ax.set(xticks=[], yticks=[])
figure.legend(
    handles=[
        Patch(color=COLOURS(k), label=CLASSES[k])
        for k in range(1, len(CLASSES))
    ],
    loc="outside lower center",
    ncols=10,  # seen above absent
    frameon=False,
    fontsize="small",
    handlelength=1,
    columnspacing=0.9,
)
plt.show()

# %%
# Where absent icons are labelled as background
# ---------------------------------------------
# So far no fine-tuning picture showed an absent icon. Often they are there, and nobody has labelled them: the network
# then learns that they are background. Gamma balances absent against seen classes, and positions of seen classes cannot
# tell how much the background has grown. So gamma comes out too low, and even the best one brings back only a part.


def fine_tune_and_show(name: str, pictures: Pictures) -> Tensor:
    network = copy.deepcopy(pretrained)
    train(network, pictures, epochs=4, learning_rate=0.005)
    gamma = finecal.estimate_gamma(
        SEEN_MASK[1:], train=sample(network, pictures)
    )
    dense = score(network, test.images)
    best = finecal.dense.iou_curve(dense, test.label_maps, SEEN_MASK, **DENSE)
    show(name, dense)
    show("estimate_gamma", dense, gamma)
    show("oracle", dense, best.best("harmonic"))
    return dense


everything = draw(400, seed=1, foggy=True)
seen_icons = everything.label_maps.where(
    SEEN_MASK[everything.label_maps], BACKGROUND
)
print(header)
misled_logits = fine_tune_and_show(
    "absent icons labelled as background",
    everything._replace(label_maps=seen_icons),
)

is_absent = ~SEEN_MASK[test.label_maps]
for name, dense in {
    "absent icons not in the pictures": logits,
    "absent icons labelled as background": misled_logits,
}.items():
    as_background = (dense.argmax(1) == BACKGROUND)[is_absent]
    share = as_background.double().mean()
    print(f"{name}: {share:.0%} of their positions become background")

# %%
# It is enough to know roughly where such icons are. Here each has a box, whose positions are ignored in training:

ignored = seen_icons.clone()
for label_map, boxes, kinds in zip(
    ignored, everything.boxes, everything.labels, strict=True
):
    for left, top, right, bottom in boxes[~SEEN_MASK[kinds]].int():
        label_map[top:bottom, left:right] = IGNORED
print(header)
fine_tune_and_show(
    "absent icons ignored", everything._replace(label_maps=ignored)
)

# %%
# The guide :doc:`../how-to/segmentation` has more on this.
