"""The lock of a cache: at most one run writes to it, and one that is gone holds up nobody.

The lock is an object that names its holder and changes with every beat of its heart. A holder on
this machine is gone when its process is; one elsewhere when its lock did not change for several
beats while somebody watched, so no two clocks are ever compared. A lock that is taken over while
its holder only slept does no harm: that run finds its lock or its claim on a block changed, and
stops before it commits anything.
"""

import contextlib
import json
import logging
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import psutil

from mav.cache_schema.errors import CacheBusyError, CacheError
from mav.cache_schema.storage.base import ConflictError, ETag, ObjectStore

_log = logging.getLogger(__name__)

LOCK: Final = "lock.json"
BEAT_SECONDS: Final = 5.0
_BEATS_OF_SILENCE: Final = 4


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a lock.

    Attributes:
        run: Id of the run; all its processes know it.
        host: Name of the machine.
        machine: Tells apart machines, and process namespaces of one machine.
        pid: Process that keeps the lock.
        process_started: Its start, in seconds since 1970, as a process id is used again.
        since: When the lock was taken, ISO 8601 in UTC.
        beat: Beats since then.
    """

    run: str
    host: str
    machine: str
    pid: int
    process_started: float
    since: str
    beat: int

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


@contextlib.contextmanager
def run_lock(objects: ObjectStore) -> Iterator[str]:
    """Hold the lock of a cache; yields the id of this run.

    Args:
        objects: Where the cache is, or will be.

    Raises:
        CacheBusyError: Another run holds it.
    """
    holder, version = _take(objects)
    stopped = threading.Event()
    beating = threading.Thread(
        target=_beat, args=(objects, holder, version, stopped), name="lock", daemon=True
    )
    beating.start()
    try:
        yield holder.run
    finally:
        stopped.set()
        beating.join()
        if (found := read_holder(objects)) is not None and found.run == holder.run:
            objects.delete(LOCK)
            objects.remove_empty_dirs()


def require_held(objects: ObjectStore, run: str) -> None:
    """Check that a run still holds the lock.

    Raises:
        CacheBusyError: Another run has taken it over, or it was removed.
    """
    found = read_holder(objects)
    if found is None or found.run != run:
        raise CacheBusyError(
            f"{objects.location}: this run has lost the cache's lock"
            + (f" to {found}" if found else "; its lock was removed")
            + ". It commits nothing more; what it committed is kept."
        )


def read_holder(objects: ObjectStore) -> Holder | None:
    """Return who holds the lock of a cache, or None.

    Raises:
        CacheError: The lock cannot be understood.
    """
    try:
        data = objects.read(LOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return Holder(**json.loads(bytes(data)))
    except (ValueError, TypeError) as error:
        raise CacheError(
            f"{objects.location}/{LOCK}: damaged ({error}). If no extraction is running, delete "
            f"this object and run the command again."
        ) from error


def _take(objects: ObjectStore) -> tuple[Holder, ETag]:
    me = psutil.Process()
    holder = Holder(
        run=uuid.uuid4().hex,
        host=socket.gethostname(),
        machine=_machine(),
        pid=me.pid,
        process_started=me.create_time(),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        beat=0,
    )
    while True:
        version = objects.version(LOCK)
        other = read_holder(objects) if version else None
        if version is not None and other is not None and not _gone(objects, other, version):
            raise CacheBusyError(
                f"{objects.location}: another run writes to this cache, {other}. Wait until it "
                f"has finished, or stop it; what it committed is kept."
            )
        data = _encode(holder)
        try:
            return holder, objects.write(LOCK, data, version)
        except ConflictError:
            continue
        except OSError:
            objects.rollback(LOCK, data)
            objects.remove_empty_dirs()
            raise


def _gone(objects: ObjectStore, holder: Holder, version: ETag) -> bool:
    if holder.machine == _machine():
        try:
            process = psutil.Process(holder.pid)
            # A killed process that nobody waits for keeps its number.
            dead: bool = process.status() == psutil.STATUS_ZOMBIE
            started: float = process.create_time()
            return dead or abs(started - holder.process_started) > 1.0
        except psutil.NoSuchProcess:
            return True
    patience = BEAT_SECONDS * _BEATS_OF_SILENCE
    _log.warning(
        f"{objects.location} is locked by {holder}; watching {patience:.0f} s for a sign of life"
    )
    deadline = time.monotonic() + patience
    while True:
        # Before looking, so that the last look is after the deadline, however late this wakes up.
        late = time.monotonic() >= deadline
        if objects.version(LOCK) != version:
            return False
        if late:
            return True
        time.sleep(BEAT_SECONDS / 10)


def _beat(objects: ObjectStore, holder: Holder, version: ETag, stopped: threading.Event) -> None:
    """Keep the lock fresh until asked to stop, or until another run holds it."""
    beat = 0
    while not stopped.wait(BEAT_SECONDS):
        beat += 1
        fields = asdict(holder) | {"beat": beat}
        try:
            version = objects.write(LOCK, _encode(Holder(**fields)), version)
        except (ConflictError, OSError, CacheError):
            # A failing store is reported where blocks are written. It may or may not hold this
            # beat.
            with contextlib.suppress(OSError, CacheError):
                found = objects.version(LOCK)
                holding = read_holder(objects)
                if found is None or holding is None or holding.run != holder.run:
                    return  # another run's; writing the next block raises the error
                version = found


def _encode(holder: Holder) -> bytes:
    return json.dumps(asdict(holder), indent=1).encode()


def _machine() -> str:
    """Name this boot of this machine and this namespace of process ids."""
    parts = [socket.gethostname()]
    for place in (Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")):
        with contextlib.suppress(OSError):
            parts.append(str(place.readlink()) if place.is_symlink() else place.read_text().strip())
    return "/".join(parts)
