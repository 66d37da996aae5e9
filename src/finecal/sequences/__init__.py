"""Sequences: entities in texts, characters in pictures of lines, and tokens of causal language models."""

from ._entities import EntityReport, entity_scores

__all__ = ["EntityReport", "entity_scores"]
