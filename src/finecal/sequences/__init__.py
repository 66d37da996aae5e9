"""Sequences: entities in texts, characters in pictures of lines, and tokens of causal language models."""

__all__: list[str] = []
