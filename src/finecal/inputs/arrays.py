"""NumPy at the door: arrays become torch tensors that share their memory, and results go back as what came in."""

from collections.abc import Callable, Sequence
from typing import Any, SupportsFloat, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, bfloat16, from_numpy, strided

NumpyArray: TypeAlias = NDArray[Any]
ArrayLike: TypeAlias = Tensor | NumpyArray | Sequence[Any]
Logits: TypeAlias = ArrayLike
"""Scores before softmax, `(N, C)`; each function says which other shapes it takes. Floating point."""
Labels: TypeAlias = ArrayLike
"""Class indices, `(N,)` int."""
Mask: TypeAlias = ArrayLike
"""True for the seen classes, `(C,)` bool."""
Features: TypeAlias = ArrayLike
"""What the head takes, `(N, D)`. Floating point."""
Groups: TypeAlias = ArrayLike
"""Which picture, patient or document each sample comes from, `(N,)` int."""
ArrayT = TypeVar("ArrayT", Tensor, NumpyArray)
_TORCH_KINDS = "biuf"


class _Writable:
    """The memory of a read-only array without its flag: torch warns of the flag, and finecal never writes to inputs."""

    def __init__(self, array: NumpyArray) -> None:
        address, _ = array.__array_interface__["data"]
        self.__array_interface__ = {**array.__array_interface__, "data": (address, False)}
        self.owner = array


def as_tensor(value: object, name: str, *, abstract: bool = False) -> Tensor:
    """Return `value` as a tensor, without a copy wherever torch can read the memory as it is.

    `abstract` lets a tensor without values pass, where its shape is all that is looked at.
    """
    if isinstance(value, Tensor):
        check_dense(value, name)
        if value.device.type == "meta" and not abstract:
            raise ValueError(f"{name} is on the meta device and has no values; pass a tensor on the CPU or on a GPU")
        return value
    if value is None or (isinstance(value, SupportsFloat) and not hasattr(value, "__array__")):
        raise TypeError(f"{name} is {_describe(value)}; pass a torch tensor or a NumPy array")
    if isinstance(value, tuple) and any(isinstance(item, (Tensor, np.ndarray)) for item in value):
        raise TypeError(f"{name} is a tuple of {len(value)} arrays; pass one array")
    if np.ma.is_masked(value):
        raise TypeError(f"{name} is a masked array with masked entries; fill or drop them: {name}.filled(value)")
    try:
        array = np.asarray(value)
    except Exception as error:  # of any kind: it comes out of the value's own __array__ or __len__
        raise TypeError(f"{name} cannot be read as an array ({error}); pass a torch tensor or a NumPy array") from None
    if array.dtype.kind not in _TORCH_KINDS or array.dtype.itemsize > 8:
        raise TypeError(
            f"{name} is {type(value).__name__} of dtype {array.dtype}, which torch cannot hold; "
            f"pass a torch tensor, or a NumPy array of numbers or booleans"
        )
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if any(stride < 0 or stride % array.itemsize for stride in array.strides):
        array = array.copy()
    if not array.flags.writeable:
        array = np.asarray(_Writable(array))
    return from_numpy(array)


def first_text(values: object) -> str | None:
    """Return the first entry of an array or a list if that is a text, as a name in place of a number is."""
    entries = values.flat if isinstance(values, np.ndarray) else values if isinstance(values, (list, tuple)) else ()
    first = next(iter(entries), None)
    return str(first) if isinstance(first, str) else None


def check_dense(tensor: Tensor, name: str) -> None:
    """One number after another: neither sparse, nor nested, nor quantized."""
    if tensor.is_nested:
        raise TypeError(
            f"{name} is a nested tensor; pass one with rows of equal length: {name}.to_padded_tensor(value)"
        )
    if tensor.layout is not strided:
        raise TypeError(f"{name} is a {tensor.layout} tensor; pass a dense one: {name}.to_dense()")
    if tensor.is_quantized:
        raise TypeError(f"{name} is a quantized tensor; pass the numbers that it stands for: {name}.dequantize()")


def to_float(value: object, name: str) -> str:
    """Return how whoever passed `value` makes floating-point numbers of it."""
    if isinstance(value, Tensor):
        return f"{name}.float()"
    return f"{name}.astype(numpy.float32)" if hasattr(value, "astype") else f"numpy.float32({name})"


def _describe(value: object) -> str:
    return "None" if value is None else f"one {type(value).__name__}"


def as_type_of(like: ArrayLike) -> Callable[[Tensor], Any]:
    """Return the function that converts a tensor to the type of `like`: a tensor, or else a NumPy array."""
    return (lambda tensor: tensor) if isinstance(like, Tensor) else to_numpy


def to_numpy(values: ArrayLike) -> NumpyArray:
    """Return an array of values, whatever their type and device; float32 for bfloat16, which NumPy does not have."""
    tensor = as_tensor(values, "values").detach().cpu()
    array: NumpyArray = (tensor.float() if tensor.dtype == bfloat16 else tensor).numpy()
    return array


def shape_of(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
