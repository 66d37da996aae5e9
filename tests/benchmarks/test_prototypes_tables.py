import math
import re

import numpy as np
import prototype_cost
import prototype_rivals as rivals
import prototypes
import pytest
import torch

import finecal

MASK = np.arange(8) < 4
CENTERS = 2 * np.random.default_rng(1).normal(size=(8, 12))


def task_file(path, gap=6.0, held_out=True):
    """Write a task of a model whose features cluster, and whose seen classes have outgrown the others by `gap`."""
    rng = np.random.default_rng(0)
    weight = CENTERS + 1.5 * rng.normal(size=CENTERS.shape)

    def samples(part, num_classes, n):
        labels = rng.permutation(np.arange(n) % num_classes)
        features = CENTERS[labels] + 2 * rng.normal(size=(n, 12))
        logits = features @ weight.T / 8 + gap * MASK
        arrays = {"logits": logits, "labels": labels, "features": features}
        return {f"{part}_{name}": a.astype(np.float32) if a.ndim == 2 else a for name, a in arrays.items()}

    arrays = {"seen_mask": MASK, "weight": weight.astype(np.float32), "bias": np.zeros(8, np.float32)}
    arrays |= {**samples("train", 4, 200), **(samples("val", 4, 100) if held_out else {}), **samples("test", 8, 400)}
    np.savez(path, **arrays)
    return path


@pytest.fixture
def path(tmp_path):
    return task_file(tmp_path / "drawn_gap.npz")


@pytest.fixture
def model(path):
    return rivals.Model.read(path)


def right(model, scores, rows):
    return (scores.argmax(1) == model.labels[rows]).double()


# --- what is measured -------------------------------------------------------------------------------------------------


def test_gains_are_over_the_same_gamma_and_the_best(model):
    rows, seen = torch.arange(300), model.labels[:300] < 4

    def oracle(logits, features):
        return 9.0 * torch.nn.functional.one_hot(model.labels[rows], 8)

    found = prototypes.gains(model, oracle, rows)
    for gamma, columns in ((model.gamma, ("Acc_Y/Y", "balanced")), (model.best, ("over best gamma",))):
        hits = right(model, model.logits[rows] + gamma * ~model.mask, rows)
        expected = 1 - hits.mean(), 1 - (hits[seen].mean() + hits[~seen].mean()) / 2
        assert [found[column] for column in columns] == pytest.approx(
            [100 * float(e) for e in expected[: len(columns)]]
        )
    before = finecal.evaluate(model.logits[rows], model.labels[rows], model.mask)
    assert found["AUSUC"] == pytest.approx(100 * (1 - before.ausuc))


def test_fresh_samples_are_never_those_of_the_fit(model):
    pairs = []

    def fit(given, rows):
        def apply(logits, features):
            scored = {int((given.logits == row).all(1).nonzero()) for row in logits}
            pairs.append((set(rows.tolist()), scored))
            return given.with_gamma(logits) + (len(rows) < 400) * 9.0 * ~given.mask

        return apply

    found, every = prototypes.same_and_fresh(fit, model), set(range(400))
    assert sorted(map(len, (own for own, _ in pairs))) == [200, 200, 400]
    assert all(scored == (every - own or every) for own, scored in pairs)
    assert found["the same"]["Acc_Y/Y"] == 0
    rows = torch.arange(400)
    change = right(model, model.calibrated + 9.0 * ~model.mask, rows) - right(model, model.calibrated, rows)
    assert found["fresh"]["Acc_Y/Y"] == pytest.approx(100 * float(change.mean()))


def test_held_out_samples_are_passed_on(model, tmp_path):
    found = prototypes.with_held_out(model)
    expected = rivals.prototypes(model, torch.arange(400), held_out=model.held_out)
    assert found["the same"] == prototypes.gains(model, expected, torch.arange(400))
    without = rivals.Model.read(task_file(tmp_path / "other.npz", held_out=False))
    assert prototypes.with_held_out(without) == {}


