"""Classifiers on disk, of timm in this module, and copies of them with gamma in the bias of the head."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn

from .._core.files import check_source, explain_errors
from .._core.results import (
    Caution,
    Table,
    as_markdown,
    copy_with_tensors,
    import_safetensors,
    parse_json,
    read_tensors,
)
from .._models.feed import Feed
from .._models.fold import FOLDED
from .._models.fold_check import rounded_sum
from .._models.fold_trial import logits_for
from .._models.heads import find_head, single_head
from .._models.restore import RESTORED

if TYPE_CHECKING:
    from PIL.Image import Image

_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow recognises formats by content, and starts other programs for those that are not listed."""
_NAMED = 100
"""Most seen classes that the model card names."""
_WEIGHTS, _CONFIG, _CARD = "model.safetensors", "config.json", "README.md"
_WITHOUT_GAMMA = (
    "pytorch_model*.bin",
    "pytorch_model*.bin.index.json",
    "adapter_model.bin",
    "model.*.safetensors",
    "tf_model*.h5",
    "flax_model*.msgpack",
    "*.onnx",
    "*.gguf",
    "*.ot",
    "onnx",
    "openvino",
    "coreml",
    "checkpoint-*",
    ".git",
    ".cache",
    "finecal.safetensors",
)
"""Files that contain or describe the weights without gamma, or a calibrator for these weights."""
IGNORED = -100
"""The label of tokens that do not count."""
_ROUNDINGS = 16
"""Rounding steps by which the logits of a copy may differ from those of the folded model."""


class Scored(Protocol):
    """A classifier that was loaded from disk, to give logits."""

    path: Path
    class_names: tuple[str, ...] | None
    """In the order of the outputs; None if unknown."""

    @property
    def model(self) -> nn.Module:
        """In eval mode."""

    def inputs(self, items: Sequence[Any]) -> Any:
        """Return samples as the input of the model."""

    def usage(self, target: Path) -> str:
        """Return a line of Python that loads the copy."""


class SavedModel(Scored, Protocol):
    """One of texts, image files or words, with a head in torch."""

    kind: str
    """What samples are: images, texts, or words in sentences."""

    def write(self, target: Path, added: Tensor, record: Mapping[str, Any], card: str) -> Sequence[str]:
        """Write a copy with `added`, `(C,)`, in the bias of its head; return the names of files that were left out.

        `target` is an empty directory or a file, `record` the entry that `fold_into_head` makes, `card` a section of
        the model card. Files with the unchanged weights are left out.
        """

    def write_restored(self, target: Path, class_names: Sequence[str], card: str) -> Sequence[str]:
        """Write the model as it is in memory, with a head that was restored; otherwise as `write`."""

    def model_again(self, target: Path) -> nn.Module:
        """Load the copy as its user will."""


class Tagger(Protocol):
    """A classifier of the words of sentences."""

    def at_tokens(self, sentences: Sequence[Any], labels: Sequence[Tensor]) -> Tensor:
        """Return the labels of words at the tokens of `inputs`: at the first of each word; -100 at the others."""


class Batches:
    """Batches of inputs and labels, loaded on demand; for words a tensor of labels for each sentence."""

    def __init__(
        self, saved: Scored, items: Sequence[Any], labels: Tensor | Sequence[Tensor] | None, size: int
    ) -> None:
        self._saved, self._items, self._labels, self._size = saved, items, labels, size

    def __len__(self) -> int:
        return -(-len(self._items) // self._size)

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self._items), self._size):
            rows = slice(start, start + self._size)
            inputs = self._saved.inputs(self._items[rows])
            labels = None if self._labels is None else self._labels[rows]
            if isinstance(labels, Sequence):
                labels = cast(Tagger, self._saved).at_tokens(self._items[rows], labels)
            yield inputs if labels is None else (inputs, labels)


# --- images -----------------------------------------------------------------------------------------------------------


def open_images(paths: Sequence[Path], convert: Callable[[Image], Any]) -> list[Any]:
    """Open images in parallel and convert them."""

    def open_image(path: Path) -> Any:
        from PIL import Image

        try:
            with Image.open(path, formats=_FORMATS) as image:
                return convert(image)
        except Exception as error:  # decoders raise errors of any type
            raise ValueError(f"{path} is no image that can be read ({error}); remove or replace it") from error

    with ThreadPoolExecutor() as pool:
        return list(pool.map(open_image, paths))


