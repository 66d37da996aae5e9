"""Where the graph of an ONNX model has its logits, and how what is added to them gets into it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor

from .._core.arrays import NumpyArray

_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_SOFTMAX = ("Softmax", "LogSoftmax")
_LINEAR = "LinearClassifier"
_BY_CLASS = ("Add", "Cast", "Div", "Identity", "Mul", "Sub")
"""What calibrators export to."""
_PASSED = ("Identity", *_SOFTMAX)
_NAMED = 8


class Found(NamedTuple):
    """The tensor `name` with the logits, from which `nodes` make the `output`, the last one first."""

    name: str
    output: str
    nodes: list[NodeProto]
    axis_default: int

    def check_axes(self, axis: int, ndim: int) -> None:
        """Refuse a softmax along another dimension than that of the classes."""
        for node in self.nodes:
            along = _attribute(node, "axis", self.axis_default)
            flattens = self.axis_default == 1 and along % ndim != ndim - 1
            if node.op_type in _SOFTMAX and (along % ndim != axis or flattens):
                raise ValueError(
                    f"the {node.op_type} behind {self.name!r} is along dimension {along}, and the classes of the "
                    f"calibrator are along {axis}; make the calibrator with dim={along}"
                )

    def finish(self, logits: Tensor) -> Tensor:
        """Return what the nodes behind the logits make of them."""
        for node in reversed(self.nodes):
            if node.op_type in _SOFTMAX:
                function = torch.softmax if node.op_type == "Softmax" else torch.log_softmax
                logits = function(logits, _attribute(node, "axis", self.axis_default))
        return logits


def _keeps(producers: Mapping[str, NodeProto], node: NodeProto) -> bool:
    """Whether a node of scikit-learn divides the rows of a softmax by their sum, which is 1."""
    before = producers.get(node.input[0]) if node.op_type == "Normalizer" and node.input else None
    return before is not None and before.op_type == "Softmax" and _attribute(node, "norm", b"MAX") == b"L1"


class Change(NamedTuple):
    """What is to become of logits of a dtype: `scale * z + shift` by class, `(C,)`, with `after` dimensions behind.

    Prototypes also add `weight`, `(C, D)`, to that of the last layer.
    """

    scale: Tensor
    shift: Tensor
    after: int
    dtype: np.dtype[Any]
    weight: Tensor | None = None

    @property
    def classes(self) -> int:
        return self.shift.shape[0]


def logits_behind(model: ModelProto, output: str | None) -> Found:
    """Return the logits of an output: itself, or what the softmax before it takes."""
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    floats = [value.name for value in graph.output if value.type.tensor_type.elem_type in _FLOATS]
    if output is None:
        if len(floats) != 1:
            every = ", ".join(repr(value.name) for value in graph.output)
            raise ValueError(
                f"the graph has {len(floats)} floating-point outputs in place of one (outputs: {every}); pass output=, "
                "the name of the one with the logits, or of a tensor before it"
            )
        output = floats[0]
    if output not in producers:
        names = ", ".join(repr(value.name) for value in graph.output[:_NAMED])
        raise ValueError(f"output is {output!r}, which no node of the graph gives; its outputs are {names}")
    name, nodes = output, []
    while name in producers and (producers[name].op_type in _PASSED or _keeps(producers, producers[name])):
        nodes.append(producers[name])
        name = producers[name].input[0]
    if name not in producers:
        raise ValueError(f"output {output!r} is an input of the graph, or a constant, and holds no logits")
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    return Found(name, output, nodes, -1 if opset >= 13 else 1)


def show_scores(model: ModelProto) -> ModelProto:
    """Let a linear classifier of scikit-learn give its scores, and a node behind it their softmax, in a copy."""
    if not any(map(_has_softmax, model.graph.node)):
        return model
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    for node in list(filter(_has_softmax, graph.node)):
        next(found for found in node.attribute if found.name == "post_transform").s = b"NONE"
        made, scores = node.output[1], _free(graph, f"{node.output[1]}_scores")
        node.output[1] = scores
        softmax = helper.make_node("Softmax", [scores], [made], name=_free(graph, f"{made}_softmax"), axis=1)
        graph.node.insert(list(graph.node).index(node) + 1, softmax)
    return copy


def _has_softmax(node: NodeProto) -> bool:
    return node.op_type == _LINEAR and bool(_attribute(node, "post_transform", b"") == b"SOFTMAX")


def _labels(node: NodeProto, name: str) -> list[str]:
    """Return what a classifier of scikit-learn gives beside its scores `name`, and from them."""
    return [made for made in node.output if made not in ("", name)] if node.domain == "ai.onnx.ml" else []


def calibrated_by(model: ModelProto, name: str, shift: Tensor) -> str | None:
    """Return the node before the logits `name` that an exported calibrator has left, in words, or None.

    The exporter of torch names the modules that nodes come from, unless it is that of TorchScript. An `Add` of 0 to the
    classes to which `shift` adds 0, and of one number to the others, is taken for gamma.
    """
    graph = model.graph
    producers = {made: node for node in graph.node for made in node.output}
    absent = (shift != 0).numpy()
    while name in producers:
        node = producers[name]
        path = next((entry.value for entry in node.metadata_props if entry.key == "pkg.torch.onnx.class_hierarchy"), "")
        kind = next(
            (part.split(".")[-1] for part in re.findall(r"[\w.]+", path) if "finecal._calibrators" in part), None
        )
        if kind is not None:
            return f"the {node.op_type} {name!r}, of an exported {kind}"
        if node.op_type not in _BY_CLASS:
            return None
        constants = {read: _constant(graph, read) for read in node.input}
        values = next((array.flatten() for array in constants.values() if array is not None), None)
        if (
            node.op_type == "Add"
            and values is not None
            and values.shape == shift.shape
            and 0 < absent.sum() < absent.size
        ):
            added = np.unique(values[absent])
            if len(added) == 1 and np.isfinite(added[0]) and added[0] != 0 and not values[~absent].any():
                return f"the Add {name!r} of {added[0]:.4g} to the absent classes, and of 0 to the others"
        name = next((read for read, array in constants.items() if array is None), "")
    return None


def followers(graph: GraphProto, name: str) -> set[str]:
    """Return the names of a tensor and of all that is computed from it, labels included."""
    found = {name}.union(*(_labels(node, name) for node in graph.node if name in node.output))
    for node in graph.node:  # in topological order
        if found & set(_inputs(node)):
            found |= set(node.output)
    return found


def _inputs(node: NodeProto) -> Iterator[str]:
    """Yield the names of all that a node reads, graphs within it included."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _inputs(inner)


