"""The lock of a cache: one run at a time writes to it, and a dead run does not block others.

The lock is an object that names its holder and changes with every heartbeat. A holder on this
machine is dead when its process is. A holder elsewhere is taken for dead when its lock does not
change for several heartbeats while another run watches, so clocks are never compared. Taking over
the lock of a holder that was merely suspended is safe: that run finds that its lock, or its claim
on a block, has changed, and stops before it commits anything.
"""

import contextlib
import json
import logging
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
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
        run: Id of the run, which all its processes know.
        host: Name of the machine.
        machine: Identifies the machine and its process namespace.
        pid: Process that keeps the lock alive.
        process_started: Start of the process, in seconds since 1970; process ids are reused.
        since: When the lock was taken, ISO 8601 in UTC.
        beat: Number of heartbeats since then.
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
        objects: The store that holds, or will hold, the cache.

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
        if (current := read_holder(objects)) is not None and current.run == holder.run:
            objects.delete(LOCK)
            objects.remove_empty_dirs()


def require_held(objects: ObjectStore, run: str) -> None:
    """Check that a run still holds the lock.

    Raises:
        CacheBusyError: Another run has taken it over, or it was removed.
    """
    holder = read_holder(objects)
    if holder is None or holder.run != run:
        raise CacheBusyError(
            f"{objects.location}: this run has lost the cache's lock"
            + (f" to {holder}" if holder else "; its lock was removed")
            + ". It commits nothing more; what it committed is kept."
        )


def read_holder(objects: ObjectStore) -> Holder | None:
    """Return who holds the lock of a cache, or None.

    Raises:
        CacheError: The lock cannot be parsed.
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
        if version is not None and other is not None and not _is_dead(objects, other, version):
            raise CacheBusyError(
                f"{objects.location}: another run is writing to this cache, {other}. Wait until it "
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


def _is_dead(objects: ObjectStore, holder: Holder, version: ETag) -> bool:
    if holder.machine == _machine():
        try:
            process = psutil.Process(holder.pid)
            # A killed process keeps its id until its parent waits for it.
            zombie: bool = process.status() == psutil.STATUS_ZOMBIE
            started: float = process.create_time()
            return zombie or abs(started - holder.process_started) > 1.0
        except psutil.NoSuchProcess:
            return True
    patience = BEAT_SECONDS * _BEATS_OF_SILENCE
    _log.warning(f"{objects.location} is locked by {holder}; watching it for {patience:.0f} s")
    deadline = time.monotonic() + patience
    while True:
        # Read before the lock is, so that the lock is read once after the deadline.
        late = time.monotonic() >= deadline
        if objects.version(LOCK) != version:
            return False
        if late:
            return True
        time.sleep(BEAT_SECONDS / 10)


def _beat(objects: ObjectStore, holder: Holder, version: ETag, stopped: threading.Event) -> None:
    """Write heartbeats until asked to stop, or until another run holds the lock."""
    beat = 0
    while not stopped.wait(BEAT_SECONDS):
        beat += 1
        try:
            version = objects.write(LOCK, _encode(replace(holder, beat=beat)), version)
        except (ConflictError, OSError, CacheError):
            # A failing store is reported where blocks are written. It may hold this heartbeat.
            with contextlib.suppress(OSError, CacheError):
                current = objects.version(LOCK)
                other = read_holder(objects)
                if current is None or other is None or other.run != holder.run:
                    return  # the lock is lost; writing the next block raises the error
                version = current


def _encode(holder: Holder) -> bytes:
    return json.dumps(asdict(holder), indent=1).encode()


def _machine() -> str:
    """Identify this boot of this machine and this namespace of process ids."""
    parts = [socket.gethostname()]
    for path in (Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")):
        with contextlib.suppress(OSError):
            parts.append(str(path.readlink()) if path.is_symlink() else path.read_text().strip())
    return "/".join(parts)
