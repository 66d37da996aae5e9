"""From labelled logits to margins, curve and reports, and from two models to a diagnosis.

Import the modules, not the package; what is above `logits` may not be imported here.
"""