def add_to_logits(model: ModelProto, name: str, change: Change) -> str:
    """Change the graph so that the tensor `name` has the calibrated logits; return where, in words."""
    graph = model.graph
    position, node = next((index, node) for index, node in enumerate(graph.node) if name in node.output)
    if change.weight is not None:
        _add_to_weight(graph, node, change.weight)
    bias = _bias(graph, node, change) if bool((change.scale == 1).all()) else None
    others = _labels(node, name)
    used = {read for other in graph.node for read in _inputs(other)} | {value.name for value in graph.output}
    if bias is None and used.intersection(others):
        raise ValueError(
            f"the last {node.op_type} gives {name!r} and also {', '.join(map(repr, others))}, which would not follow "
            "the calibrated logits; export the model without it, or add gamma to the output: finecal.calibrate_logits"
        )
    if bias is not None and bias.place < 0:
        _set_intercepts(node, _sum(bias.values, change.shift, change))
        return f"the intercepts of the last {node.op_type} ({name})"
    if bias is not None:
        _set_input(graph, node, bias.place, _sum(bias.values, change.shift / bias.factor, change), "bias")
        return f"the bias of the last {node.op_type} ({name})"
    last = node.op_type
    before = _free(graph, f"{name}_uncalibrated")
    node.output[list(node.output).index(name)] = before
    steps = [("Mul", change.scale)] if bool((change.scale != 1).any()) else []
    steps += [("Add", change.shift)] if bool(change.shift.any()) or not steps else []
    for step, (operation, values) in enumerate(steps, 1):
        made = name if step == len(steps) else _free(graph, f"{name}_scaled")
        constant = _free(graph, f"{name}_{operation.lower()}_by_class")
        array = values.numpy().astype(change.dtype).reshape(-1, *[1] * change.after)
        graph.initializer.append(numpy_helper.from_array(array, constant))
        graph.node.insert(position + step, helper.make_node(operation, [before, constant], [made], name=constant))
        before = made
    return f"{' and '.join(operation for operation, _ in steps)} behind the last {last} ({name})"


# --- the bias of the last layer ---------------------------------------------------------------------------------------


class _Bias(NamedTuple):
    """The input of a node that is added to its result, times `factor`; no `values` where the node has none yet.

    A linear classifier of scikit-learn has them in an attribute: `place` is -1.
    """

    place: int
    values: NumpyArray | None
    factor: float


