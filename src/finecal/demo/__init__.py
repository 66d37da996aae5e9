"""What ``finecal demo`` runs: its data, its network, and the comparison that it prints.

Import its modules, not the package. They may import packages up to `calibrators`, and `plots`.
"""
