"""Checks of everything that a user passes in, each with its error message, and seen masks from labels or names.

Import its modules, not the package. They import no other package of finecal.
"""