# --- weights ----------------------------------------------------------------------------------------------------------


def biases_in(model: nn.Module, weights: Sequence[Path]) -> dict[Path, list[str]]:
    """Return the names of the head's biases in the files of weights, by file.

    Names in a file may lack a prefix of those in the model, or have an additional one; `check_written` verifies them.
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
    """Return the tensors of a file by name; those not wanted are None."""
    with explain_errors(file, ".safetensors", "save the model again"):
        return read_tensors(file, wanted)[0]


def copy_weights(
    file: Path, target: Path, biases: Sequence[str], added: Tensor, metadata: Mapping[str, str] | None = None
) -> None:
    """Copy a file of weights with `added` in its biases, summed in float32 or wider and rounded once."""
    old = tensors_of(file, biases)
    new = {}
    for name in biases:
        bias = old[name]
        assert bias is not None
        new[name] = rounded_sum(bias, added)
    copy_with_tensors(file, target, new, metadata)


def copy_others(folder: Path, target: Path, written: Sequence[str], left_out: Callable[[Path], bool]) -> list[str]:
    """Copy a directory except for the files in `written`; return the names that `left_out` excludes."""
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


def is_without_gamma(path: Path) -> bool:
    return any(fnmatch(path.name, pattern) for pattern in _WITHOUT_GAMMA)


def read_json(path: Path) -> dict[str, Any]:
    """Return the entries of a configuration."""
    check_source(path)
    try:
        entries = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); save the model again") from error
    if not isinstance(entries, dict):
        raise ValueError(f"{path} is no JSON object; save the model again")
    return entries


def check_weights(folder: Path, names: Sequence[str], pickled: str) -> None:
    """Refuse weights in a pickle, which may run any code when it is read."""
    if any((folder / name).is_file() for name in names):
        return
    if any(folder.glob(pickled.replace(".", "*."))):
        raise ValueError(
            f"{folder} has its weights in {pickled}, a pickle, which finecal never reads; where you trust it, load the "
            f"model in Python and save it again as {names[0]}"
        )
    raise FileNotFoundError(f"{folder} has no {names[0]}; give a directory of a saved model")


# --- words ------------------------------------------------------------------------------------------------------------


def card_section(
    rows: Sequence[Sequence[str]], seen: Sequence[str], num_absent: int, doubts: Sequence[str] = ()
) -> str:
    """Return the section of a model card on gamma: table rows, names of the seen classes, and warnings."""
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


def restored_section(
    rows: Sequence[Sequence[str]], tuned: Sequence[str], num_restored: int, doubts: Sequence[str] = ()
) -> str:
    """Return the section of a model card on a restored head: table rows, the fine-tuned classes, and warnings."""
    more = f", and {len(tuned) - _NAMED} more" if len(tuned) > _NAMED else ""
    (first, value), *others = rows
    text = as_markdown(
        [
            [
                f"This model was fine-tuned with a new head of {len(tuned)} classes. Its head now has {num_restored} "
                "classes of the pre-trained model as well: their rows are a ridge regression of the pre-trained "
                "model's logits on the features of this one, with a number, gamma, in their bias. All other weights "
                "are those of the fine-tuned model. It is loaded and used like any other, and does not need finecal. "
                "Do not add gamma again.",
                Table([first, value], others),
                *(Caution(f"Warning: {sentence}") for sentence in doubts),
                f"Classes of the fine-tuning: {', '.join(tuned[:_NAMED])}{more}.",
            ]
        ]
    )
    return f"## Head restored for classes without fine-tuning data\n\n{text}\n"


def write_card(target: Path, old: bytes | None, title: str, card: str) -> None:
    """Write a model card: the old bytes, in any encoding, or a title, and a section on gamma."""
    start = f"# {title}".encode() if old is None else old.rstrip()
    (target / _CARD).write_bytes(start + f"\n\n{card}".encode())


def write_record(source: Path, target: Path, key: str, record: Mapping[str, Any]) -> None:
    """Copy a JSON configuration with an additional entry."""
    config = json.loads(source.read_text(encoding="utf-8"))
    target.write_text(json.dumps({**config, key: record}, indent=2) + "\n", encoding="utf-8")


@contextmanager
def explain_load_errors(path: object, what: str) -> Iterator[None]:
    """Raise any error of other libraries as a ValueError of one sentence."""
    try:
        yield
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[:3]) or type(error).__name__
        raise ValueError(f"{path}: {what} cannot be loaded ({reason:.400})") from error


FOLD_IN_PYTHON = "fold from Python: fold_into_head(model, calibrator, inputs=...), then save the model"


def check_written(
    saved: SavedModel, target: Path, items: Sequence[Any], expected: Tensor, advice: str = FOLD_IN_PYTHON
) -> None:
    """Load the copy, and raise unless its logits for `items` equal `expected`, those of the model in memory."""
    model = saved.model_again(target)
    logits = logits_for(model, Feed(model).to_model_device(saved.inputs(items)))
    size = float(expected[expected.isfinite()].abs().max())
    tolerance = _ROUNDINGS * torch.finfo(expected.dtype).eps * size
    if logits.shape != expected.shape or not torch.allclose(logits, expected, rtol=0.0, atol=tolerance, equal_nan=True):
        raise ValueError(
            f"the copy of {saved.path} was loaded to try it, and does not give the logits that it should; {advice}"
        )


# --- timm -------------------------------------------------------------------------------------------------------------


class SavedTimm:
    """A model of timm on `device`.

    Parameters
    ----------
    path : Path
        The ``.safetensors`` file of its `state_dict`; without `name` a directory that timm has saved.
    name : str, optional
        Of the model in timm.

    Raises
    ------
    ImportError
        If timm is not installed.
    ValueError, OSError
        If timm has no such model, or the weights do not fit it, have another format, or have gamma in them already.
    """

    kind = "images"

    def __init__(self, path: Path, name: str | None = None, *, device: torch.device) -> None:
        try:
            import timm
        except ImportError as error:
            of_what = f"{path} was saved by timm, and" if name is None else "--timm"
            raise ImportError(f"{of_what} needs timm ({error}): pip install 'finecal[timm]'") from error
        self.path, self._device = path, device
        self.class_names: tuple[str, ...] | None = None
        self._is_directory = name is None
        self._weights = path / _WEIGHTS if self._is_directory else path
        self._source = f"local-dir:{path}" if self._is_directory else name
        config = read_json(path / _CONFIG) if self._is_directory else {}
        self._name: str = config["architecture"] if name is None else name
        if not timm.is_model(self._name):
            raise ValueError(
                f"{path / _CONFIG if name is None else '--timm'} {self._name}: timm {timm.__version__} has no model of "
                "this name; see timm.list_models()"
            )
        if self._is_directory:
            check_weights(path, [_WEIGHTS], "pytorch_model.bin")
        _check_timm_format(self._weights)
        with explain_errors(self._weights, ".safetensors", "save the model again"):
            tensors, metadata = read_tensors(self._weights)
        if {FOLDED, RESTORED} & {*metadata, *config}:
            raise ValueError(
                f"{path} has gamma in its head already, as it records; use it as it is, or start from what it was made "
                "from"
            )
        with explain_load_errors(path, f"the weights of {self._name}"):
            self.model = self._loaded(tensors, _count_timm_classes(self._name, tensors))
        names = config.get("label_names")
        if isinstance(names, list) and len(names) == self.model.num_classes:
            self.class_names = tuple(map(str, names))
        data = timm.data.resolve_model_data_config(self.model)
        self._transform: Any = timm.data.create_transform(**data, is_training=False)

    def inputs(self, items: Sequence[Any]) -> Tensor:
        """Return image files as the model's input, `(B, 3, H, W)`."""
        return torch.stack(open_images(items, lambda image: self._transform(image.convert("RGB"))))

    def write(self, target: Path, added: Tensor, record: Mapping[str, Any], card: str) -> Sequence[str]:
        """Write the weights with `added` in the bias of the head; into a directory, configuration and card as well."""
        left_out = self._write_others(target, {FOLDED: record}, self.class_names, card)
        (names,) = biases_in(self.model, [self._weights]).values()
        copy_weights(self._weights, _weights_at(target), names, added, {FOLDED: json.dumps(record)})
        return left_out

    def write_restored(self, target: Path, class_names: Sequence[str], card: str) -> Sequence[str]:
        """Write the model as it is in memory; into a directory, configuration and card as well."""
        record = vars(single_head(self.model))[RESTORED]
        left_out = self._write_others(target, {RESTORED: record}, class_names, card)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.model.state_dict().items()}
        import_safetensors().torch.save_file(tensors, _weights_at(target), {RESTORED: json.dumps(record)})
        return left_out

    def _write_others(
        self, target: Path, record: Mapping[str, Any], class_names: Sequence[str] | None, card: str
    ) -> Sequence[str]:
        """Write all but the weights into a directory; nothing where `target` is to be a file."""
        import timm.models

        if not target.is_dir():
            return []
        left_out: Sequence[str] = []
        card_before, title = None, self._name
        if self._is_directory:
            left_out = copy_others(self.path, target, (_CONFIG, _WEIGHTS, _CARD), is_without_gamma)
            config = read_json(self.path / _CONFIG)
            if (self.path / _CARD).is_file():
                card_before = (self.path / _CARD).read_bytes()
            title = self.path.resolve().name
        else:
            timm.models.save_for_hf(self.model, str(target), safe_serialization=True)
            config = read_json(target / _CONFIG)
        config["num_classes"] = self.model.num_classes
        for name in ("model_args", "pretrained_cfg"):  # a second mention, which transformers would pass on twice
            config.get(name, {}).pop("num_classes", None)
        if class_names is not None:
            config.pop("label_descriptions", None)
            config["label_names"] = list(class_names)
        (target / _CONFIG).write_text(json.dumps({**config, **record}, indent=2) + "\n", encoding="utf-8")
        write_card(target, card_before, title, card)
        return left_out

    def model_again(self, target: Path) -> nn.Module:
        """Load the copy."""
        return self._loaded(read_tensors(_weights_at(target))[0], self.model.num_classes)

    def _loaded(self, tensors: Mapping[str, Tensor | None], num_classes: Any) -> nn.Module:
        import timm

        model: nn.Module = timm.create_model(self._source, pretrained=False, num_classes=num_classes)
        model.load_state_dict(tensors)
        return model.to(self._device).eval()

    def usage(self, target: Path) -> str:
        """Return a line of Python that loads the copy."""
        if target.is_dir():
            return f'timm.create_model("local-dir:{target}", pretrained=True)'
        classes = self.model.num_classes
        return f'timm.create_model("{self._name}", num_classes={classes}, checkpoint_path="{target}")'


