"""Sending a head's folder to the hub, with its card."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from mav.cache_schema.errors import HeadError
from mav.pipeline.head.card import CARD, write_card
from mav.pipeline.head.storage import (
    CONFIG,
    WEIGHTS,
    CurvePoint,
    read_head_config,
    recorded_weights,
    weights_file,
)
from mav.pipeline.runtime import hub, hub_errors

MESSAGE: Final = "Upload an alignment head"


def push_folder(
    folder: Path,
    repository: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str = MESSAGE,
    curve: Sequence[CurvePoint] = (),
) -> str:
    """Send a head's folder to the hub with a card; return the address of the commit.

    Args:
        folder: The folder of a head, as `find_head` returns it; nothing in it changes.
        repository: Id of the repository.
        private: Whether a new repository is private.
        revision: Branch to send it to.
        commit_message: Message of the commit.
        curve: What was measured of it by alpha; that of its training if empty.

    Raises:
        HeadError: It is no head, or the hub does not take it.
    """
    config, origin = read_head_config(folder)
    with tempfile.TemporaryDirectory() as made:
        copy = Path(made)
        shutil.copy(folder / CONFIG, copy / CONFIG)
        weights = weights_file(folder, recorded_weights(folder)).resolve()
        try:
            (copy / WEIGHTS).symlink_to(weights)
        except OSError:
            shutil.copy(weights, copy / WEIGHTS)
        written = folder / CARD
        if written.is_file() and not curve:
            # Its author may have changed it.
            text = written.read_text(encoding="utf-8")
            (copy / CARD).write_text(text, encoding="utf-8")
        else:
            write_card(copy, config, origin, curve=curve, repository=repository)
        try:
            return hub.upload(
                copy,
                repository,
                files=[CONFIG, WEIGHTS, CARD],
                private=private,
                revision=revision,
                message=commit_message,
            )
        except Exception as error:
            reason = hub_errors.why(error, repository, "model", revision)
            raise HeadError(f"{repository}: the hub did not take the head: {reason}") from error
