"""What the fault tests are worth: without any one safeguard, one of them fails.

Each mutation takes one safeguard out of the program, mostly by replacing a piece of a function's
source, and runs a check of the fault tests, which must then fail; unchanged, the check passes.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from mav.cache_schema import checksummed_json, commits, records, shards, verify
from mav.cache_schema.records import commit_key
from mav.cache_schema.storage import local as local_objects
from mav.cache_schema.storage import lock
from mav.cache_schema.storage.base import ObjectStore, replace
from mav.cache_schema.storage.local import LocalObjectStore
from mav.cache_schema.storage.open import open_object_store
from mav.cache_schema.writer import CacheWriter
from tests.support.caches.written_caches import read_all
from tests.support.faults import bit_flips as flips
from tests.support.faults import damage
from tests.support.faults import interleaving as writers
from tests.support.faults import power_loss as power
from tests.support.faults.cache_program import Whole
from tests.support.faults.fork_server import ForkServer
from tests.support.faults.mutation import changed
from tests.support.faults.simulated_disk import Call, Recorder
from tests.support.faults.watched_os import watching

Mutation = contextlib.AbstractContextManager[None]
Check = Callable[[Path], None]

SEVERAL: Final = 11
"""One of so many interruptions is tried."""


@contextlib.contextmanager
def commits_first() -> Iterator[None]:
    """Commit a block, and write its shards afterwards."""
    late: list[tuple[str, bytes]] = []
    commit = CacheWriter._commit

    def put(_: ObjectStore, key: str, data: Any, __: object) -> None:
        late.append((key, bytes(data)))

    def commit_and_put(self: CacheWriter, *args: Any) -> None:
        commit(self, *args)
        while late:
            replace(self._objects, *late.pop())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mav.cache_schema.writer.put", put)
        patch.setattr(CacheWriter, "_commit", commit_and_put)
        yield


@contextlib.contextmanager
def without_mutex() -> Iterator[None]:
    """Compare and rename without keeping anybody out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalObjectStore, "_mutex", lambda _: contextlib.nullcontext())
        yield


# Checks, each of which is a part of a fault test


def flipped(kind: str) -> Check:
    def check(folder: Path) -> None:
        with flips.small_chunks():
            sound = flips.make_sound(folder / "cache", "none")
            flips.check_flips(sound, flips.draw(sound, kind, 12, seed=3))

    return check


def damaged(harm: Callable[[damage.Caches], None]) -> Check:
    def check(folder: Path) -> None:
        damage.make_whole(folder / "cache")
        values = read_all(folder / "cache")
        harm(damage.Caches(damaged=folder / "cache", original=folder, other=folder, values=values))

    return check


def cut(caches: damage.Caches) -> None:
    key = damage.block_shard("labels", damage.BLOCK)
    damage.cut_a_byte(caches.damaged / key)
    damage.check_sized_damage_is_seen_on_opening(caches.damaged, key)


def older(caches: damage.Caches) -> None:
    key = damage.block_shard("labels", damage.BLOCK)
    rows = damage.PLAN.used_rows(damage.BLOCK)
    damage.leave_an_older_attempt(caches.damaged, key, damage.LAYOUTS["labels"], rows)
    damage.check_found_and_never_read(caches, {key: damage.BLOCK})


def swapped_records(caches: damage.Caches) -> None:
    keys = {commit_key(block): block for block in (damage.BLOCK, damage.TWIN)}
    damage.swap(*(caches.damaged / key for key in keys))
    damage.check_found_and_never_read(caches, keys)


def interrupted(folder: Path) -> None:
    cases = list(writers.interrupted(writers.SAME_RUN))
    writers.check_interleavings(open_object_store(folder / "cache"), cases[::SEVERAL])


def on_a_folder(check: Callable[[ObjectStore], None]) -> Check:
    return lambda folder: check(open_object_store(folder / "cache"))


def written_for_certain(folder: Path) -> None:
    recorder = Recorder(folder)
    with watching(recorder):
        LocalObjectStore(folder / "place").write("new/object", b"x", None)
    disk, _ = power.play(recorder.calls)
    assert "place/new/object" in disk.certain()


@dataclass(frozen=True, kw_only=True)
class Safeguard:
    """Something that protects a cache.

    Attributes:
        out: Takes it out of the program.
        check: Fails without it.
    """

    out: Callable[[], Mutation]
    check: Check


def line(function: object, old: str, new: str, check: Check) -> Safeguard:
    return Safeguard(out=partial(changed, function, old, new), check=check)


