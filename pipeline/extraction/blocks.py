"""Runs the blocks of an extraction; finished ones are written while the next is computed."""

import logging
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from mav.cache_schema.commits import read_commits
from mav.cache_schema.storage.base import ObjectStore
from mav.cache_schema.writer import CacheWriter
from mav.pipeline.extraction.job import ExtractionJob
from mav.pipeline.runtime.interruption import Interrupted
from mav.pipeline.runtime.progress import progress_bar

_log = logging.getLogger(__name__)

_BLOCKS_WAITING: Final = 2
"""Blocks being written or queued, so that a brief slowdown of the disk does not stall."""


def run_blocks(
    job: ExtractionJob,
    writer: CacheWriter,
    blocks: list[int],
    objects: ObjectStore,
    *,
    alone: bool,
) -> int:
    """Compute and write blocks, overlapped; return the number of their pairs.

    One block is computed, one is written and one is queued: at most three are in memory, plus the
    encoded bytes of one array of the block being written.

    Args:
        job: What to run.
        writer: Writes them.
        blocks: Numbers of the blocks.
        objects: Where the cache is.
        alone: Whether this is the only process of the run.

    Raises:
        Interrupted: The run was asked to stop. Blocks that were computed are written, unless it
            was asked a second time.
    """
    pairs = sum(len(job.plan.pairs_of(block)) for block in blocks)
    ran, at_once = 0, False
    pool = ThreadPoolExecutor(1, thread_name_prefix="writer")
    waiting: deque[Future[None]] = deque()
    try:
        with progress_bar(pairs, "Extracting", "pair") as bar:

            def count(number: int) -> None:
                nonlocal ran
                ran += number
                bar.update(number)

            for block in blocks:
                in_block = job.plan.pairs_of(block)
                rows = job.forward.run(in_block, count)
                if len(waiting) == _BLOCKS_WAITING:
                    waiting.popleft().result()
                _log.debug(f"Block {block}: {len(in_block)} pairs are computed")
                waiting.append(pool.submit(writer.write_block, block, len(in_block), rows))
            for writing in waiting:
                writing.result()
    except KeyboardInterrupt as stop:
        at_once = not _written(waiting)
        raise _interrupted(job, blocks, ran, objects, alone=alone, at_once=at_once) from stop
    finally:
        pool.shutdown(wait=not at_once, cancel_futures=at_once)
    return pairs


def _written(waiting: deque[Future[None]]) -> bool:
    """Wait until computed blocks are written; return False if interrupted again."""
    try:
        left = sum(not writing.done() for writing in waiting)
        if left:
            _log.info(f"Writing what is computed, {left} blocks; Ctrl-C again ends at once")
        for writing in waiting:
            writing.result()
    except KeyboardInterrupt:
        return False
    return True


def _interrupted(
    job: ExtractionJob,
    blocks: list[int],
    ran: int,
    objects: ObjectStore,
    *,
    alone: bool,
    at_once: bool,
) -> Interrupted:
    """Return the interruption with what is kept, read from the cache."""
    goes_on = "The same command resumes from there"
    if at_once:
        return Interrupted("Blocks that were written are kept.", f"{goes_on}.", at_once=True)
    plan = job.plan
    written = read_commits(objects, job.manifest, objects.sizes()).records
    pairs = {block: len(plan.pairs_of(block)) for block in written}
    kept = (
        f"{len(written)} of {plan.blocks} blocks are written and kept, {sum(pairs.values()):,} of "
        f"{plan.pairs:,} pairs."
    )
    # Other processes' progress inside a block is unknown here.
    again = ran - sum(pairs.get(block, 0) for block in blocks)
    also = f"; {again:,} pairs that had run are run again" if alone and again > 0 else ""
    return Interrupted(kept, f"{goes_on}{also}.")