def is_of_timm(folder: Path) -> bool:
    """Whether timm has saved a directory; those of its models in transformers have a type."""
    entries = read_json(folder / _CONFIG) if (folder / _CONFIG).is_file() else {}
    return isinstance(entries.get("architecture"), str) and "model_type" not in entries


def _weights_at(target: Path) -> Path:
    return target / _WEIGHTS if target.is_dir() else target


def _count_timm_classes(name: str, tensors: Mapping[str, Tensor | None]) -> int:
    """Return the number of rows of the head of a checkpoint."""
    import timm

    classifier = timm.get_pretrained_cfg(name).classifier
    heads = classifier if isinstance(classifier, (tuple, list)) else (classifier,)
    for head in heads:
        weight = tensors.get(f"{head}.weight")
        if weight is not None:
            return weight.shape[0]
    raise ValueError(f"it has no {heads[0]}.weight, the head of {name}")


def _check_timm_format(path: Path) -> None:
    """Refuse a pickle, which may run any code when it is read, and show how to convert it."""
    check_source(path)
    if path.suffix.lower() != ".safetensors":
        raise ValueError(
            f"{path} is no .safetensors, and finecal never reads a pickle; where you trust the file, convert it: "
            "python -c \"import torch, safetensors.torch as s; c = torch.load('"
            f"{path}', map_location='cpu', weights_only=True); s.save_file({{k: v.clone() for k, v in "
            f"c.get('state_dict', c).items()}}, '{path.name.partition('.')[0]}.safetensors')\""
        )
