"""A classifier on the disk: what its model takes, and a copy of it with something added to the bias of its head."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ..models.feed import Feed
from ..models.fold_proof import logits_for
from ..models.foldable import rounded_sum
from ..models.heads import find_head
from ..results.display import Caution, Table, as_markdown
from ..results.files import explain_errors
from ..results.tensors import copy_with_tensors, read_tensors

if TYPE_CHECKING:
    from PIL.Image import Image

_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow tells formats by content, and starts other programs for some."""
_NAMED = 100
_ROUNDINGS = 16
"""Steps of the dtype by which the logits of a copy may miss those of the folded model."""


class SavedModel(Protocol):
    """A classifier that was loaded from the disk.

    Attributes
    ----------
    path : Path
        Where it was loaded from.
    model : nn.Module
        In eval mode.
    class_names : tuple of str, or None
        In the order of its outputs, where they are known.
    takes_images : bool
        Whether its samples are images; else they are texts.
    """

    path: Path
    model: nn.Module
    class_names: tuple[str, ...] | None
    takes_images: bool

    def inputs(self, items: Sequence[Any]) -> Any:
        """Return what the model is called with for some texts, or files of images."""

    def write(self, target: Path, added: Tensor, record: Mapping[str, Any], card: str) -> Sequence[str]:
        """Write a copy with `added` in the bias of its head; return what was left out, as it has the weights without.

        Parameters
        ----------
        target : Path
            A directory that is empty, or a file.
        added : (C,) tensor
            What the logits gain.
        record : mapping
            What is recorded of it, as in `fold_into_head`.
        card : str
            A section for the model card.
        """

    def model_again(self, target: Path) -> nn.Module:
        """Load what `write` has written, as its user will."""

    def usage(self, target: Path) -> str:
        """Return a line of Python that loads it."""


class Batches:
    """Batches of inputs and labels, made as they are asked for."""

    def __init__(self, saved: SavedModel, items: Sequence[Any], labels: Tensor | None, size: int) -> None:
        self._saved, self._items, self._labels, self._size = saved, items, labels, size

    def __len__(self) -> int:
        return -(-len(self._items) // self._size)

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self._items), self._size):
            rows = slice(start, start + self._size)
            inputs = self._saved.inputs(self._items[rows])
            yield inputs if self._labels is None else (inputs, self._labels[rows])


# --- images -----------------------------------------------------------------------------------------------------------


def opened_images(paths: Sequence[Path], convert: Callable[[Image], Any]) -> list[Any]:
    """Return images after `convert`, several of them at a time."""

    def opened(path: Path) -> Any:
        from PIL import Image

        try:
            with Image.open(path, formats=_FORMATS) as image:
                return convert(image)
        except Exception as error:  # of any kind: decoders raise what they stumble over
            raise ValueError(f"{path} is no image that can be read ({error}); remove or replace it") from error

    with ThreadPoolExecutor() as pool:
        return list(pool.map(opened, paths))


# --- weights ----------------------------------------------------------------------------------------------------------


def biases_in(model: nn.Module, weights: Sequence[Path]) -> dict[Path, list[str]]:
    """Return under which names the biases of the model's head are in files of weights, by file.

    Names in a file may lack, or have, a prefix of those in the model. `check_written` shows whether they are right.
    """
    found: dict[Path, list[str]] = {}
    names = {file: list(tensors_of(file)) for file in weights}
    for layer in find_head(model).names:
        wanted = f"{layer}.bias"
        exact = [(file, name) for file in weights for name in names[file] if name == wanted]
        near = [
            (file, name)
            for file in weights
            for name in names[file]
            if wanted.endswith(f".{name}") or name.endswith(f".{wanted}")
        ]
        places = exact or near
        if len(places) != 1:
            where = weights[0] if len(weights) == 1 else weights[0].parent
            raise ValueError(
                f"{where} has {len(places)} tensors that may be {wanted}, the bias of the head, in place of one; fold "
                "from Python: fold_into_head(model, calibrator, inputs=...), then save the model"
            )
        found.setdefault(places[0][0], []).append(places[0][1])
    return found


