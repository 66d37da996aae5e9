"""Arrays, devices and numbers at the door: checked, and turned into torch tensors that share their memory."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, SupportsFloat, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, bfloat16, from_numpy, strided
from torch.utils.dlpack import from_dlpack

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
    """Return `value` as a tensor, uncopied where torch can read it; `abstract` lets a tensor without values pass."""
    if isinstance(value, Tensor):
        tensor: Tensor = plain(value)
        check_dense(tensor, name)
        if tensor.device.type == "meta" and not abstract:
            raise ValueError(f"{name} is on the meta device and has no values; pass a tensor on the CPU or on a GPU")
        return tensor
    if _is_foreign(value):
        with suppress(Exception):  # what torch cannot read this way, it may through NumPy
            return from_dlpack(value)
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
    is_bfloat16 = array.dtype.name == "bfloat16"  # of the package ml_dtypes, as JAX has it
    if is_bfloat16:
        array = array.view(np.int16)
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
    return from_numpy(array).view(bfloat16) if is_bfloat16 else from_numpy(array)


def _is_foreign(value: object) -> bool:
    """Whether a value is an array of another library, such as JAX or CuPy, that shares its memory."""
    return not isinstance(value, (Tensor, np.ndarray, np.generic)) and hasattr(type(value), "__dlpack__")


def is_array(value: object) -> bool:
    """Whether a value is an array of NumPy or of another library, and no tensor."""
    return isinstance(value, np.ndarray) or _is_foreign(value)


def plain(value: Any) -> Any:
    """Return a tensor of a subclass, as libraries make them to carry metadata along, as a plain one, uncopied.

    A subclass that holds its values elsewhere, as a DTensor does, stays, and so does all that is no tensor.
    """
    if type(value) is Tensor or torch.compiler.is_compiling() or not isinstance(value, Tensor):
        return value
    own = type(value).__torch_dispatch__ is not Tensor.__torch_dispatch__
    return value if own else value.as_subclass(Tensor)


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
    """Return the function that converts a tensor to the type of `like`.

    That is a tensor, or an array of the library that `like` names as its namespace, uncopied; otherwise a NumPy array.
    """
    if isinstance(like, Tensor):
        return lambda tensor: tensor
    if _is_foreign(like) and hasattr(like, "__array_namespace__"):
        to_other = like.__array_namespace__().from_dlpack
        return lambda tensor: to_other(tensor.detach().contiguous())  # JAX takes no strides
    dtype: Any = getattr(like, "dtype", None)
    if str(dtype) != "bfloat16":
        return to_numpy
    return lambda tensor: to_numpy(tensor).astype(dtype) if tensor.dtype == bfloat16 else to_numpy(tensor)


def to_numpy(values: ArrayLike) -> NumpyArray:
    """Return an array of values, whatever their type and device; float32 for bfloat16, which NumPy does not have."""
    tensor = as_tensor(values, "values").detach().cpu()
    array: NumpyArray = (tensor.float() if tensor.dtype == bfloat16 else tensor).numpy()
    return array


def shape_of(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def check_device(device: object) -> torch.device:
    """A torch.device, its name or its number."""
    if isinstance(device, (torch.device, str, int)) and not isinstance(device, bool):
        try:
            return torch.device(device)
        except Exception as error:  # RuntimeError, TypeError or OverflowError, by the version of torch
            reason = str(error).splitlines()[0]
            raise ValueError(
                f'device is {device!r:.60}, which is none ({reason}); pass one such as "cpu" or "cuda:0"'
            ) from error
    raise TypeError(f'device is a {type(device).__name__}; pass a torch.device, or its name, such as "cpu" or "cuda:0"')


def under_autocast(device: torch.device) -> bool:
    """Whether torch chooses the dtypes of operations on the device."""
    return torch.amp.autocast_mode.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Keep sums and products from being rounded; not every kind of device has an autocast to turn off."""
    if torch.compiler.is_compiling():  # where torch 2.4 can neither ask what is below, nor export an autocast
        enabled = torch.is_autocast_enabled(device.type)
        return torch.autocast(device.type, enabled=False) if enabled else nullcontext()
    if torch.amp.autocast_mode.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


MOST_CLASSES = 1 << 24
"""Class indices are counted in float32, beside the logits."""
_MOST_DIMENSIONS = 64
"""That torch computes with."""
_MOST_BINS = 1 << 24
_LARGEST_LABEL = 1 << 63
_MOST_REPLICATES = 1_000_000
"""A thousand give an interval; far more would compute for days without a word."""


def as_float(value: SupportsFloat, name: str) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf
    except Exception as error:  # of any kind: it comes out of the value's own __float__
        raise TypeError(
            f"{name} is a {type(value).__name__}, which gives no number ({error}); pass a number"
        ) from error


def is_boolean(value: object) -> bool:
    """True for Python, NumPy and torch booleans, which must not pass as numbers."""
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")


def check_flag(value: object, name: str, instead: str = "pass True or False") -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} is a {type(value).__name__}; {instead}")
    return bool(value)


