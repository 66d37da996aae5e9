"""Everything that runs or changes a model: collecting logits, wrapping, folding, calibrating and fine-tuning again.

Import its modules, not the package. They may import packages up to `calibrators`.
"""
