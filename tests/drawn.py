"""What tests of pictures look for in one."""

import numpy as np


def artist(ax, gid):
    """The one artist with this id."""
    (found,) = ax.findobj(lambda artist: artist.get_gid() == gid)
    return found


def point(ax, gid):
    """Where the marker with this id is."""
    (position,) = np.asarray(artist(ax, gid).get_offsets())
    return tuple(position)


def legend(ax):
    """The texts of the legend."""
    return [text.get_text() for text in ax.get_legend().get_texts()]
