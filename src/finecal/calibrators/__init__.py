"""Modules from logits to logits, their fits and their file.

Import the modules, not the package; what is above `streaming` may not be imported here.
"""
