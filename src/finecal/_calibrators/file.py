"""Calibrators as files: tensors in safetensors, all else as JSON in its metadata. Nothing is ever executed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._core.arrays import check_dim
from .._core.files import PathLike, check_destination, check_source, explain_errors, write_atomically
from .._core.results import decoded_fields, encoded_fields, entry, import_safetensors, parse_json, read_tensors
from .._core.seen_mask import ClassNames, ordered_class_names
from .._estimators.estimate import GammaEstimate
from .._version import __version__
from .additive_bias import AdditiveBias, Calibrator
from .class_bias import ClassBias, ClassBiasReport
from .group_temperature import GroupTemperature
from .normalization import NormalizedLogits
from .prototypes import Prototypes, PrototypesReport
from .temperature import Temperature, TemperatureFit

_FORMAT = 1
_METADATA = "finecal"
"""The one key of the metadata: safetensors does not keep the order of several, and equal files have equal bytes."""
_SUFFIX = ".safetensors"
_DAMAGED = "its content does not match its checksum, so it was damaged or edited"
_AGAIN = "fetch it again, or write it anew with finecal.save(calibrator, path)"


@dataclass(frozen=True)
class _Kind:
    """A calibrator: its buffers, which are its constructor's arguments too, and the accounts of its fit."""

    module: type[Calibrator]
    buffers: tuple[str, ...]
    accounts: Mapping[str, type[Any]] = field(default_factory=dict)


_KINDS = {
    kind.module.__name__: kind
    for kind in (
        _Kind(AdditiveBias, ("seen_mask", "gamma"), {"estimate": GammaEstimate}),
        _Kind(Temperature, ("temperature",), {"report": TemperatureFit}),
        _Kind(GroupTemperature, ("seen_mask", "seen_temperature", "absent_temperature"), {"report": TemperatureFit}),
        _Kind(NormalizedLogits, ("loc", "scale")),
        _Kind(ClassBias, ("bias",), {"report": ClassBiasReport}),
        _Kind(
            Prototypes,
            ("seen_mask", "gamma", "weight", "center"),
            {"estimate": GammaEstimate, "report": PrototypesReport},
        ),
    )
}
_SHAPES = {"seen_mask": "C", "loc": "C", "scale": "C", "bias": "C", "weight": "CD", "center": "D"}
"""Shapes of the buffers that are not single numbers: C classes, D features."""


def save(calibrator: nn.Module, path: PathLike, *, class_names: ClassNames | None = None) -> None:
    """Save a calibrator, with its estimate and report, as a safetensors file.

    Parameters
    ----------
    calibrator : nn.Module
        One of finecal's calibrators, or an ``nn.Sequential`` of such, which may be nested. On any device but meta.
    path : path
        Ends with ``.safetensors``. The file is there whole or not at all; an old one stays until then.
    class_names : sequence of C str or dict, optional
        In the order of the columns of the logits. By default those that `load` found, if it is a loaded calibrator.

    Raises
    ------
    ImportError
        If the package safetensors is missing: ``pip install 'finecal[io]'``.
    OSError
        If `path` cannot be written.
    TypeError, ValueError
        If `calibrator` holds other modules, or values that its constructor refuses or its estimate contradicts; if
        `path` ends otherwise, parts differ in the number of classes, or `class_names` are not one str per class.

    Notes
    -----
    The file also keeps `method`, `dim`, `estimate` and `report`, the version of finecal and a checksum, but no time:
    equal calibrators give equal bytes. The format has a number; a later finecal reads the files of this one.

    Examples
    --------
    >>> import os, tempfile, finecal
    >>> path = os.path.join(tempfile.mkdtemp(), "calibrator.safetensors")
    >>> calibrator = finecal.AdditiveBias([True, True, False], gamma=1.5)
    >>> finecal.save(calibrator, path, class_names=["cat", "dog", "axolotl"])
    >>> loaded = finecal.load(path)
    >>> loaded, loaded.class_names
    (AdditiveBias(gamma=1.5, seen=2, absent=1), ('cat', 'dog', 'axolotl'))
    """
    check_destination(path, (_SUFFIX,))
    tensors: dict[str, Tensor] = {}
    part = _describe(calibrator, "", tensors)
    names = getattr(calibrator, "class_names", None) if class_names is None else class_names
    if names is not None:
        names = ordered_class_names(names)
    lengths = [tensor.shape[0] for name, tensor in tensors.items() if _shape(name).startswith("C")]
    record = {
        "format": _FORMAT,
        "finecal": __version__,
        "num_classes": lengths[0] if lengths else None,
        "class_names": None if names is None else list(names),
        "calibrator": part,
    }
    record["sha256"] = _checksum(record, tensors)
    try:
        _restore(record, tensors)
    except ValueError as error:
        raise ValueError(f"calibrator could not be loaded again: {error}") from error
    write_atomically(path, import_safetensors().torch.save(tensors, {_METADATA: json.dumps(record)}))


