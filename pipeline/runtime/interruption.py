"""Ctrl-C and SIGTERM: finish what is almost done, and report what a long run has kept."""


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop; says what is kept.

    Attributes:
        kept: What is kept, in a sentence.
        goes_on: How to resume the work, in a sentence.
        at_once: Whether it was asked twice, so that it must not wait for anything.
    """

    def __init__(self, kept: str, goes_on: str, *, at_once: bool = False) -> None:
        super().__init__(f"{kept} {goes_on}")
        self.kept = kept
        self.goes_on = goes_on
        self.at_once = at_once


class Terminated(KeyboardInterrupt):
    """SIGTERM came; handled as Ctrl-C is."""
