"""States of `finecal.streaming` over several processes: every sample of every process, each counted once.

Each process feeds a state of its own, and a function makes one of all. States never synchronise themselves, so that
each can go on being updated. Import `merged` and `collect_once`; what is above `models` may not be imported here.
"""

from .merging import merged
from .sharding import collect_once

__all__ = ["collect_once", "merged"]
