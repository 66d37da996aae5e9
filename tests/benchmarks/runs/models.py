"""Small classifiers: an encoder that makes features of inputs, and a head that makes logits of features."""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize


class Classifier(nn.Module):
    """An encoder with ``width`` features and a linear head over all classes."""

    def __init__(self, encoder: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.width, num_classes)

    def features(self, inputs: Tensor) -> Tensor:
        """Return what the head sees, ``(N, width)``."""
        return self.encoder(inputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits ``(N, C)``."""
        return self.head(self.features(inputs))

    def linear_head(self) -> tuple[Tensor, Tensor]:
        """Return the weight ``(C, width)`` and bias ``(C,)`` that make the logits of the features."""
        return self.head.weight.detach(), self.head.bias.detach()


class CosineClassifier(Classifier):
    """The same with a cosine head: features and rows of length one, and no bias."""

    scale = 20.0

    def features(self, inputs: Tensor) -> Tensor:
        return F.normalize(super().features(inputs), dim=1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.features(inputs) @ self._rows().T

    def linear_head(self) -> tuple[Tensor, Tensor]:
        return self._rows().detach(), torch.zeros(self.head.out_features)

    def _rows(self) -> Tensor:
        return self.scale * F.normalize(self.head.weight, dim=1)


# --- encoders ---------------------------------------------------------------------------------------------------------


class ImageEncoder(nn.Module):
    """Three convolutions that halve a one- or three-channel image each, and a linear layer; batch norm in between."""

    def __init__(self, channels: int = 1, width: int = 128, layer_norm: bool = False) -> None:
        super().__init__()
        self.width = width
        depths = (channels, 16, 32, 64)
        kernels = (5, 3, 3)
        blocks = [
            nn.Sequential(
                nn.Conv2d(before, after, kernel, stride=2, padding=kernel // 2, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            )
            for before, after, kernel in zip(depths, depths[1:], kernels, strict=False)
        ]
        self.convolutions = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.linear = nn.Linear(16 * depths[-1], width)
        self.last = nn.LayerNorm(width) if layer_norm else nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.linear(self.convolutions(images.float() / 255)))


class CharacterEncoder(nn.Module):
    """Filters of 2 to 5 characters over character codes ``(N, L)``, the maximum of each over the text."""

    def __init__(self, num_codes: int, width: int = 192) -> None:
        super().__init__()
        self.width = width
        self.embedding = nn.Embedding(num_codes, 32, padding_idx=0)
        self.filters = nn.ModuleList(nn.Conv1d(32, width // 4, size, padding=size // 2) for size in (2, 3, 4, 5))

    def forward(self, codes: Tensor) -> Tensor:
        embedded = self.embedding(codes).transpose(1, 2)
        return torch.cat([F.relu(convolve(embedded)).amax(dim=2) for convolve in self.filters], dim=1)


class TransformerEncoder(nn.Module):
    """Two transformer layers over character codes ``(N, L)``; the mean over the text, with layer norm."""

    def __init__(self, num_codes: int, max_length: int, width: int = 64) -> None:
        super().__init__()
        self.width = width
        self.embedding = nn.Embedding(num_codes, width, padding_idx=0)
        self.position = nn.Parameter(0.1 * torch.randn(max_length, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.last = nn.LayerNorm(width)

    def forward(self, codes: Tensor) -> Tensor:
        padding = codes == 0
        hidden = self.layers(
            self.embedding(codes) + self.position[: codes.shape[1]],
            src_key_padding_mask=padding,
        )
        kept = (~padding).unsqueeze(2)
        return self.last((hidden * kept).sum(1) / kept.sum(1))


class NgramEncoder(nn.Module):
    """A two-layer perceptron on the mean embedding of hashed n-grams ``(N, M)``, with layer norm."""

    def __init__(self, num_codes: int, width: int = 128) -> None:
        super().__init__()
        self.width = width
        self.embedding = nn.EmbeddingBag(num_codes, width, mode="mean", padding_idx=0)
        self.hidden = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, width),
        )
        self.last = nn.LayerNorm(width)

    def forward(self, codes: Tensor) -> Tensor:
        return self.last(self.hidden(self.embedding(codes)))


class PixelEncoder(nn.Module):
    """A two-layer perceptron on flattened images, without any normalisation."""

    def __init__(self, pixels: int, width: int = 64) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(nn.Linear(pixels, 128), nn.ReLU(), nn.Linear(128, width), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images.flatten(1).float() / 255)


# --- what is trained --------------------------------------------------------------------------------------------------


class LowRank(nn.Module):
    """A weight plus an update of low rank, which starts at zero (LoRA)."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        self.down = nn.Parameter(torch.randn(rank, columns) / math.sqrt(columns))
        self.up = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).view_as(weight)


def trainable_copy(model: Classifier, trained: str, rank: int = 4) -> Classifier:
    """Return a copy of which "all" weights, the "head", or the head and a "low-rank" update require a gradient."""
    model = copy.deepcopy(model)
    if trained == "all":
        return model
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    if trained == "low-rank":
        for layer in list(model.encoder.modules()):
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.Conv1d):
                parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank))
    return model