SAFEGUARDS: Final = {
    "checksum of chunks": line(
        shards.read_shard,
        "_checksum(out[number // 2]) != parts[number].tobytes()",
        "False",
        flipped("chunk"),
    ),
    "checksum of the index": line(
        shards._read_index, "_checksum(plain) != data", "b'' and data", flipped("index")
    ),
    "digest of the checksums of chunks": line(
        shards.read_shard, "_digest([written.tobytes()]) != checksums", "False", damaged(older)
    ),
    "SHA-256 of objects": line(
        verify._Checker._read,
        "hashlib.sha256(data.data).hexdigest() == record.sha256",
        "True",
        flipped("unembedding"),
    ),
    "digest of the values": line(
        verify._Checker.block,
        "content_digest(rows) != commit.content",
        "False",
        lambda folder: damage.check_wrong_encoding_is_found(folder / "cache"),
    ),
    "sizes on opening": line(commits.size_problem, "size == record.bytes", "True", damaged(cut)),
    "checksum of the root": line(
        checksummed_json.check_checksum,
        "hashlib.sha256(blank).hexdigest().encode() != members[0][1]",
        "False",
        flipped("root"),
    ),
    "checksum of records": line(
        checksummed_json.check_checksum,
        "hashlib.sha256(blank).hexdigest().encode() != members[0][1]",
        "False",
        flipped("commit record"),
    ),
    "number in a record": line(
        records.read_block_record, "record.block != block", "False", damaged(swapped_records)
    ),
    "new names only": line(
        LocalObjectStore._give_name,
        "os.link(temporary, path)",
        "os.rename(temporary, path)",
        interrupted,
    ),
    "versions compared": line(
        LocalObjectStore._replace, "_version_of(path) != expected", "False", interrupted
    ),
    "comparing and renaming in one": Safeguard(
        out=without_mutex, check=writers.check_comparing_and_replacing_is_one_step
    ),
    "claim looked at": line(
        CacheWriter._require_claim,
        "self._objects.version(commit_key(block)) != claim",
        "False",
        interrupted,
    ),
    "commit in place of the claim only": line(
        CacheWriter._commit,
        "self._objects.write(key, data, claim)",
        "replace(self._objects, key, data)",
        interrupted,
    ),
    "lock looked at": line(
        lock.require_held,
        "holder is None or holder.run != run",
        "False",
        on_a_folder(writers.check_without_the_lock_nothing_is_written),
    ),
    "commit last": Safeguard(out=commits_first, check=on_a_folder(writers.check_killed_anywhere)),
    "a new folder's name": line(
        local_objects._make_folder, "sync_directory(folder.parent)", "pass", written_for_certain
    ),
}


pytestmark = pytest.mark.usefixtures("unflushed_disk")


@pytest.mark.parametrize("name", SAFEGUARDS)
def test_without_it_a_check_fails(name: str, tmp_path: Path) -> None:
    safeguard = SAFEGUARDS[name]
    for folder in ("with", "without"):
        (tmp_path / folder).mkdir()
    safeguard.check(tmp_path / "with")
    with safeguard.out(), pytest.raises((AssertionError, pytest.fail.Exception)):
        safeguard.check(tmp_path / "without")


# What a power failure takes, if it was not forced to the disk

FLUSHES: Final = {
    "a file's content": (local_objects._write_new, "os.fsync(descriptor)", "pass"),
    "a file's name": (LocalObjectStore._write, "os.fsync(folder)", "pass"),
}


def recorded(root: Path, without: str | None) -> list[Call]:
    """Run, flushing all or all but one kind of thing; return the calls that were made."""
    with changed(*FLUSHES[without]) if without else contextlib.nullcontext():
        return power.record(root)


@pytest.mark.parametrize("name", [None, *FLUSHES])
def test_without_flushing_a_power_failure_does_harm(
    forks: ForkServer, undisturbed: Whole, name: str | None, tmp_path: Path
) -> None:
    (tmp_path / "recorded").mkdir()
    calls: list[Call] = forks.value(recorded, tmp_path / "recorded", name)
    # By then all must be on the disk; earlier, what was not flushed could be in too many states.
    end = next(at for at, call in enumerate(calls) if call[:2] == ("log", ("completed",)))
    ended = forks.run(power.check_states, calls[:end], calls[end:], tmp_path, undisturbed, every=1)
    assert not ended.signal
    if name is None:
        assert not ended.raised, ended.trace
    else:
        assert {"AssertionError", "CacheError"} & set(ended.raised), ended.trace
