"""Where each public name is."""

import finecal

SPACES = ("estimators", "calibrators", "dense", "logits", "probabilities", "sequences", "weights")
"""Namespaces beside the face, of which no two have a name of their own in common."""
PUBLIC = {name: getattr(finecal, name) for name in finecal.__all__}
for space in SPACES:
    PUBLIC |= {name: getattr(getattr(finecal, space), name) for name in getattr(finecal, space).__all__}


def public(name):
    """Return what a public name stands for."""
    return PUBLIC[name]