def load(path: PathLike) -> nn.Module:
    """Load a calibrator that `save` wrote, on the CPU. Nothing in the file is executed.

    Parameters
    ----------
    path : path
        The file, whatever its name now.

    Returns
    -------
    nn.Module
        With the same outputs to the bit, and its `method`, `estimate` or `report`. Its attribute `class_names` is a
        tuple of str, or None if none were saved. Parts of an ``nn.Sequential`` go by number.

    Raises
    ------
    ImportError
        As `save`.
    OSError
        If `path` cannot be read.
    ValueError
        In one sentence that names the file, if it is truncated, damaged (the checksum finds every changed bit), of
        another kind, or written by a finecal with a newer format.
    """
    path = Path(path)
    check_source(path)
    _refuse_pickle(path)
    with (
        torch.device("cpu"),  # Whatever the default device is.
        explain_errors(path, _SUFFIX, _AGAIN),
    ):
        read, metadata = read_tensors(path)
    tensors = {name: tensor for name, tensor in read.items() if tensor is not None}
    if _METADATA not in metadata:
        held = ", ".join(map(repr, list(tensors)[:3])) + ", ..." * (len(tensors) > 3)
        raise ValueError(
            f"{path} is a safetensors file, but of no calibrator (it holds {held or 'nothing'}); give one that "
            "finecal.save wrote"
        )
    try:
        record = parse_json(metadata[_METADATA])
        version, writer = entry(record, "format", int), entry(record, "finecal", str)
        if version < 1:
            raise ValueError(f"its format is {version}, but the first one was 1")
        if version <= _FORMAT:
            module = _restore(record, tensors)
            if json.dumps(record) != metadata[_METADATA]:  # A damaged last digit may be of the same number.
                raise ValueError(_DAMAGED)
            return module
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}; {_AGAIN}") from error
    raise ValueError(
        f"{path} was written by finecal {writer} in format {version}, but this finecal reads formats up to {_FORMAT}; "
        "update it: pip install --upgrade finecal"
    )


def _refuse_pickle(path: Path) -> None:
    """Say of a renamed pickle what it is: torch.save writes a zip archive, pickle.dump the protocol's number first."""
    with open(path, "rb") as file:
        start = file.read(9)
    # The length of a safetensors header may begin with the same byte; "{" follows, unless the file was cut off there.
    if start.startswith((b"PK\x03\x04", b"\x80")) and start[8:] not in (b"{", b""):
        raise ValueError(
            f"{path} is a pickle, as torch.save writes it, and no safetensors file; to read it could run any code, so "
            "finecal does not: load it by torch.load where you trust it, and write it anew with "
            "finecal.save(calibrator, path)"
        )


