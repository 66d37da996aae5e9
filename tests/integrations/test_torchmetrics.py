"""The metrics for torchmetrics, over gloo as well; as a script: the processes that the tests start."""

import copy
import math
import os
import pickle
import re
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection, MetricTracker
from torchmetrics.classification import MulticlassJaccardIndex
from torchmetrics.segmentation import MeanIoU

import finecal
from finecal.integrations.torchmetrics import ACCURACIES, AUSUC, LogitGap, SeenAbsentAccuracy
from iou_problems import pictures
from profiles import examples

MASK = torch.tensor([True, False, True, True, False, False])
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "lightning.md"
GAMMA = 1.3
KINDS = {
    "accuracy": lambda **kwargs: SeenAbsentAccuracy(MASK, GAMMA, **kwargs),
    "accuracy, macro": lambda **kwargs: SeenAbsentAccuracy(MASK, GAMMA, "macro", "acc_all", **kwargs),
    "ausuc": lambda **kwargs: AUSUC(MASK, **kwargs),
    "ausuc, macro": lambda **kwargs: AUSUC(MASK, "macro", **kwargs),
    "gap": lambda **kwargs: LogitGap(MASK, **kwargs),
    "average gap": lambda **kwargs: LogitGap(MASK, "average_logit_gap", **kwargs),
}
every_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def samples(seed=0, n=60, dtype=torch.float64):
    """Return logits whose seen ones are too large, half of them of the label's class, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(6, (n,), generator=generator)
    logits = torch.randn(n, 6, generator=generator, dtype=torch.float64) + 3 * MASK
    logits[torch.arange(n), labels] += 2
    return logits.to(dtype), labels


def whole(logits, labels):
    """Return what the functions say of all samples, by the names of `KINDS`."""
    mask = MASK.to(logits.device)
    accuracies = {
        average: finecal.evaluate(logits, labels, mask, GAMMA, average=average) for average in ("micro", "macro")
    }
    is_seen = mask[labels]
    return {
        "accuracy": {name: getattr(accuracies["micro"], name) for name in ACCURACIES},
        "accuracy, macro": accuracies["macro"].acc_all,
        "ausuc": finecal.tradeoff_curve(logits, labels, mask).ausuc,
        "ausuc, macro": finecal.tradeoff_curve(logits, labels, mask, "macro").ausuc,
        "gap": float(finecal.estimators.max_logit_gap(logits[is_seen], labels[is_seen], mask)),
        "average gap": float(finecal.estimators.average_logit_gap(logits[is_seen], labels[is_seen], mask)),
    }


def numbers(value):
    return {name: float(entry) for name, entry in value.items()} if isinstance(value, dict) else float(value)


def assert_whole(metric, make, logits, labels):
    expected = whole(logits, labels)[next(name for name, kind in KINDS.items() if kind is make)]
    assert numbers(metric.compute()) == pytest.approx(expected, rel=1e-12)


def updated(make, logits, labels):
    metric = make()
    metric.update(logits, labels)
    return metric


@every_kind
@examples(20)
@given(seed=st.integers(0, 2**32 - 1))
def test_batches_merged_in_any_order_are_the_whole(make, seed):
    rng = np.random.default_rng(seed)
    logits, labels = samples(seed)
    parts = np.split(rng.permutation(60), np.sort(rng.integers(0, 61, 4)))
    metric, forwarded = make(), make()
    for part in parts:
        metric.update(logits[part], labels[part])
        forwarded(logits[part], labels[part])
    assert_whole(metric, make, logits, labels)
    assert_whole(forwarded, make, logits, labels)
    merged = make()
    for part in rng.permutation(len(parts)):
        rows = parts[part]
        merged.merge_state(updated(make, logits[rows], labels[rows]))
    merged._update_count = 1  # or torchmetrics warns
    assert_whole(merged, make, logits, labels)


@every_kind
def test_all_dtypes(make, dtype, device):
    logits, labels = (tensor.to(device) for tensor in samples(dtype=dtype))
    metric = make().to(device)
    metric.update(logits, labels)
    assert_whole(metric, make, logits, labels)
    assert metric.seen_mask.device.type == device.type
    crossed = updated(make, logits, labels)
    assert crossed.seen_mask.device.type == "cpu"
    assert_whole(crossed, make, logits, labels)


@every_kind
def test_forward_returns_the_batch(make):
    logits, labels = samples()
    metric = updated(make, logits[:40], labels[:40])
    assert numbers(metric(logits[40:], labels[40:])) == numbers(updated(make, logits[40:], labels[40:]).compute())
    assert_whole(metric, make, logits, labels)


@every_kind
def test_copies_go_on(make):
    logits, labels = samples()
    metric = updated(make, logits[:30], labels[:30])
    metric.compute()
    for other in (metric.clone(), copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        other.update(logits[30:], labels[30:])
        assert_whole(other, make, logits, labels)
    assert_whole(metric, make, logits[:30], labels[:30])
    metric.reset()
    metric.update(logits[30:], labels[30:])
    assert_whole(metric, make, logits[30:], labels[30:])


@every_kind
def test_casts_round_nothing(make):
    logits, labels = samples(n=5000)
    metric = updated(make, logits, labels)
    metric.half().bfloat16().double().set_dtype(torch.float16).to(torch.bfloat16)
    torch.nn.ModuleList([metric]).to(torch.float16)
    assert_whole(metric, make, logits, labels)
    metric.reset()
    metric.update(logits[:90], labels[:90])
    assert_whole(metric, make, logits[:90], labels[:90])


@every_kind
def test_state_dict(make):
    logits, labels = samples()
    metric = updated(make, logits[:30], labels[:30])
    assert metric.state_dict() == {}
    metric.persistent(True)
    resumed = make()
    resumed.persistent(True)
    resumed.load_state_dict(metric.state_dict())
    metric.update(logits[30:], labels[30:])
    resumed.update(logits[30:], labels[30:])
    assert_whole(resumed, make, logits, labels)


def test_metrics_with_other_settings_are_not_the_same():
    logits, labels = samples()
    metric = updated(KINDS["accuracy"], logits, labels)
    metric.persistent(True)
    for other in (SeenAbsentAccuracy(MASK, GAMMA + 1e-9), SeenAbsentAccuracy(~MASK, GAMMA)):
        other.persistent(True)
        with pytest.raises(ValueError, match="seen_mask or gamma differs between metrics that are to be merged"):
            other.load_state_dict(metric.state_dict())
        with pytest.raises(ValueError, match="seen_mask or gamma differs"):
            other.merge_state(metric)
        with pytest.raises(ValueError, match="seen_mask or gamma differs"):
            other.merge_state(metric.metric_state)
    with pytest.raises(ValueError, match="seen_mask or gamma differs"):
        SeenAbsentAccuracy(MASK[:4], GAMMA).merge_state(metric)
    with pytest.raises(AttributeError):
        metric.gamma = 2.0


@every_kind
def test_merging_is_seen_by_the_next_compute(make):
    logits, labels = samples()
    metric = updated(make, logits[:30], labels[:30])
    metric.compute()
    metric.merge_state(updated(make, logits[30:], labels[30:]))
    assert_whole(metric, make, logits, labels)


def test_collection():
    """What can be counted together is, and nothing else, although the first batch tells no two gammas apart."""
    collection = MetricCollection(
        {
            **{name: SeenAbsentAccuracy(MASK, GAMMA, accuracy=name) for name in ACCURACIES},
            "macro": SeenAbsentAccuracy(MASK, GAMMA, "macro"),
            "elsewhere": SeenAbsentAccuracy(MASK, GAMMA + 0.5, accuracy="acc_all"),
            "ausuc": AUSUC(MASK),
            "ausuc_macro": AUSUC(MASK, "macro"),
            "ausuc_swapped": AUSUC(~MASK),
            "gap": LogitGap(MASK),
            "gap_average": LogitGap(MASK, "average_logit_gap"),
        },
        prefix="val_",
        postfix="_0",
    )
    logits, labels = samples()
    for rows in (slice(0, 0), slice(0, 20), slice(20, 60)):
        collection.update(logits[rows], labels[rows])
    groups = {frozenset(group) for group in collection.compute_groups.values()}
    assert groups == {
        frozenset([*ACCURACIES, "macro"]),
        *map(frozenset, (["elsewhere"], ["ausuc", "ausuc_macro"], ["ausuc_swapped"], ["gap", "gap_average"])),
    }
    found, expected = collection.compute(), whole(logits, labels)
    for name in ACCURACIES:
        assert float(found[f"val_{name}_0"]) == expected["accuracy"][name]
        macro = getattr(finecal.evaluate(logits, labels, MASK, GAMMA, "macro"), name)
        assert float(found[f"val_macro_{name}_0"]) == pytest.approx(macro, rel=1e-12)
    assert float(found["val_elsewhere_0"]) == finecal.evaluate(logits, labels, MASK, GAMMA + 0.5).acc_all
    assert float(found["val_gap_0"]) == pytest.approx(expected["gap"], rel=1e-12)
    assert float(found["val_ausuc_macro_0"]) == pytest.approx(expected["ausuc, macro"], rel=1e-12)
    assert float(found["val_ausuc_swapped_0"]) == pytest.approx(expected["ausuc"], rel=1e-12)
    collection.reset()
    collection.update(logits[:20], labels[:20])
    assert float(collection.compute()["val_ausuc_0"]) == whole(logits[:20], labels[:20])["ausuc"]


def test_dicts_in_a_collection():
    logits, labels = samples()
    alone = MetricCollection([SeenAbsentAccuracy(MASK), AUSUC(MASK)], prefix="val_")
    assert set(alone(logits, labels)) == {*(f"val_{name}" for name in ACCURACIES), "val_AUSUC"}
    both = MetricCollection({"before": SeenAbsentAccuracy(MASK), "after": SeenAbsentAccuracy(MASK, GAMMA)})
    both.update(logits, labels)
    values = numbers(both.compute())
    assert values["before_acc_seen"] == finecal.evaluate(logits, labels, MASK).acc_seen
    assert values["after_acc_seen"] == finecal.evaluate(logits, labels, MASK, GAMMA).acc_seen


def test_tracker():
    tracker = MetricTracker(SeenAbsentAccuracy(MASK, accuracy="harmonic_mean"), maximize=True)
    for seed in range(3):
        tracker.increment()
        tracker.update(*samples(seed))
    scores = [finecal.evaluate(*samples(seed), MASK).harmonic_mean for seed in range(3)]
    assert tracker.best_metric() == pytest.approx(max(scores))


def test_gap_is_learnt_from_seen_samples_only():
    logits, labels = samples()
    spoilt = logits.clone()
    spoilt[~MASK[labels]] = math.nan
    metric = updated(KINDS["gap"], spoilt, labels)
    assert_whole(metric, KINDS["gap"], logits, labels)


def test_nothing_gives_nan():
    logits, labels = samples()
    absent = ~MASK[labels]
    for make in KINDS.values():
        with pytest.warns(UserWarning, match="was called before the ``update`` method"):
            value = make().compute()
        assert all(entry.isnan() for entry in (value.values() if isinstance(value, dict) else [value]))
    assert KINDS["gap"]()(logits[absent], labels[absent]).isnan()
    assert KINDS["ausuc"]()(logits[absent], labels[absent]).isnan()
    value = KINDS["accuracy"]()(logits[absent], labels[absent])
    assert value["acc_seen"].isnan()
    assert value["acc_absent"] == finecal.evaluate(logits[absent], labels[absent], MASK, GAMMA).acc_absent


def test_warnings_come_with_the_result_not_with_each_batch():
    metric = LogitGap([True, True, False])
    logits, labels = torch.tensor([[9.0, 2, 5], [2, 9, 5]]), torch.tensor([0, 1])
    metric(logits, labels)
    with pytest.warns(finecal.FinecalWarning, match="max_logit_gap: the gap is -3") as record:
        metric.compute()
    assert len(record) == 1
    rows = AUSUC([False, False, True, True])
    rows(torch.tensor([[0.0, 1, 2, 3], [3, 2, 1, 0]]), labels)
    with pytest.warns(finecal.FinecalWarning, match="they look re-indexed"):
        rows.compute()


@every_kind
def test_input_is_checked(make):
    logits, labels = samples()
    metric = make()
    with pytest.raises(ValueError, match="logits contain NaN"):
        metric.update(logits * math.nan, labels)
    with pytest.raises(ValueError, match="logits look like probabilities"):
        metric.update(logits.softmax(1), labels)
    with pytest.raises(ValueError, match="labels contain 6"):
        metric.update(logits[:1], torch.tensor([6]))
    with pytest.raises(ValueError, match="seen_mask has 6 entries for logits of 4 classes"):
        metric.update(logits[:, :4], labels % 4)
    with pytest.raises(ValueError, match=r"expected \(N, C\).*the states of finecal.streaming take dense logits"):
        metric.update(logits[:, :, None, None], labels[:, None, None])
    assert metric.metric_state.keys() == make().metric_state.keys()


def test_arguments_are_checked():
    for make in (SeenAbsentAccuracy, AUSUC, LogitGap):
        with pytest.raises(ValueError, match="seen_mask has no absent class"):
            make([True, True])
        with pytest.raises(TypeError, match="seen_mask has dtype int64"):
            make([0, 1, 1])
        with pytest.raises(ValueError, match="Unexpected keyword arguments: `gammas`"):
            make(MASK, gammas=1)
    with pytest.raises(ValueError, match="gamma is nan"):
        SeenAbsentAccuracy(MASK, math.nan)
    with pytest.raises(ValueError, match="average is 'weighted'"):
        SeenAbsentAccuracy(MASK, average="weighted")
    with pytest.raises(ValueError, match="accuracy is 'top5'; choose one of 'acc_all'"):
        SeenAbsentAccuracy(MASK, accuracy="top5")
    with pytest.raises(ValueError, match="average is None"):
        AUSUC(MASK, average=None)
    with pytest.raises(ValueError, match="method is 'maximum'; choose one of 'average_logit_gap', 'max_logit_gap'"):
        LogitGap(MASK, "maximum")
    with pytest.raises(ValueError, match="seen_mask has one seen class"):
        LogitGap([True, False, False])


def test_memory():
    """Bytes per sample, and none."""
    logits, labels = samples(n=500, dtype=torch.float32)
    metric = updated(KINDS["ausuc"], logits, labels)
    assert sum(rows[0].nbytes for name, rows in metric.metric_state.items() if name != "settings") == 13 * 500
    for name in ("accuracy", "gap"):
        state = updated(KINDS[name], logits, labels).metric_state
        assert sum(value.nbytes for value in state.values()) == sum(
            v.nbytes for v in KINDS[name]().metric_state.values()
        )


@every_kind
def test_plots(make):
    logits, labels = samples()
    metric, values = make(), []
    for rows in (slice(0, 30), slice(30, 60)):
        values.append(metric(logits[rows], labels[rows]))
    for args in ([], [values], [values[0]]):
        figure, axes = metric.plot(*args)
        assert figure.axes == [axes]
        assert plt.gcf() is figure
        plt.close(figure)
    _, own = plt.subplots()
    assert metric.plot(ax=own) == (None, own)
    plt.close()


def test_area_is_drawn_as_the_curve():
    logits, labels = samples()
    metric = updated(KINDS["ausuc"], logits, labels)
    figure, axes = metric.plot()
    curve = finecal.tradeoff_curve(logits, labels, MASK)
    drawn = [line.get_xydata().T.tolist() for line in axes.get_lines()]
    assert [curve.acc_seen.tolist(), curve.acc_absent.tolist()] in drawn
    assert metric.curve().best() == curve.best()
    plt.close(figure)


def test_as_a_streaming_state():
    """`collect_logits` feeds metrics, too."""
    logits, labels = samples()
    model = torch.nn.Identity()
    metric = finecal.collect_logits(model, [(logits, labels)], into=KINDS["ausuc"](), progress=False)
    assert_whole(metric, KINDS["ausuc"], logits, labels)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_python_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    watching, logging, keeping = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)[5:]
    valid, test = samples(1), samples(2)
    loaders = {
        f"{name}_loader": DataLoader(TensorDataset(*pair), batch_size=20)
        for name, pair in {"valid": valid, "test": test}.items()
    }
    seen = MASK.nonzero().flatten()
    names = {"model": torch.nn.Identity(), "train_labels": seen, "num_classes": len(MASK), **loaders}
    exec(watching, names)
    shown = set(re.findall(r'"(val_\w+)"', watching))
    assert shown <= names["values"].keys()
    assert len(shown) == 4
    gamma = whole(*valid)["gap"]
    assert float(names["values"]["val_LogitGap"]) == pytest.approx(gamma)
    assert float(names["calibrated"].compute()) == finecal.evaluate(*test, MASK, gamma).acc_all

    exec(logging, names)
    logged = names["trainer"].callback_metrics["val_acc_absent"]
    assert float(logged) == pytest.approx(finecal.evaluate(*valid, MASK).acc_absent)
    exec(keeping, names)
    torch.testing.assert_close(names["restored"](test[0]), finecal.calibrate_logits(test[0], MASK, gamma))


# --- processes --------------------------------------------------------------------------------------------------------

SHARES = {"even": [range(30), range(30, 60)], "ragged": [range(13), range(13, 60)], "one": [[], range(60)]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """What two processes have found for each of `SHARES`: one file per process, in a folder of the share's name."""
    root = tmp_path_factory.mktemp("processes")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # where this file finds `profiles`
    subprocess.run([sys.executable, __file__, root], check=True, timeout=300, env=environment)
    return root


