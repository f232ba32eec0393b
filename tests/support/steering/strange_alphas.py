"""Whatever a client may send as alpha."""

from typing import Final

from hypothesis import strategies as st

NAMES: Final = ("kind", "careful")
_SCALARS: Final = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(10**400), max_value=10**400),
    st.floats(),
    st.text(max_size=40),
    st.text(alphabet="0123456789:,.-+e=infakd_", max_size=40),
    st.binary(max_size=4),
    st.complex_numbers(),
)
ANYTHING: Final = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.text(max_size=8), st.integers()), inner, max_size=3),
        st.dictionaries(st.sampled_from(NAMES), inner, min_size=2, max_size=2),
        st.tuples(inner, inner),
    ),
    max_leaves=6,
)
"""Of one head and of two that have these names."""