def test_data_are_drawn_as_they_are_called(model, monkeypatch):
    calls = []

    def scores_of(given, rows, weights, gamma=None, *, others):
        calls.append((rows, weights, gamma))
        assert not set(rows.tolist()) & set(others.tolist())
        return {"all samples": 0.0, **dict.fromkeys(prototypes.WARNINGS, 0.0)}

    monkeypatch.setattr(prototypes, "scores_of", scores_of)
    names = list(prototypes.data(model))
    drawn = dict(zip(names, calls, strict=False))  # the first half, which the second one follows
    assert len(calls) == 2 * len(names)
    assert [len(drawn[name][0]) for name in ("all", "25 samples", "200 samples")] == [200, 25, 200]
    assert "500 samples" not in drawn
    for name, share in (("90% seen", 0.9), ("100% seen", 1.0)):
        rows, weights, _ = drawn[name]
        others = prototypes.halves(400)[1]
        assert float((model.labels[rows] < 4).double().mean()) == pytest.approx(share, abs=0.01)
        assert float(weights[model.labels[others] < 4].sum() / weights.sum()) == pytest.approx(share)
    rows, weights, _ = drawn["a third of the absent classes"]
    occur = set(model.labels[rows].tolist())
    assert set(range(4)) < occur
    assert len(occur) == 5
    assert weights.tolist() == [label in occur for label in model.labels[others].tolist()]
    assert [drawn[f"gamma x {factor}"][2] for factor in (0.5, 1.5)] == [0.5 * model.gamma, 1.5 * model.gamma]
    assert drawn["best gamma"][2] == model.best


@pytest.mark.filterwarnings("ignore::finecal.FinecalWarning")
def test_scores_are_weighted_and_warnings_counted(model):
    own, others = prototypes.halves(400)
    weights = (model.labels[others] == 5).float()
    found = prototypes.scores_of(model, own[:10], weights, others=others)
    assert found["few"] == 1
    fitted = rivals.prototypes(model, own[:10])
    after = right(model, fitted(model.logits[others], model.features[others]), others)
    change = 100 * (after - right(model, model.calibrated[others], others))
    assert found["all samples"] == pytest.approx(float(change.mean()), abs=1e-5)
    assert found["samples like these"] == pytest.approx(float(change[weights > 0].mean()), abs=1e-5)


# --- other methods ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [2, None])
def test_t3a_by_a_loop(model, kept):
    rows = torch.arange(60)
    supports = [[] for _ in range(8)]
    for label, row in enumerate(model.weight):
        p = model.with_gamma(row @ model.weight.T + model.bias).softmax(0)
        supports[label].append((float(-(p * p.log()).sum()), row / row.norm()))
    for features, logits in zip(model.features[rows], model.calibrated[rows], strict=True):
        p = logits.softmax(0)
        supports[int(p.argmax())].append((float(-(p * p.log()).sum()), features / features.norm()))
    centroids = []
    for found in supports:
        mean = torch.stack([support for _, support in sorted(found, key=lambda pair: pair[0])[:kept]]).mean(0)
        centroids.append(mean / mean.norm())
    scores = rivals.t3a(kept, model, rows)(model.logits, model.features)
    torch.testing.assert_close(scores, model.features @ torch.stack(centroids).T)


@pytest.mark.parametrize("cosine", [True, False])
def test_nearest_means_by_a_loop(model, cosine):
    rows = (model.calibrated.argmax(1) != 7).nonzero()[:, 0]
    scores = rivals.nearest_mean(cosine, model, rows)(model.logits, model.features)
    assert scores[:, 7].isneginf().all()
    own, center = model.features[rows], model.features[rows].mean(0)
    means = torch.stack([own[model.calibrated[rows].argmax(1) == label].mean(0) for label in range(7)])
    if cosine:
        expected = torch.cosine_similarity((model.features - center)[:, None], means - center, dim=-1)
    else:
        expected = -(model.features[:, None] - means).norm(dim=-1)
    assert torch.equal(scores.argmax(1), expected.argmax(1))


def test_what_is_added_has_the_spread_of_the_logits(model):
    rows = (model.calibrated.argmax(1) != 7).nonzero()[:, 0]
    apply = rivals.added(lambda *given: rivals.nearest_mean(True, *given), model, rows)
    told = apply(model.logits[rows], model.features[rows]) - model.calibrated[rows]
    torch.testing.assert_close(told[:, 7], torch.zeros(len(rows)))
    spreads = [part - part.mean(1, keepdim=True) for part in (model.calibrated[rows][:, 4:], told[:, 4:7])]
    assert float(spreads[1].square().mean()) == pytest.approx(float(spreads[0].square().mean()), rel=1e-4)


