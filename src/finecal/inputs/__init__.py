"""What a user hands over, checked here, each check with its message; no arithmetic.

Import the modules, not the package; nothing here imports another package of finecal.
"""
