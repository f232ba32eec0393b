"""Parts that a benchmark's worker is given in tests, in a module that is imported in a moment."""

import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.gpu.place import Place, Tell


def works(_: "Place", tell: "Tell") -> None:
    tell(done=1)


def fails(_: "Place", tell: "Tell") -> None:
    tell(begun=1)
    raise ValueError("one | two")


def hangs(_: "Place", tell: "Tell") -> None:
    while True:
        time.sleep(60)


def dies(_: "Place", tell: "Tell") -> None:
    tell(begun=1)
    os._exit(3)
