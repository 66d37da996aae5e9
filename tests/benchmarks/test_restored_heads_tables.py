"""The tables of restored heads, on models that are drawn."""

import numpy as np
import pytest
import restore_cost
import restored_heads
import torch

pytestmark = pytest.mark.filterwarnings("ignore::finecal.FinecalWarning")


def write_task(path, is_new=False, seed=0, classes=8, width=6):
    """Features of clusters, an old head that knows all of them, and a new one that knows the first half."""
    rng = np.random.default_rng(seed)
    centers = 3 * rng.normal(size=(classes, width))
    old = centers + rng.normal(size=(classes, width))
    mask = np.arange(classes) < classes // 2
    new = np.where(mask[:, None], centers, old)
    arrays = {"seen_mask": mask, "pretrained_weight": old, "pretrained_bias": np.zeros(classes)}
    rows = mask if is_new else slice(None)
    arrays |= {"weight": new[rows], "bias": np.zeros(classes)[rows]}
    for part, number in (("train", 200), ("val", 80), ("test", 160)):
        labels = np.arange(number) % (classes if part == "test" else classes // 2)
        features = centers[labels] + rng.normal(size=(number, width))
        logits = (features @ new.T + 3 * mask) / 4
        arrays |= {f"{part}_labels": labels, f"{part}_features": features, f"{part}_logits": logits[:, rows]}
        arrays |= {f"pretrained_{part}_logits": features @ old.T / 4}
        if is_new:
            arrays[f"kept_{part}_logits"] = logits
    np.savez(path, **arrays)


def test_prints_tables(tmp_path, capsys):
    write_task(tmp_path / "digits_sgd.npz")
    write_task(tmp_path / "kana_sgd.npz", is_new=True, seed=1)
    write_task(tmp_path / "kana_nogap.npz", seed=1)
    restored_heads.main([str(tmp_path)])
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    found = {tuple(line[:2]): line[2:] for line in lines if len(line) == 8}
    for group in ("looked at", "others"):
        assert found["held-out seen samples", group][0] == "1"
        assert ("both models, best gamma", group) in found
        median, _, worst = found["held-out, best penalty", group][1].partition(" / ")
        assert float(median) == float(worst) >= float(found["held-out seen samples", group][1].split(" / ")[0]) - 2
    assert ("held-out seen samples", "45 to 60 % seen") in found


def test_new_and_kept_heads_are_read_alike(tmp_path):
    for is_new in (False, True):
        write_task(tmp_path / f"a_{is_new}.npz", is_new=is_new)
    kept, new = (restored_heads.read(tmp_path / f"a_{is_new}.npz") for is_new in (False, True))
    assert kept.weight.shape == new.weight.shape == (4, 6)
    assert (kept.kept["test"] == new.kept["test"]).all()
    assert restored_heads.measure(kept) == restored_heads.measure(new)


def test_classes_of_its_own_are_behind_the_old_ones(tmp_path):
    write_task(tmp_path / "a.npz")
    task = restored_heads.read(tmp_path / "a.npz")
    head, labels = restored_heads.with_own_classes(task)
    assert head.seen_mask.tolist() == [True] * 3 + [False] * 4 + [True]
    assert labels[task.test.labels == 0].unique().tolist() == [7]
    assert labels[task.test.labels == 4].unique().tolist() == [3]


def test_refuses_folders_without_tasks(tmp_path):
    with pytest.raises(SystemExit):
        restored_heads.main([str(tmp_path)])


def test_cost_is_of_the_same_head(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(restore_cost, "extra_memory", lambda run: run() or 1.0)  # Linux only
    heads = []
    for way in ("samples", "loader"):
        restore_cost.measure(way, 700, 12, 10, str(tmp_path / way))
        heads.append(torch.load(tmp_path / way))
    assert [part.shape for part in heads[0]] == [(10, 12), (10,)]
    for ours, theirs in zip(*heads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert capsys.readouterr().out.splitlines()[0].endswith(" 1")
