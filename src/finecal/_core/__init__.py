"""Samples, their checks and reductions, and results: the base of all other packages, of which it imports none."""
