"""From labelled logits to margins, the curve and reports, and from two models to a diagnosis.

Import its modules, not the package. They may import packages up to `logits`.
"""
