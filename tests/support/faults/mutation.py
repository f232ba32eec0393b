"""Taking a safeguard out of the program, to see that a check fails without it."""

import contextlib
import inspect
import textwrap
from collections.abc import Iterator
from types import FunctionType
from typing import Any

import pytest


@contextlib.contextmanager
def changed(function: object, old: str, new: str) -> Iterator[None]:
    """Replace a piece of a function's source, for all who call it."""
    assert isinstance(function, FunctionType)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{function.__qualname__} does not have just one {old!r}"
    namespace: dict[str, Any] = {}
    exec(compile(source.replace(old, new), "<mutation>", "exec"), function.__globals__, namespace)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(function, "__code__", namespace[function.__name__].__code__)
        yield
