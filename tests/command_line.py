"""Of the files that tests of the command line read."""

import numpy as np

NAMES = ("ant", "bee", "cat", "dog", "elk", "fox")
MASK = np.array([True, False, True, False, True, False])


def unsigned(record):
    """A record without its checksum."""
    return {key: value for key, value in record.items() if key != "sha256"}
