"""Sequences: entities in texts, characters in pictures of lines, and tokens of causal language models."""

from ._entities import EntityReport, entity_scores
from ._language_models import label_token_ids, label_token_samples, logit_bias

__all__ = ["EntityReport", "entity_scores", "label_token_ids", "label_token_samples", "logit_bias"]
