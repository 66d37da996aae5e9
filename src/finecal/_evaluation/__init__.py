"""Reports and curves of mean intersection over union, and the diagnosis of two models from labelled logits."""
