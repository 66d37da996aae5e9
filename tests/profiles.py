"""How many examples Hypothesis draws: few as a rule, all of them with `.ci/run --full`."""

import os

from hypothesis import settings

ALL = 100
"""Hypothesis's own number of examples of a test that asks for none."""
QUICK = 15


def load_profile():
    """Load the profile that the environment variable HYPOTHESIS_PROFILE names; the option --hypothesis-profile wins."""
    settings.register_profile("quick", max_examples=QUICK, deadline=None)
    settings.register_profile("thorough", max_examples=ALL, deadline=None)
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def examples(number, **others):
    """Return the settings of a test with this number of examples in the profile `thorough`, in proportion in others."""
    return settings(max_examples=max(1, number * settings.default.max_examples // ALL), **others)


def draws(number, quick):
    """Return how often a simulation draws: this number in the profile `thorough`, and the quick one in others."""
    return number if settings.default.max_examples >= ALL else quick
