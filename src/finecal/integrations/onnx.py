"""ONNX models: their logits as those of any module, and gamma in their graph."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import ModelProto, NodeProto
from torch import Tensor, nn

from .._core.arrays import ArrayLike, NumpyArray, shape_of, to_numpy
from .._core.checks import LIKE_PROBABILITIES, are_probabilities
from .._core.files import PathLike, check_destination, check_source, explain_errors, write_atomically
from .._models.fold import FOLDED, description_of
from .._models.fold_check import dim_of, shift_by, weight_of
from ._onnx_graph import Change, add_to_logits, calibrated_by, followers, logits_behind, show_scores

Inputs: TypeAlias = ArrayLike | Mapping[str, ArrayLike]
_ROUNDINGS = 64
"""Rounding steps by which the logits of the new graph may differ: runtimes fuse and reorder sums."""
_LARGEST = 2**31 - 1
"""Bytes in one message of protobuf."""
_OLDEST_OPSET, _OLDEST_IR = 7, 4
_NUMPY = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(double)": np.float64}
_NUMPY |= {f"tensor({name})": np.dtype(name).type for name in ("int8", "uint8", "int16", "int32", "int64")}


class OnnxModel(nn.Module):
    """The logits of an ONNX model, by ONNX Runtime: a module for `collect_logits`, `CalibratedModel` and all others.

    Parameters
    ----------
    model : path or onnx.ModelProto
        A classifier. Files of external data lie beside it.
    output : str, optional
        Name of the output with the logits, or of a tensor in the graph; not needed where one output is floating-point.
        Where a softmax gives that output, the logits before it are taken.
    providers : sequence of str, default ("CPUExecutionProvider",)
        Of ONNX Runtime.

    Attributes
    ----------
    logits_name, input_names : str, tuple of str
        Names of the tensor that `forward` returns, and of those that it takes.
    record : mapping or None
        What `fold_into_onnx` has written into the model.

    Raises
    ------
    TypeError
        If `model` is neither a path nor a ModelProto.
    ValueError
        If the file is damaged, larger than the 2 GB that protobuf holds, or not valid; if the output is not to be told.

    Notes
    -----
    `forward` takes tensors or arrays, by position or by name, and returns a tensor on the CPU, without gradients.
    Floating-point inputs are cast to the type that the graph names, and so are integers. A model of a fixed batch size
    is run as often as it takes.

    Examples
    --------
    >>> scores = OnnxModel("model.onnx")  # doctest: +SKIP
    >>> samples = finecal.collect_logits(scores, loader)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: PathLike | ModelProto,
        *,
        output: str | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        super().__init__()
        proto = _loaded(model)
        self.logits_name: str = logits_behind(proto, output).name
        self.record: dict[str, Any] | None = record_of(proto)
        self._session = _session(_with_output(proto, self.logits_name), providers)
        self.input_names: tuple[Any, ...] = tuple(given.name for given in self._session.get_inputs())

    def forward(self, *args: ArrayLike, **kwargs: ArrayLike) -> Tensor:
        names = self.input_names
        if len(args) > len(names):
            raise TypeError(f"{len(args)} inputs, but the graph has {len(names)}: {', '.join(names)}")
        (logits,) = _run(self._session, [self.logits_name], {**dict(zip(names, args, strict=False)), **kwargs})
        return torch.from_numpy(logits)


