"""The recipe in docs/how-to/clip.md, on a small CLIP with random weights."""

import open_clip
import pytest
import torch
from torch.nn import functional as F

import finecal
from pages import blocks

NAMES = ["cat", "dog", "axolotl", "hen"]


def make_clip():
    return open_clip.CLIP(
        embed_dim=32,
        vision_cfg={"image_size": 16, "layers": 1, "width": 64, "patch_size": 8},
        text_cfg={"width": 64, "heads": 2, "layers": 1},
    )


@pytest.mark.filterwarnings("ignore::finecal.FinecalWarning")
def test_zero_shot_clip(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    clip = make_clip().eval()
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    recipe, saving, loading, other_names, checking, *_ = blocks("docs/how-to/clip.md", "python")
    definition = recipe.partition("\n\n\nclassifier =")[0]
    names = {"clip": clip, "make_clip": make_clip, "tokenizer": tokenizer, "class_names": NAMES}
    exec(definition, names)
    images = torch.randn(40, 3, 16, 16)
    with torch.no_grad():
        # A random CLIP knows nothing: the label of an image is what it takes the image for.
        logits = names["ZeroShot"](clip, tokenizer([f"a photo of a {name}" for name in NAMES]))(images)
    names["train_loader"] = [(images, logits[:, :2].argmax(1))]
    exec(recipe, names)
    calibrator, calibrated = names["calibrated"].calibrator, names["calibrated"]
    assert calibrator.seen_mask.tolist() == [True, True, False, False]
    with torch.no_grad():
        torch.testing.assert_close(
            calibrated(images), finecal.calibrate_logits(logits, calibrator.seen_mask, calibrator.gamma)
        )
        cosines = (
            F.cosine_similarity(clip.encode_image(images)[:, None], calibrated.class_embeddings[None], dim=-1)
            * clip.logit_scale.exp()
        )
        torch.testing.assert_close(logits, cosines, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="calibrate"):
        finecal.fold_into_head(calibrated.model, calibrator)

    exec(saving, names)
    exec(loading, names)
    with torch.no_grad():
        torch.testing.assert_close(names["loaded"](images), calibrated(images))

    names |= {"seen_names": NAMES[:2], "seen_loader": names["train_loader"]}
    exec(other_names, names)
    assert names["recalibrated"].calibrator.seen_mask.tolist() == [True, True, False, False]
    assert names["recalibrated"](images).shape == (40, 4)

    names["test_loader"] = [(images, torch.arange(40) % 4)]
    capsys.readouterr()
    exec(checking, names)
    assert capsys.readouterr().out.count("own group allowed") == 2
