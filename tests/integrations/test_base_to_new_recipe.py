"""The classifier over base and new names in docs/how-to/base-to-new.md, on a small CLIP with random weights."""

import open_clip
import torch
from torch.nn.functional import normalize

import finecal
from pages import blocks

BASE, NEW = ["cat", "dog", "axolotl"], ["hen", "okapi"]


def test_classifier_over_all_names():
    torch.manual_seed(0)
    clip = open_clip.CLIP(
        embed_dim=32,
        vision_cfg={"image_size": 16, "layers": 1, "width": 64, "patch_size": 8},
        text_cfg={"width": 64, "heads": 2, "layers": 1},
    ).eval()
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    templates = ["a photo of a {}.", "a drawing of a {}."]
    images, labels = torch.randn(40, 3, 16, 16), torch.arange(40) % 5
    names = {"clip": clip, "tokenizer": tokenizer, "templates": templates, "base_names": BASE, "new_names": NEW}
    names["test_loader"] = list(zip(images.split(8), labels.split(8), strict=True))
    exec(blocks("docs/how-to/base-to-new.md", "python")[0], names)
    assert names["seen_mask"].tolist() == [True, True, True, False, False]
    assert torch.equal(names["test"].labels, labels)

    # Column by column, with the mean of the two prompts' embeddings by hand.
    with torch.no_grad():
        features = normalize(clip.encode_image(images), dim=1)
        for column, name in enumerate(BASE + NEW):
            texts = normalize(clip.encode_text(tokenizer([t.format(name) for t in templates])), dim=1)
            mean = normalize(texts.mean(0), dim=0)
            expected = clip.logit_scale.exp() * features @ mean
            torch.testing.assert_close(names["test"].logits[:, column], expected, atol=1e-4, rtol=1e-4)
    report = finecal.evaluate(names["test"], names["seen_mask"])
    assert (report.n_seen, report.n_absent) == (24, 16)