def fold_into_onnx(
    model: PathLike | ModelProto,
    calibrator: nn.Module,
    inputs: Inputs,
    *,
    output: str | None = None,
    out: PathLike | None = None,
) -> ModelProto:
    r"""Return an ONNX model whose logits are calibrated, and which needs no finecal.

    What is added to the logits, :math:`\gamma [c \in U]`, goes into the bias of the last ``Gemm``, ``Conv`` or ``Add``,
    where the graph ends in one. Elsewhere, also behind quantised layers, and for temperatures, nodes are put behind the
    logits: :math:`\tilde z_c = a_c z_c + b_c`. Before a softmax, if the graph ends in one. A ``LinearClassifier`` of
    scikit-learn gets new intercepts, so that its label follows. Names and shapes of inputs
    and outputs, and the opset, stay.

    Parameters
    ----------
    model : path or onnx.ModelProto
        As in `OnnxModel`; it is not changed.
    calibrator : nn.Module
        Any that scales the logits of a class and adds to them, and an `nn.Sequential` of several: `AdditiveBias`,
        `ClassBias`, `Temperature`, `GroupTemperature`, `NormalizedLogits`. `Prototypes` need a last ``Gemm`` or
        ``MatMul`` with a weight in the graph.
    inputs : array or tensor, or mapping of these by the name of the input
        A few samples: both models are run on them by ONNX Runtime, and their logits have to differ by what the
        calibrator does.
    output : str, optional
        As in `OnnxModel`.
    out : path, optional
        A file to write the model to, whole or not at all, external data included.

    Returns
    -------
    onnx.ModelProto
        Its metadata have a record under "finecal_folded": the calibrator, the place where it went, and the outputs that
        follow the calibrated logits.

    Raises
    ------
    TypeError
        If an argument is of another type.
    ValueError
        If the model has a calibrator already, as its metadata or its last nodes show; if it is of an opset before 7,
        damaged, not valid, or larger than 2 GB; if its output is not to be told, or gives probabilities that no softmax
        of the graph makes; if the calibrator does more than the above, or is for other classes; if the two models do
        not differ as they should. Nothing is written then.

    See Also
    --------
    finecal.fold_into_head : the same for a model in torch.

    Examples
    --------
    >>> calibrator = finecal.AdditiveBias(seen_mask, gamma)  # doctest: +SKIP
    >>> fold_into_onnx(
    ...     "model.onnx", calibrator, pictures, out="calibrated.onnx"
    ... )  # doctest: +SKIP
    """
    if not isinstance(calibrator, nn.Module):
        raise TypeError(f"calibrator is a {type(calibrator).__name__}; pass an AdditiveBias or another calibrator")
    if out is not None:
        check_destination(out, (".onnx",))
    before = _loaded(model)
    record = record_of(before)
    if record is not None:
        raise ValueError(
            f"the model has a calibrator already, as its metadata record ({record.get('calibrator')}); pass the model "
            "that it was made from"
        )
    found = logits_behind(before, output)
    given = _by_name(before, inputs)
    kept = [value.name for value in before.graph.output]
    extra = [found.name, *((_input_of(before, found.name),) if weight_of(calibrator) is not None else ())]
    session = _session(_with_output(before, *extra))
    old = dict(zip([*kept, *extra], _run(session, [*kept, *extra], given), strict=True))
    logits = torch.from_numpy(old[found.name])
    if not logits.is_floating_point():
        raise ValueError(f"output {found.name!r} is {logits.dtype}, no logits; pass output=, the name of another one")
    calibrated = calibrator(logits, *(torch.from_numpy(old[name]) for name in extra[1:])).detach()
    _check_no_probabilities(logits, found.name, dim_of(calibrator))
    found.check_axes(dim_of(calibrator) % logits.ndim, logits.ndim)

    after = ModelProto()
    after.CopyFrom(before)
    change = _change(calibrator, logits, calibrated)
    node = calibrated_by(before, found.name, change.shift)
    if node is not None:
        raise ValueError(f"the model has a calibrator already: {node}; pass a model that was exported without it")
    place = add_to_logits(after, found.name, change)
    changed = sorted(followers(after.graph, found.name) & set(kept))
    entry = {**description_of(calibrator, change.shift, change.weight), "place": place, "outputs": changed}
    after.metadata_props.add(key=FOLDED, value=json.dumps(entry))
    _check_valid(after, "the new model")
    expected = {name: torch.from_numpy(old[name]) for name in kept if name not in changed and _is_array(old[name])}
    if found.output in kept:
        expected[found.output] = found.finish(calibrated)
        shown = after
    else:
        expected[found.name] = calibrated
        shown = _with_output(after, found.name)
    names = [*kept, *(name for name in expected if name not in kept)]
    new = dict(zip(names, _run(_session(shown), names, given), strict=True))
    size = _size(logits) + _size(calibrated)
    for name, values in expected.items():
        _compare(name, torch.from_numpy(new[name]), values, size)
    if out is not None:
        write_atomically(out, after.SerializeToString())
    return after


def record_of(model: ModelProto) -> dict[str, Any] | None:
    """Return what `fold_into_onnx` has written into the metadata of a model, or None."""
    return next((json.loads(entry.value) for entry in model.metadata_props if entry.key == FOLDED), None)