def _describe(module: nn.Module, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return what JSON says of a module, and put its buffers among the `tensors`."""
    if type(module) is nn.Sequential and len(module):
        parts = [_describe(part, f"{prefix}{number}.", tensors) for number, part in enumerate(module)]
        return {"kind": "Sequential", "parts": parts}
    kind = _KINDS.get(type(module).__name__)
    if kind is None or not isinstance(module, Calibrator) or type(module) is not kind.module:
        where = f" in part {prefix.removesuffix('.')}" if prefix else ""
        raise TypeError(
            f"calibrator is a {type(module).__name__}{where}; save takes {', '.join(_KINDS)} and an nn.Sequential of "
            "these: pass the calibrator without the model, and save the model on its own"
        )
    for name in kind.buffers:
        buffer = module.get_buffer(name).detach()
        if buffer.is_meta:
            raise ValueError(f"{prefix}{name} is on the meta device and has no values; load the calibrator's state")
        tensors[prefix + name] = buffer.to("cpu", copy=True, memory_format=torch.contiguous_format)
    described: dict[str, Any] = {"kind": type(module).__name__, "method": module.method}
    if module.dim != -1:
        described["dim"] = module.dim
    accounts = {name: getattr(module, name) for name in kind.accounts}
    return described | {name: encoded_fields(value) for name, value in accounts.items() if value is not None}


def _checksum(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps({key: record[key] for key in record if key != "sha256"}).encode())
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].numpy().tobytes())
    return digest.hexdigest()


def _restore(record: Any, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Build what a file describes, or say in a ValueError what is wrong with it."""
    num_classes = entry(record, "num_classes", int | None)
    names = entry(record, "class_names", tuple[str, ...] | None)
    if names is not None and num_classes not in (None, len(names)):
        raise ValueError(f"there are {len(names)} class names for {num_classes} classes; give one per class, in order")
    left = dict(tensors)
    module = _build(entry(record, "calibrator", dict), "", left, num_classes)
    if left:
        raise ValueError(f"it holds {min(left)!r}, which belongs to no part of the calibrator")
    if entry(record, "sha256", str) != _checksum(record, tensors):
        raise ValueError(_DAMAGED)
    module.class_names = names
    return module


def _build(part: Any, prefix: str, left: dict[str, Tensor], num_classes: int | None) -> nn.Module:
    """Build a part and, if it is a sequence, its parts; take their buffers out of those that are `left`."""
    name = entry(part, "kind", str)
    if name == "Sequential":
        parts = entry(part, "parts", list)
        if not parts:
            raise ValueError("a Sequential in it holds no calibrator")
        return nn.Sequential(
            *(_build(inner, f"{prefix}{number}.", left, num_classes) for number, inner in enumerate(parts))
        )
    if name not in _KINDS:
        raise ValueError(f"the calibrator is of the unknown kind {name!r} (known: {', '.join(_KINDS)})")
    kind = _KINDS[name]
    buffers = {buffer: _take(prefix + buffer, left, num_classes) for buffer in kind.buffers}
    method = entry(part, "method", str | None)
    with torch.device("cpu"):  # Constructors put numbers on the default device.
        module = kind.module(**buffers)
        module.method = method
        if "dim" in part:  # left out of the file where it is -1
            module.dim = check_dim(entry(part, "dim", int))
        for what in kind.accounts.keys() & part.keys():
            account = decoded_fields(entry(part, what, dict), what, kind.accounts[what])
            setattr(module, what, account)
            if isinstance(account, GammaEstimate) and AdditiveBias(buffers["seen_mask"], account).gamma != module.gamma:
                raise ValueError(
                    f"{prefix}gamma is {float(buffers['gamma']):.6g}, but that of its estimate {account.gamma:.6g}; if "
                    "it was changed on purpose, set the calibrator's estimate to None"
                )
    return module


def _take(name: str, left: dict[str, Tensor], num_classes: int | None) -> Tensor:
    """Take a buffer out of those that are `left`: of the right dtype and shape; constructors check the values."""
    if name not in left:
        raise ValueError(f"it lacks {name!r}")
    tensor = left.pop(name)
    dtype, shape = torch.bool if name.endswith("seen_mask") else torch.float32, _shape(name)
    if tensor.dtype != dtype or tensor.ndim != len(shape):
        expected = f"({shape},)" if len(shape) == 1 else f"({', '.join(shape)})"
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)} and dtype {str(tensor.dtype).removeprefix('torch.')}; expected "
            f"{expected} and {str(dtype).removeprefix('torch.')}"
        )
    if shape.startswith("C") and tensor.shape[0] != num_classes:
        raise ValueError(f"{name} has {tensor.shape[0]} entries, but the calibrator is for {num_classes} classes")
    if dtype == torch.bool and bool((tensor.view(torch.uint8) > 1).any()):
        raise ValueError(f"{name} holds bytes that are neither False nor True")
    return tensor


def _shape(name: str) -> str:
    return _SHAPES.get(name.rpartition(".")[2], "")