@pytest.mark.parametrize("step", [step for step in rivals.STEPS if step != "all of it"])
def test_steps_are_taken_out_and_put_back(model, step):
    rows = torch.arange(400)
    before = rivals.prototypes(model, rows)
    with rivals.without(step) as fit:
        changed = fit(model, rows)
    assert not torch.allclose(changed.weight, before.weight, rtol=1e-3)
    assert bool(changed.weight.any())
    torch.testing.assert_close(rivals.prototypes(model, rows).weight, before.weight)


# --- tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "family", "group"),
    [
        ("tz2_ls80", "tz", "looked at"),
        ("langid_head", "lang", "looked at"),
        ("languages_hot", "languages", "others"),
        ("inst2_cosine", "inst", "others"),
        ("kana_nogap_frac20", "kana", "controls, others"),
        ("digits_nogap", "digits", "controls, looked at"),
    ],
)
def test_families(name, family, group):
    found = prototypes.Found(name, {})
    assert (found.family, found.group) == (family, group)
    assert group in prototypes.GROUPS


def test_tables_by_hand():
    points = {"kana_1": 2.0, "kana_2": -0.6, "speech_1": 1.0, "kana_nogap": -3.0, "digits_1": 4.0}
    found = [
        prototypes.Found(name, {"gain": {of: {"Acc_Y/Y": x, "few": float(x < 0)} for of in ("the same", "fresh")}})
        for name, x in points.items()
    ]
    head, rows = prototypes.table(found, "gain")
    assert head == ["", "families", "models", "Acc_Y/Y", "few"]
    assert rows[:3] == [
        ["the same", "looked at", "1", "+4.00 / +4.00 / +4.0 (0)", "0"],
        ["the same", "others", "3", "+1.00 / +0.80 / -0.6 (1)", "1"],
        ["the same", "controls, others", "1", "-3.00 / -3.00 / -3.0 (1)", "1"],
    ]
    _, rows = prototypes.family_table(found, "gain")
    assert [row[:4] for row in rows] == [
        ["digits", "looked at", "1", "+4.00 / +4.00 / +4.0 (0)"],
        ["kana", "others", "2", "+0.70 / +0.70 / -0.6 (1)"],
        ["speech", "others", "1", "+1.00 / +1.00 / +1.0 (0)"],
    ]


def test_command(path, capsys, monkeypatch):
    task_file(path.with_name("digits_nogap.npz"), gap=0.0)
    np.savez(path.with_name("kana.npz"), seen_mask=MASK)
    few = {name: rivals.RIVALS[name] for name in ("fit_prototypes", "T3A, 5 supports, added")}
    monkeypatch.setitem(prototypes.PARTS, "rivals", lambda model: prototypes.side_by_side(few, model))
    monkeypatch.setattr(prototypes, "STEPS", ["all of it", "w = 1"])
    prototypes.main([str(path.parent), "--markdown"])
    printed = re.sub(" +", " ", capsys.readouterr().out)
    assert printed.startswith("2 models.")
    assert printed.count("\n## ") == len(prototypes.PARTS)
    for row in ("the same", "25 samples", "T3A, 5 supports, added", "w = 1"):
        assert re.search(rf"^\| {row} \| others \| 1 \| [+-]", printed, re.MULTILINE)
    assert "| fresh | controls, looked at | 1 |" in printed
    prototypes.main([str(path.parent), "--parts", "gain", "--only", "drawn", "--jobs", "2"])
    assert "1 models." in capsys.readouterr().out
    with pytest.raises(SystemExit):
        prototypes.main([str(path.parent), "--only", "kana"])
    assert "no .npz files with training samples and features" in capsys.readouterr().err


def test_command_for_cost(capsys, monkeypatch):
    sizes = {"SAMPLES": 300, "CLASSES": 10, "WIDTH": 16, "FIT_TURNS": 1, "FORWARD_TURNS": 1, "BATCHES": {2: 1}}
    for name, size in sizes.items():
        monkeypatch.setattr(prototype_cost, name, size)
    monkeypatch.setattr(prototype_cost, "extra_memory", lambda run: 1.0)  # Linux only
    prototypes.main(["--cost"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    assert [row.split("|")[1].strip() for row in rows] == [
        "logits.amax(1), 300 x 10",
        "fit_prototypes, 16 features",
        "model, batch of 2",
        "CalibratedModel, AdditiveBias, batch of 2",
        "CalibratedModel, Prototypes, batch of 2",
        "Prototypes.forward, batch of 2",
    ]
    assert all(float(row.split("|")[2]) > 0 and math.isfinite(float(row.split("|")[3])) for row in rows)