# --- what is added ----------------------------------------------------------------------------------------------------


def _change(calibrator: nn.Module, logits: Tensor, calibrated: Tensor) -> Change:
    """Return scale and shift by class of a calibrator, after comparing them with what it makes of the logits."""
    dim = dim_of(calibrator)
    weight = weight_of(calibrator)
    classes, after = logits.shape[dim], logits.ndim - 1 - dim % logits.ndim
    dtype = logits.numpy().dtype
    if weight is not None:
        return Change(
            torch.ones(classes, dtype=torch.float64), shift_by(calibrator).double(), after, dtype, weight.double()
        )
    shape = [1] * logits.ndim
    shape[dim] = classes
    zeros = torch.zeros(shape, dtype=torch.float64)
    shift = calibrator(zeros).detach().flatten()
    scale = torch.where(shift.isfinite(), calibrator(zeros + 1).detach().flatten() - shift, 1.0)
    scale = torch.where((scale - 1).abs() < 1e-9, 1.0, scale)
    view = [part.reshape(shape) for part in (scale, shift)]
    found = (logits.double() * view[0] + view[1]).to(calibrated.dtype)
    tolerance = _ROUNDINGS * torch.finfo(logits.dtype).eps * (_size(logits) + _size(calibrated))
    if not torch.allclose(found, calibrated, rtol=0.0, atol=tolerance, equal_nan=True):
        raise ValueError(
            f"{calibrator!r} does more than scale the logits of each class and add to them, so it cannot go into the "
            "graph; export CalibratedModel(model, calibrator) from torch instead"
        )
    return Change(scale, shift, after, dtype)


def _input_of(model: ModelProto, name: str) -> str:
    """Return the name of the features: the input of the last linear layer."""
    producers = {made: node for node in model.graph.node for made in node.output}
    constants = {tensor.name for tensor in model.graph.initializer}
    node: NodeProto | None = producers.get(name)
    if node is not None and node.op_type == "Add":
        node = next((producers[part] for part in node.input if part in producers), None)
    if node is None or node.op_type not in ("Gemm", "MatMul") or node.input[1] not in constants:
        what = "no node" if node is None else f"a {node.op_type}"
        raise ValueError(
            f"Prototypes need the features, which the last Gemm or MatMul takes; {what} gives {name!r}: fold them into "
            "the model in torch, and export it"
        )
    return str(node.input[0])


# --- models and their runs --------------------------------------------------------------------------------------------


def _loaded(model: PathLike | ModelProto) -> ModelProto:
    """Return a valid model with all its data in it."""
    if isinstance(model, ModelProto):
        proto = model
    elif isinstance(model, (str, Path)):
        path = Path(model)
        check_source(path)
        with explain_errors(path, ".onnx", "export the model again"):
            proto = onnx.load(path, load_external_data=False)
        _check_size(path.stat().st_size, proto)
        with explain_errors(path, ".onnx", "put its files of external data beside it"):
            onnx.load_external_data_for_model(proto, str(path.parent))
    else:
        raise TypeError(f"model is a {type(model).__name__}; pass the path of an .onnx file, or an onnx.ModelProto")
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), _OLDEST_OPSET)
    if opset < _OLDEST_OPSET or proto.ir_version < _OLDEST_IR:
        raise ValueError(
            f"the model is of opset {opset} and IR version {proto.ir_version}; opset {_OLDEST_OPSET} and IR version "
            f"{_OLDEST_IR} or later are needed: onnx.version_converter.convert_version(model, 13)"
        )
    _check_valid(proto, "the model")
    return show_scores(proto)


def _check_size(size: int, proto: ModelProto) -> None:
    infos = [
        onnx.external_data_helper.ExternalDataInfo(tensor)
        for tensor in proto.graph.initializer
        if onnx.external_data_helper.uses_external_data(tensor)
    ]
    size += sum(int(info.length or 0) for info in infos)
    if size > _LARGEST:
        raise ValueError(
            f"the model has {size / 1e9:.1f} GB, more than the 2 GB that one file of ONNX holds; fold into the "
            "model in torch, and export it again"
        )


def _check_valid(proto: ModelProto, what: str) -> None:
    try:
        onnx.checker.check_model(proto)
    except Exception as error:  # of the checker, or of protobuf
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{what} is no valid ONNX ({reason:.300}); export it again") from error


