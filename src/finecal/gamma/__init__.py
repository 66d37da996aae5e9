"""Every way to find gamma, one estimator a file, or two.

Import the modules, not the package; what is above `evaluation` may not be imported here.
"""
