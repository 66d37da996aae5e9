"""The command ``finecal demo``: `names` has its data, `run` its network and its report.

Import its modules, not the package. They may import packages up to `calibrators`, and `plots`.
"""