def _as_int(value: object, name: str, instead: str) -> int:
    if is_boolean(value) or not hasattr(value, "__index__") or getattr(value, "ndim", 0) != 0:
        raise TypeError(f"{name} is a {type(value).__name__}; pass {instead}")
    try:
        return int(value.__index__())
    except Exception as error:  # of any kind: it comes out of the value's own __index__
        raise TypeError(
            f"{name} is a {type(value).__name__}, which gives no integer ({error}); pass {instead}"
        ) from error


def format_count(count: int) -> str:
    """Return an integer in digits that a person reads, and that Python is willing to print."""
    return str(count) if abs(count) < 1e15 else f"an integer of {count.bit_length()} bits"


def check_num_classes(num_classes: object) -> int:
    count = _as_int(num_classes, "num_classes", "the number of columns of the logits")
    if count > MOST_CLASSES:
        raise ValueError(f"num_classes is {format_count(count)}; finecal counts at most {MOST_CLASSES} classes")
    if count < 2:
        raise ValueError(f"num_classes is {format_count(count)}; at least one seen and one absent class are needed")
    return count


def check_share(value: Any, name: str) -> float:
    """A fraction strictly between 0 and 1."""
    number = check_number(value, name)
    if not 0 < number < 1:
        percent = f" ({number} % is {number / 100})" if 1 < number < 100 else ""
        raise ValueError(f"{name} is {number}; it must lie strictly between 0 and 1{percent}")
    return number


def check_drop(value: Any, name: str = "max_seen_drop") -> float:
    """How much of an accuracy may be lost."""
    number = check_number(value, name)
    if not 0 <= number <= 1:
        raise ValueError(f"{name} is {number}; it is a fraction in [0, 1]: 0.02 allows a loss of two points")
    return number


def check_number(value: Any, name: str) -> float:
    if is_boolean(value) or not isinstance(value, SupportsFloat) or getattr(value, "ndim", 0) != 0:
        raise TypeError(f"{name} is a {type(value).__name__}; pass a number")
    number = as_float(value, name)
    if math.isnan(number):
        raise ValueError(f"{name} is NaN; pass a number")
    return number


def check_finite(value: Any, name: str) -> float:
    number = check_number(value, name)
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}; it must be finite")
    return number


def check_temperature(value: Any, name: str) -> float:
    """Positive and finite in float32; returned as float32 rounds it."""
    number = check_number(value.detach() if isinstance(value, Tensor) else value, name)
    single = float(torch.tensor(number, dtype=torch.float32, device="cpu"))
    if not torch.finfo(torch.float32).tiny <= single < math.inf:
        raise ValueError(f"{name} is {number}; it must be positive and finite in float32")
    return single


def check_bounds(bounds: Any) -> tuple[float, float]:
    """Two temperatures, the smaller one first."""
    if not isinstance(bounds, Sequence) or len(bounds) != 2:
        raise TypeError(f"bounds are {bounds!r}; pass the smallest and the largest temperature")
    low, high = (check_temperature(bound, f"bounds[{number}]") for number, bound in enumerate(bounds))
    if low >= high:
        raise ValueError(f"bounds are ({low:.6g}, {high:.6g}); the first must be below the second")
    return low, high


def check_choice(value: object, choices: tuple[str, ...], name: str) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(map(repr, choices))}")
    return value


def check_seed(seed: object) -> int:
    value = check_count(seed, "seed")
    if value >= 1 << 63:
        raise ValueError(f"seed is {format_count(value)}; it must be below 2**63")
    return value


def check_count(value: object, name: str) -> int:
    count = _as_int(value, name, "an integer")
    if count < 0:
        raise ValueError(f"{name} is {format_count(count)}; it cannot be negative")
    return count


def check_dim(dim: object) -> int:
    """Which dimension of the logits the classes are along; whether logits have it is another question."""
    wanted = "the dimension of the classes: -1 for the last, 1 for (B, C, H, W)"
    number = dim if type(dim) is int else _as_int(dim, "dim", wanted)  # a graph knows the type, but no attributes
    if not -_MOST_DIMENSIONS <= number < _MOST_DIMENSIONS:
        raise ValueError(f"dim is {format_count(number)}, but no tensor has so many dimensions; pass {wanted}")
    return number


def check_ignore_index(ignore_index: object) -> int | None:
    """Return the label of positions that do not count, or None."""
    if ignore_index is None:
        return None
    wanted = "the label of positions that do not count, such as 255, or None"
    number = _as_int(ignore_index, "ignore_index", wanted)
    if abs(number) >= _LARGEST_LABEL:
        raise ValueError(f"ignore_index is {format_count(number)}, which no label can be; pass {wanted}")
    return number


def check_bins(n_bins: object, least: int = 1) -> int:
    count = check_count(n_bins, "n_bins")
    if count < least:
        raise ValueError(f"n_bins is {count}; pass at least {least}")
    if count > _MOST_BINS:
        raise ValueError(f"n_bins is {format_count(count)}; pass at most {_MOST_BINS}")
    return count


def check_n_bootstrap(n_bootstrap: object) -> int:
    count = check_count(n_bootstrap, "n_bootstrap")
    if count > _MOST_REPLICATES:
        raise ValueError(
            f"n_bootstrap is {format_count(count)}; pass at most {_MOST_REPLICATES}: 1000 give an interval"
        )
    return count
