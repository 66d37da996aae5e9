"""Devices, as torch takes them."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


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