@pytest.mark.parametrize("share", SHARES)
def test_two_processes(share, folders):
    """Both know what one process knows, and go on with their own samples."""
    logits, labels = samples()
    expected = whole(logits, labels)
    for rank in range(2):
        found = torch.load(folders / share / f"{rank}.pt", weights_only=True)
        assert found.keys() == KINDS.keys()
        for name, values in found.items():
            for value in values:
                assert value == pytest.approx(expected[name], rel=1e-12)


@pytest.mark.parametrize("gamma", [-2.25, 0.25, 1.75])  # where no two groups tie
def test_mean_iou_of_dense_outputs(gamma):
    """Every class occurs in the labels: one that does not, but is predicted, counts as 0 in torchmetrics."""
    logits, labels, mask = pictures()
    predicted = finecal.calibrate_logits(logits, mask, gamma, dim=1).argmax(1)
    report = finecal.dense.evaluate_iou(logits, labels, mask, gamma, dim=1, ignore_index=255)
    assert report.iou_all == pytest.approx(float(MulticlassJaccardIndex(5, ignore_index=255)(predicted, labels)))
    each = MulticlassJaccardIndex(5, ignore_index=255, average="none")(predicted, labels)
    assert report.iou.tolist() == pytest.approx(each.tolist())
    labels = labels.where(labels != 255, predicted)
    report = finecal.dense.evaluate_iou(logits, labels, mask, gamma, dim=1)
    # `MeanIoU` is a mean over pictures: here there is one of all positions.
    mean = MeanIoU(5, input_format="index")(predicted.reshape(1, -1), labels.reshape(1, -1))
    assert report.iou_all == pytest.approx(float(mean))


