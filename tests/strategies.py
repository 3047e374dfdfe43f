"""What hypothesis draws in more than one test file."""

import itertools

from hypothesis import strategies as st


@st.composite
def splits(draw, length=12):
    """Any way to cut `length` positions into pieces, as their sizes."""
    cuts = sorted(draw(st.sets(st.integers(1, length - 1))))
    return [end - start for start, end in itertools.pairwise([0, *cuts, length])]
