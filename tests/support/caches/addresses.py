"""Names that object storage may have, of characters that addresses give a meaning."""

from hypothesis import strategies as st

SPECIAL = "#?%+ &=;@:*~^`{}[]|<>\"'!$,()éü漢😀\u0301\u200b.-_"
SEGMENTS = st.text(SPECIAL + "ab0", min_size=1, max_size=6).filter(
    lambda one: one not in (".", "..")
)