def work(rank, root, share):
    torch.distributed.init_process_group("gloo", init_method=f"file://{root}/init", rank=rank, world_size=2)
    warnings.simplefilter("ignore", UserWarning)  # compute without an update
    (logits, labels), found = samples(), {}
    for name, make in KINDS.items():
        metric, stepping, tail = make(), make(dist_sync_on_step=True), []
        for rows in torch.tensor(list(SHARES[share][rank]), dtype=torch.int64).split(7):
            if len(rows):
                metric.update(logits[rows], labels[rows])
                tail.append(rows)
        first = metric.compute()
        # Again, after the states were put back to this process's own; and with both in step.
        metric._computed = None
        stepped = stepping(logits[rank::2], labels[rank::2])
        found[name] = [numbers(first), numbers(metric.compute()), numbers(stepped), numbers(stepping.compute())]
    together = MetricCollection({name: make() for name, make in KINDS.items() if name != "accuracy"})
    if SHARES[share][rank]:
        together.update(logits[list(SHARES[share][rank])], labels[list(SHARES[share][rank])])
    for name, value in together.compute().items():
        found[name].append(numbers(value))
    curve = AUSUC(MASK)
    if SHARES[share][rank]:
        curve.update(logits[list(SHARES[share][rank])], labels[list(SHARES[share][rank])])
    assert len(curve.curve().samples) == 60
    with pytest.raises(ValueError, match="seen_mask or gamma differs"):
        SeenAbsentAccuracy(MASK, float(rank)).compute()
    torch.save(found, f"{root}/{rank}.pt")
    torch.distributed.barrier()  # neither leaves while the other still talks to it
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    for share in SHARES:
        folder = Path(sys.argv[1], share)
        folder.mkdir()
        # Forked, so that all is imported once.
        torch.multiprocessing.start_processes(work, (folder, share), nprocs=2, start_method="fork")