def tensors_of(file: Path, wanted: Sequence[str] = ()) -> dict[str, Tensor | None]:
    """Return the tensors of a file by name, None for those that are not wanted."""
    with explain_errors(file, ".safetensors", "save the model again"):
        return read_tensors(file, wanted)[0]


def copy_weights(
    file: Path, target: Path, biases: Sequence[str], added: Tensor, metadata: Mapping[str, str] | None = None
) -> None:
    """Copy a file of weights with something added to biases, in float32 or wider, and rounded once."""
    old = tensors_of(file, biases)
    new = {}
    for name in biases:
        bias = old[name]
        assert bias is not None
        new[name] = rounded_sum(bias, added)
    copy_with_tensors(file, target, new, metadata)


def copy_others(folder: Path, target: Path, written: Sequence[str], left_out: Callable[[Path], bool]) -> list[str]:
    """Copy a directory but for files that are written anew, by their paths in it, and for others; return these."""
    others = []
    for source in sorted(folder.iterdir()):
        name = source.name
        if left_out(source):
            others.append(f"{name}/" if source.is_dir() else name)
        elif source.is_dir():
            shutil.copytree(source, target / name, copy_function=shutil.copyfile)
        elif name not in written:
            shutil.copyfile(source, target / name)
    return others


# --- words ------------------------------------------------------------------------------------------------------------


def card_section(
    rows: Sequence[Sequence[str]], seen: Sequence[str], num_absent: int, doubts: Sequence[str] = ()
) -> str:
    """Return what a model card says of gamma, from rows of a table, the names of the seen classes, and warnings."""
    more = f", and {len(seen) - _NAMED} more" if len(seen) > _NAMED else ""
    (gamma, value), *others = rows
    text = as_markdown(
        [
            [
                f"This model was fine-tuned on samples of {len(seen)} of its {len(seen) + num_absent} classes. "
                "Fine-tuning raises the scores of these classes against those of the others, which are then hardly "
                f"ever predicted. To bring them back, a number, gamma, was added to the bias of the other {num_absent} "
                "classes in the classification head. All other weights are those of the fine-tuned model. It is loaded "
                "and used as before, and does not need finecal, which estimated gamma. Do not add gamma again.",
                Table([gamma, value], others),
                *(Caution(f"Warning: {sentence}") for sentence in doubts),
                f"Classes of the fine-tuning data: {', '.join(seen[:_NAMED])}{more}.",
            ]
        ]
    )
    return f"## Calibrated for classes without fine-tuning data\n\n{text}\n"


def write_card(target: Path, old: bytes | None, title: str, card: str) -> None:
    """Write a model card: the old one, if there was one, in whatever encoding, and a section on gamma."""
    start = f"# {title}".encode() if old is None else old.rstrip()
    (target / "README.md").write_bytes(start + f"\n\n{card}".encode())


def write_record(source: Path, target: Path, key: str, record: Mapping[str, Any]) -> None:
    """Copy a configuration in JSON with one entry more."""
    config = json.loads(source.read_text(encoding="utf-8"))
    target.write_text(json.dumps({**config, key: record}, indent=2) + "\n", encoding="utf-8")


@contextmanager
def loading(path: object, what: str) -> Iterator[None]:
    """What other libraries raise while they load something, as one sentence."""
    try:
        yield
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[:3]) or type(error).__name__
        raise ValueError(f"{path}: {what} cannot be loaded ({reason:.400})") from error


def check_written(saved: SavedModel, target: Path, items: Sequence[Any], expected: Tensor) -> None:
    """Load what was written, and compare its logits with `expected`, those of the folded model for some samples."""
    model = saved.model_again(target)
    logits = logits_for(model, Feed(model).to_model_device(saved.inputs(items)))
    size = float(expected[expected.isfinite()].abs().max())
    tolerance = _ROUNDINGS * torch.finfo(expected.dtype).eps * size
    if logits.shape != expected.shape or not torch.allclose(logits, expected, rtol=0.0, atol=tolerance, equal_nan=True):
        raise ValueError(
            f"the copy of {saved.path} was loaded to try it, and does not give the logits that it should; fold from "
            "Python: fold_into_head(model, calibrator, inputs=...), then save the model"
        )
