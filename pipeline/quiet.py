"""Libraries that keep to themselves what our users did not ask about."""

import logging

import transformers


class QuietLibraries:
    """Holds back the progress bars and advice of transformers while the context is open."""

    def __enter__(self) -> None:
        log = transformers.utils.logging
        self._level = log.get_verbosity()
        self._bars = log.is_progress_bar_enabled()
        log.set_verbosity(logging.ERROR)
        log.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        log = transformers.utils.logging
        log.set_verbosity(self._level)
        if self._bars:
            log.enable_progress_bar()
