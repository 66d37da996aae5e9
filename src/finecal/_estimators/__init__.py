"""Every way to find gamma: a file holds one estimator or two, what several share, or the choice between them.

Import its modules, not the package. They may import packages up to `evaluation`.
"""