def _with_output(model: ModelProto, *names: str) -> ModelProto:
    """Return a copy with tensors of the graph as further outputs."""
    copy = ModelProto()
    copy.CopyFrom(model)
    known = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in known)
    return copy


def _session(model: ModelProto, providers: Sequence[str] = ("CPUExecutionProvider",)) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=list(providers))
    except Exception as error:  # of any kind: of protobuf above 2 GB, of the runtime, or of its providers
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"ONNX Runtime cannot load the model ({reason:.300})") from error


def _by_name(model: ModelProto, inputs: Inputs) -> Mapping[str, ArrayLike]:
    if isinstance(inputs, Mapping):
        return inputs
    constants = {tensor.name for tensor in model.graph.initializer}
    names = [value.name for value in model.graph.input if value.name not in constants]
    if len(names) != 1:
        raise TypeError(f"inputs is one array, but the graph has {len(names)} inputs; pass a mapping of {names}")
    return {names[0]: inputs}


def _run(session: Any, outputs: Sequence[str], inputs: Mapping[str, ArrayLike]) -> list[Any]:
    """Run a session, as often as a fixed batch size asks for; the last rows are repeated to fill the last batch."""
    expected = {given.name: given for given in session.get_inputs()}
    unknown = [name for name in inputs if name not in expected]
    if unknown or len(inputs) < len(expected):
        raise ValueError(f"inputs are {list(inputs)}, and the graph has {list(expected)}; give each of these by name")
    arrays = {name: _cast(value, expected[name].type) for name, value in inputs.items()}
    sizes = {given.shape[0] for given in expected.values() if given.shape}
    lengths = {len(array) for array in arrays.values() if array.ndim}
    fixed, length = next(iter(sizes), None), next(iter(lengths), 0)
    try:
        if len(sizes) > 1 or len(lengths) != 1 or not isinstance(fixed, int) or fixed == length:
            return list(session.run(list(outputs), arrays))
        parts = []
        for start in range(0, length, fixed):
            rows = np.minimum(np.arange(start, start + fixed), length - 1)
            parts.append(session.run(list(outputs), {name: array[rows] for name, array in arrays.items()}))
        return [np.concatenate(several)[:length] for several in zip(*parts, strict=True)]
    except Exception as error:  # of the runtime
        shapes = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in arrays.items())
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"ONNX Runtime cannot run the model on {shapes} ({reason:.300})") from error


def _cast(value: ArrayLike, wanted: str) -> NumpyArray:
    array: NumpyArray = to_numpy(value) if isinstance(value, Tensor) else np.asarray(value)  # texts are inputs, too
    dtype = _NUMPY.get(wanted)
    is_same_kind = dtype is not None and array.dtype.kind in ("f" if np.dtype(dtype).kind == "f" else "iu")
    return array.astype(dtype, copy=False) if is_same_kind else array


# --- what is compared -------------------------------------------------------------------------------------------------


def _check_no_probabilities(logits: Tensor, name: str, dim: int) -> None:
    rows = logits.movedim(dim, -1).flatten(0, -2)
    if len(rows) and are_probabilities(rows):
        raise ValueError(
            f"output {name!r}: its values {LIKE_PROBABILITIES}; no softmax of the graph gives them: pass output=, the "
            "name of the tensor with the logits in the graph"
        )


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "biuf"


def _size(values: Tensor) -> float:
    finite = values[values.isfinite()]
    return float(finite.abs().max()) if len(finite) else 0.0


def _compare(name: str, found: Tensor, expected: Tensor, size: float) -> None:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise ValueError(
            f"output {name!r} of the new graph is {found.dtype} {shape_of(found)} in place of {expected.dtype} "
            f"{shape_of(expected)}; please report this"
        )
    eps = torch.finfo(found.dtype).eps if found.is_floating_point() else 0.0
    tolerance = _ROUNDINGS * eps * max(size, _size(expected))
    if not torch.allclose(found.double(), expected.double(), rtol=0.0, atol=tolerance, equal_nan=True):
        difference = float((found.double() - expected.double()).abs().nan_to_num().max())
        raise ValueError(
            f"ONNX Runtime was asked for both graphs, and output {name!r} of the new one is off by {difference:.2g}; "
            "nothing was written: export CalibratedModel(model, calibrator) from torch instead"
        )
