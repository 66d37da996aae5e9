"""Calibrators, which are modules from logits to logits, the functions that fit them, and their file format."""
