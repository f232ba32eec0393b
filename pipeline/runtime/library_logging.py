"""Silences transformers' progress bars and warnings while a model loads."""

import logging
from typing import Any

import transformers
from transformers import modeling_gguf_pytorch_utils


class QuietLibraries:
    """Silences progress bars and warnings of transformers while the context is open."""

    def __enter__(self) -> None:
        log = transformers.utils.logging
        self._level = log.get_verbosity()
        self._bars = log.is_progress_bar_enabled()
        log.set_verbosity(logging.ERROR)
        log.disable_progress_bar()
        # Dequantizing GGUF files has a bar that ignores that setting.
        self._gguf_bar: Any = getattr(modeling_gguf_pytorch_utils, "tqdm", None)
        modeling_gguf_pytorch_utils.tqdm = log.tqdm

    def __exit__(self, *_: object) -> None:
        log = transformers.utils.logging
        modeling_gguf_pytorch_utils.tqdm = self._gguf_bar
        log.set_verbosity(self._level)
        if self._bars:
            log.enable_progress_bar()
