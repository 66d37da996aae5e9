import io
import re
import shutil
import sys

import numpy as np
import pytest
import torch

import finecal

MASK = np.arange(12) < 9


class Recipe:
    """A fine-tuning that fails on its call number `failing`."""

    def __init__(self, failing=None, kind=np.asarray, **changes):
        self.failing, self.kind, self.changes, self.masks = failing, kind, changes, []

    def __call__(self, pseudo_seen_mask):
        self.masks.append(np.asarray(pseudo_seen_mask))
        if len(self.masks) - 1 == self.failing:
            raise KeyboardInterrupt
        rng = np.random.default_rng(np.packbits(self.masks[-1]).tolist())
        labels = rng.integers(0, 9, 60)
        pretrained = rng.normal(size=(60, 12)).astype(np.float32)
        pretrained[np.arange(60), labels] += 3
        logits = pretrained + 4 * self.masks[-1]
        fields = {
            "logits": self.kind(logits),
            "labels": labels,
            "pretrained_logits": self.kind(pretrained),
            "pseudo_seen_mask": pseudo_seen_mask,
            **self.changes,
        }
        mask = fields.pop("pseudo_seen_mask")
        return finecal.estimators.PseudoFold(finecal.Samples(**fields), mask)


def pseudo_cv(fine_tune, mask=MASK, **options):
    return finecal.estimators.pseudo_cv(fine_tune, mask, **{"progress": False, **options})


@pytest.mark.parametrize("average", ["micro", "macro"])
@pytest.mark.parametrize("constrained", [False, True])
def test_is_pseudo_cv_gamma_of_the_splits(constrained, average):
    train = Recipe()
    options = {"objective": "overall", "constrained": constrained, "combine": "median", "n_bootstrap": 5, "seed": 3}
    options["average"] = average
    estimate = pseudo_cv(train, n_splits=4, **options)
    splits = finecal.estimators.pseudo_cv_splits(MASK, 4, seed=3)
    assert (np.array(train.masks) == splits).all()
    assert estimate == finecal.estimators.pseudo_cv_gamma(list(map(Recipe(), splits)), MASK, **options)


@pytest.mark.parametrize(
    "kind",
    [np.asarray, torch.tensor, lambda x: torch.tensor(x).bfloat16(), np.float16],
    ids=["array", "tensor", "bfloat16 tensor", "float16 array"],
)
def test_goes_on_where_it_was_interrupted(tmp_path, kind):
    folder = tmp_path / "new" / "folds"
    with pytest.raises(KeyboardInterrupt):
        pseudo_cv(Recipe(failing=1, kind=kind), directory=folder)
    assert sorted(path.name for path in folder.iterdir()) == ["fold-0.npz"]
    rest = Recipe(kind=kind)
    resumed = pseudo_cv(rest, directory=folder, n_bootstrap=3)
    assert len(rest.masks) == 2
    assert sorted(path.name for path in folder.iterdir()) == ["fold-0.npz", "fold-1.npz", "fold-2.npz"]
    assert resumed == pseudo_cv(Recipe(kind=kind), n_bootstrap=3)


def test_groups_of_samples_are_kept(tmp_path):
    options = {"directory": tmp_path, "n_bootstrap": 20}
    first = pseudo_cv(Recipe(groups=np.arange(60) // 2), **options)
    assert len(list(tmp_path.iterdir())) == 3
    assert pseudo_cv(Recipe(failing=0), **options) == first  # nothing is trained
    assert first.interval != pseudo_cv(Recipe(), n_bootstrap=20).interval


def test_files_of_folds(tmp_path):
    """Every array under the name that it has in Samples; bfloat16 as float32."""
    bfloat16 = lambda x: torch.tensor(x).bfloat16()  # noqa: E731
    groups = np.arange(60) // 2
    pseudo_cv(Recipe(kind=bfloat16, groups=groups), directory=tmp_path, seed=3)
    split = finecal.estimators.pseudo_cv_splits(MASK, seed=3)[0]
    expected = Recipe(kind=bfloat16)(split).samples
    with np.load(tmp_path / "fold-0.npz") as stored:
        content = dict(stored)
    for name in ("logits", "pretrained_logits"):
        assert content[name].dtype == np.float32
        assert (content.pop(name) == getattr(expected, name).float().numpy()).all()
    assert (content.pop("labels") == expected.labels.numpy()).all()
    assert (content.pop("groups") == groups).all()
    assert (content.pop("pseudo_seen_mask") == split).all()
    assert (content.pop("seen_mask") == MASK).all()
    assert content == {"seed": 3}


def test_trains_only_what_is_new(tmp_path):
    pseudo_cv(Recipe(), directory=tmp_path)
    (tmp_path / "fold-1.npz").unlink()
    train = Recipe()
    pseudo_cv(train, directory=tmp_path, n_splits=4, objective="nll", constrained=True)
    assert (np.array(train.masks) == finecal.estimators.pseudo_cv_splits(MASK, 4)[[1, 3]]).all()


def test_masks_of_every_type(tmp_path, device):
    expected = pseudo_cv(Recipe(), directory=tmp_path)
    mask = torch.tensor(MASK, device=device)
    kinds = set()

    def train(pseudo_seen_mask):
        kinds.add(pseudo_seen_mask.device.type)
        made = Recipe()(pseudo_seen_mask.cpu())
        given = [torch.tensor(x, device=device) for x in (made.samples.logits, made.samples.labels)]
        return finecal.estimators.PseudoFold(given, pseudo_seen_mask)

    assert pseudo_cv(train, mask) == expected
    assert kinds == {device.type}
    never = Recipe(failing=0)
    assert pseudo_cv(never, mask, directory=tmp_path) == pseudo_cv(never, MASK.tolist(), directory=tmp_path) == expected


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "is truncated or no .npz file"),
        (lambda data: b"", "is truncated or no .npz file"),
        (lambda data: b"gamma = 3", "is truncated or no .npz file|never unpickles"),
        (lambda data: npz(logits=np.array([{}])), "finecal never unpickles"),
        (lambda data: npz(logits=np.ones(3)), "no fold of pseudo_cv: it lacks seen_mask and seed and pseudo_seen_mask"),
    ],
    ids=["truncated", "empty", "text", "pickle", "foreign"],
)
def test_damaged_files(tmp_path, damage, message):
    pseudo_cv(Recipe(), directory=tmp_path)
    path = tmp_path / "fold-1.npz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"fold-1.npz .*({message}).*delete it to train this fold again"):
        pseudo_cv(Recipe(failing=0), directory=tmp_path)


