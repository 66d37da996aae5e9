"""States of `finecal.streaming` over several processes: every sample of every process, each counted once.

Import `collect_sharded` and `merge_across_processes` from ``finecal.distributed``. Its modules are private; within
finecal, they may import packages up to `models`.

Each process feeds a state of its own. One function then makes a single state of all of them. States never synchronise
themselves, so each can go on being updated.
"""

from .merging import merge_across_processes
from .sharding import collect_sharded

__all__ = ["collect_sharded", "merge_across_processes"]
