"""What finecal says: whole sentences, with names of files as the system writes them."""

import re

import pytest


def says(sentence, error=ValueError):
    """Expect an error of this sentence, whose slashes may be backslashes."""
    return pytest.raises(error, match="^" + re.escape(sentence).replace("/", r"[/\\]") + "$")
