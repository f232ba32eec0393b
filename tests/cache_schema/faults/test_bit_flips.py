"""One flipped bit, anywhere in a cache: a verification finds it, and no wrong value is ever read.

This is what ageing disks, bad memory and bad cables do. Flips are drawn over all kinds of bytes a
cache has, as many of each kind, however few bytes are of it. Chunks are made small here, so that
shards have several, with a last one in part and a rest left out.
"""

from collections.abc import Iterator

import pytest

from mav.cache_schema.arrays import layouts
from tests.support.caches.written_caches import draft, quick_disk
from tests.support.faults.bit_flips import (
    COMPRESSIONS,
    FLIPS,
    KINDS,
    PARTS,
    Sound,
    check_flips,
    draw,
    make_sound,
    small_chunks,
)


@pytest.fixture(scope="module", autouse=True)
def setting() -> Iterator[None]:
    with small_chunks(), quick_disk():
        yield


@pytest.fixture(scope="module", params=COMPRESSIONS)
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sound:
    return make_sound(tmp_path_factory.mktemp("flips") / "cache", request.param)


def test_shards_have_several_chunks_and_some_are_left_out(sound: Sound) -> None:
    manifest, plan = draft(has_bias=True)
    states = layouts(manifest)["hidden_states"]
    assert states.shard[0] // states.chunk[0] > 2
    assert plan.used_rows(1) <= states.shard[0] - states.chunk[0]
    assert layouts(manifest)["unembedding/weight"].shards > 1
    assert all(sound.ranges[kind] for kind in KINDS)


@pytest.mark.parametrize(
    "part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in range(1, PARTS))]
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_found_and_no_wrong_value_is_read(
    sound: Sound, kind: str, part: int
) -> None:
    check_flips(sound, draw(sound, kind, FLIPS, seed=1)[part::PARTS])
