"""Calibrators, which are modules from logits to logits, the functions that fit them, and their file format.

`compare_estimators` is here as well, above `gamma`: it shows prototypes beside gamma alone.

Import its modules, not the package. They may import packages up to `streaming`.
"""
