"""Turns exceptions of a base's own code into one clear error."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from mav.cache_schema.errors import BaseModelError
from mav.pipeline.base.model import BaseModel
from mav.pipeline.runtime.memory import is_out_of_memory

REFUSALS: Final = (RuntimeError, ValueError, TypeError, IndexError, AttributeError)
"""Exceptions of models that cannot run as configured; includes NotImplementedError."""


@contextmanager
def explain_failures(base: BaseModel) -> Iterator[None]:
    """Turn exceptions of a base's own code into one clear error; out-of-memory errors pass through.

    Raises:
        BaseModelError: It cannot be run as configured.
    """
    try:
        yield
    except REFUSALS as error:
        if is_out_of_memory(error):
            raise
        said = " ".join(str(error).split())
        raise BaseModelError(
            f"{base.id}: transformers cannot run this base as configured "
            f"({type(error).__name__}: {said})"
        ) from error
