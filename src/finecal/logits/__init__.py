"""Passes over `(N, C)` logits: logits in, a few numbers per row out, and files of logits.

Import the modules, not the package; what is above `results` may not be imported here.
"""
