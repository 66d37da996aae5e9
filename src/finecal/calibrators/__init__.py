"""Calibrators, which are modules from logits to logits, the functions that fit them, and their file format.

Import its modules, not the package. They may import packages up to `streaming`.
"""
