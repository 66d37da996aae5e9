"""Samples, their checks and reductions, and the results: what every other package builds on.

Import its modules, not the package. They import no other package of finecal.
"""
