"""What runs or changes a model: collect logits, wrap, fold, calibrate, refit.

Import the modules, not the package; what is above `calibrators` may not be imported here.
"""
