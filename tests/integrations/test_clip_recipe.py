"""The recipe in docs/how-to/clip.md, on a small CLIP with random weights."""

import re
from pathlib import Path

import open_clip
import pytest
import torch
from torch.nn import functional as F

import finecal

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "clip.md"
NAMES = ["cat", "dog", "axolotl", "hen"]


@pytest.mark.filterwarnings("ignore::finecal.FinecalWarning")
def test_zero_shot_clip():
    torch.manual_seed(0)
    clip = open_clip.CLIP(
        embed_dim=32,
        vision_cfg={"image_size": 16, "layers": 1, "width": 64, "patch_size": 8},
        text_cfg={"width": 64, "heads": 2, "layers": 1},
    )
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    (recipe,) = (b for b in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "ZeroShot" in b)
    definition = recipe.partition("\n\n\nclassifier =")[0]
    names = {"finecal": finecal, "torch": torch, "clip": clip, "tokenizer": tokenizer, "class_names": NAMES}
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
