"""A progress bar where tqdm is installed: lacking one must not stop hours of work."""

from collections.abc import Iterable
from typing import Any, TypeVar

T = TypeVar("T")


def with_bar(items: Iterable[T], **options: Any) -> Iterable[T]:
    """Return `items`, showing a bar on stderr while they are taken; `options` are those of tqdm."""
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    bar: Iterable[T] = tqdm(items, **options)
    return bar
