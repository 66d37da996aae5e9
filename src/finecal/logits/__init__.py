"""Passes over `(N, C)` logits that leave a few numbers per row, in plain torch or fused, and files of logits.

Import its modules, not the package. They may import packages up to `results`.
"""