def _bias(graph: GraphProto, node: NodeProto, change: Change) -> _Bias | None:
    """Return the input with a number for each class that the node adds, if it has one or may be given one."""
    index, factor = 2, 1.0
    if node.op_type == _LINEAR:
        intercepts = _attribute(node, "intercepts", [])
        return _Bias(-1, np.asarray(intercepts), 1.0) if len(intercepts) == change.classes else None
    if node.op_type == "Gemm" and change.after == 0:
        factor = _attribute(node, "beta", 1.0)
    elif node.op_type == "Add":
        index = next((i for i, name in enumerate(node.input) if _is_by_class(_constant(graph, name), change)), -1)
    elif node.op_type not in ("Conv", "ConvTranspose") or change.after == 0:
        return None
    if index < 0 or factor == 0:
        return None
    if len(node.input) <= index or not node.input[index]:
        return _Bias(index, None, factor)
    values = _constant(graph, node.input[index])
    if node.op_type != "Add":  # it is (C,), whatever the dimension of the classes
        change = change._replace(after=0)
    return _Bias(index, values, factor) if values is not None and _is_by_class(values, change) else None


def _set_intercepts(node: NodeProto, values: NumpyArray) -> None:
    attribute = next(found for found in node.attribute if found.name == "intercepts")
    attribute.ClearField("floats")
    attribute.floats.extend(values.tolist())


def _is_by_class(values: NumpyArray | None, change: Change) -> bool:
    if values is None:
        return False
    shape = values.shape[: values.ndim - change.after]
    return values.size == change.classes == (shape[-1] if shape else 0)


def _add_to_weight(graph: GraphProto, node: NodeProto, weight: Tensor) -> None:
    """Add `(C, D)` to the weight of a linear layer, which may be followed by the Add of its bias."""
    if node.op_type == "Add":
        producers = {name: other for other in graph.node for name in other.output}
        node = next(producers[name] for name in node.input if name in producers)
    old = _constant(graph, node.input[1])
    assert old is not None
    is_transposed = node.op_type == "Gemm" and bool(_attribute(node, "transB", 0))
    added = (weight if is_transposed else weight.T).numpy() / (
        _attribute(node, "alpha", 1.0) if node.op_type == "Gemm" else 1.0
    )
    if added.shape != old.shape:
        raise ValueError(
            f"the prototypes have {weight.shape[1]} features for {weight.shape[0]} classes, but the weight of the last "
            f"{node.op_type} has shape {old.shape}; fit them on the inputs of that layer"
        )
    _set_input(graph, node, 1, (old.astype(np.float64) + added).astype(old.dtype), "weight")


def _sum(old: NumpyArray | None, added: Tensor, change: Change) -> NumpyArray:
    """Return the sum, formed in float64 and rounded once."""
    if old is None:
        return added.numpy().astype(change.dtype)
    with np.errstate(over="ignore"):
        total: NumpyArray = (old.astype(np.float64) + added.numpy().reshape(old.shape)).astype(old.dtype)
    return total


def _constant(graph: GraphProto, name: str) -> NumpyArray | None:
    """Return the values of an initializer or of a Constant, if the tensor is one."""
    tensor = next((tensor for tensor in graph.initializer if tensor.name == name), None)
    if tensor is None:
        node = next((node for node in graph.node if name in node.output and node.op_type == "Constant"), None)
        tensor = None if node is None else next((a.t for a in node.attribute if a.name == "value"), None)
    return None if tensor is None else numpy_helper.to_array(tensor)


def _set_input(graph: GraphProto, node: NodeProto, index: int, values: NumpyArray, what: str) -> None:
    """Give a node a constant of its own: the one that it had may serve others too."""
    while len(node.input) <= index:
        node.input.append("")
    old, new = node.input[index], _free(graph, f"{node.output[0]}_calibrated_{what}")
    graph.initializer.append(numpy_helper.from_array(values, new))
    node.input[index] = new
    unused = not any(old in _inputs(other) for other in graph.node) and all(old != value.name for value in graph.output)
    for tensor in [tensor for tensor in graph.initializer if unused and tensor.name == old]:
        graph.initializer.remove(tensor)
        for value in [value for value in graph.input if value.name == old]:
            graph.input.remove(value)


def _free(graph: GraphProto, name: str) -> str:
    """Return a name that nothing in the graph has."""
    taken = {made for node in graph.node for made in (*_inputs(node), *node.output, node.name)}
    taken |= {entry.name for entry in (*graph.initializer, *graph.input, *graph.output)}
    return next(
        free for number in range(len(taken) + 1) if (free := f"{name}_{number}" if number else name) not in taken
    )


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(found) for found in node.attribute if found.name == name), default)