@pytest.mark.parametrize(
    ("options", "differing"),
    [
        ({"seed": 1}, "seed and pseudo_seen_mask differ"),
        ({"mask": MASK[::-1].copy()}, "seen_mask and pseudo_seen_mask differ"),
        ({"mask": MASK[:11]}, "seen_mask and pseudo_seen_mask differ"),
    ],
)
def test_files_of_another_run(tmp_path, options, differing):
    pseudo_cv(Recipe(), directory=tmp_path)
    with pytest.raises(ValueError, match=f"fold-0.npz is of another run: its {differing} .*another directory"):
        pseudo_cv(Recipe(failing=0), directory=tmp_path, **options)


def test_file_of_another_split(tmp_path):
    pseudo_cv(Recipe(), directory=tmp_path)
    shutil.copy(tmp_path / "fold-0.npz", tmp_path / "fold-2.npz")
    with pytest.raises(ValueError, match="fold-2.npz is of another run: its pseudo_seen_mask differ"):
        pseudo_cv(Recipe(failing=0), directory=tmp_path)


def test_file_without_what_the_constraint_needs(tmp_path):
    pseudo_cv(Recipe(pretrained_logits=None), directory=tmp_path)
    assert pseudo_cv(Recipe(failing=0), directory=tmp_path) == pseudo_cv(Recipe())
    with pytest.raises(ValueError, match="fold-0.npz: fold 0: constrained=True .* pretrained_logits"):
        pseudo_cv(Recipe(failing=0), directory=tmp_path, constrained=True)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"pseudo_seen_mask": np.arange(12) < 5},
            ValueError,
            "fold 0: fine_tune returned a fold whose pseudo_seen_mask",
        ),
        ({"labels": np.arange(60) % 12}, ValueError, "fold 0: labels contain absent class"),
    ],
)
def test_wrong_folds_are_not_kept(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        pseudo_cv(Recipe(**changes), directory=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options", [{"objective": "best"}, {"combine": "best"}, {"n_splits": 0}, {"n_bootstrap": -1}, {"seed": -1}]
)
def test_wrong_arguments_are_refused_before_training(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        pseudo_cv(Recipe(failing=0), **options)
    with pytest.raises(TypeError, match="fine_tune returned a NoneType; it must return a PseudoFold"):
        pseudo_cv(lambda mask: None)


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_a_mask_that_train_writes_to(kind):
    def train(pseudo_seen_mask, honest):
        given = np.asarray(pseudo_seen_mask).copy()
        pseudo_seen_mask[:5] = True
        return Recipe()(given if honest else np.asarray(pseudo_seen_mask))

    assert pseudo_cv(lambda mask: train(mask, honest=True), kind(MASK)) == pseudo_cv(Recipe())
    with pytest.raises(
        ValueError, match="fold 0: fine_tune returned a fold whose pseudo_seen_mask is not the one it was"
    ):
        pseudo_cv(lambda mask: train(mask, honest=False), kind(MASK))


def test_a_useless_directory_costs_no_training(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    never = Recipe(failing=0)
    for path in (tmp_path / "file", tmp_path / "file" / "folds"):
        with pytest.raises(
            OSError, match=f"directory is {re.escape(str(path))}, which cannot be made or written to .*another"
        ):
            pseudo_cv(never, directory=path)

    def refuse(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    pseudo_cv(Recipe(), directory=tmp_path)
    monkeypatch.setattr("finecal._models.pseudo_cv.TemporaryFile", refuse)
    pseudo_cv(never, directory=tmp_path)
    with pytest.raises(PermissionError, match="directory is .*Permission denied.*choose another"):
        pseudo_cv(never, directory=tmp_path, n_splits=4)
    assert not never.masks


def test_bar_counts_folds(tmp_path, capsys, monkeypatch):
    pytest.importorskip("tqdm")
    with pytest.raises(KeyboardInterrupt):
        pseudo_cv(Recipe(failing=1), directory=tmp_path)
    expected = pseudo_cv(Recipe(), directory=tmp_path, progress=True)
    assert "pseudo_cv: 100%" in (text := capsys.readouterr().err)
    assert "3/3" in text
    pseudo_cv(Recipe())
    assert capsys.readouterr().err == ""

    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert pseudo_cv(Recipe(), progress=True) == expected
    assert capsys.readouterr().err == ""
