"""Sequences: entities in texts, characters in pictures of lines, and tokens of causal language models."""

from ._characters import CharacterScores, character_scores
from ._ctc import CtcFrames, greedy_decode
from ._entities import EntityReport, entity_scores
from ._language_models import label_token_ids, label_token_samples, logit_bias

__all__ = [
    "CharacterScores",
    "CtcFrames",
    "EntityReport",
    "character_scores",
    "entity_scores",
    "greedy_decode",
    "label_token_ids",
    "label_token_samples",
    "logit_bias",
]
