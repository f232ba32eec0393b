"""Makes the archive of caches of this format version: `python -m tests.cache_schema.archive.make`.

An archive is made once, when a version is new, and then kept: later programs must read it, or
refuse it by its version. The caches are of a tiny random Llama and of made-up pairs.
"""

import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from mav.cache_schema.manifest import FORMAT_VERSION
from mav.cache_schema.reader import CacheReader
from mav.cache_schema.records import content_digest

HERE: Final = Path(__file__).parent
CACHES: Final[dict[str, dict[str, Any]]] = {
    "factored-bfloat16": {"dtype": "bfloat16"},
    "factored-float32-pooled": {"dtype": "float32", "pooled_size": 8},
    "int8-zstd-pooled": {
        "dtype": "bfloat16",
        "storage_dtype": "int8",
        "compression": "zstd",
        "pooled_size": 8,
    },
    "fp8-blosc-pooled": {
        "dtype": "float16",
        "storage_dtype": "fp8",
        "compression": "blosc",
        "pooled_size": 8,
    },
    "topk-blosc": {"dtype": "bfloat16", "logits": "topk", "top_k": 4, "compression": "blosc"},
    "dense-zstd": {"dtype": "float16", "logits": "dense", "compression": "zstd"},
}
"""Name -> options, so that every array of the table and every codec is in one of them."""


def decoded(reader: CacheReader) -> list[str]:
    """Return a digest of each block as a reader sees it, then one of plan and unembedding."""
    blocks = [content_digest(reader.read_block(b).rows) for b in range(reader.plan.blocks)]
    rest: dict[str, NDArray[Any]] = {
        "block_start": reader.plan.block_start,
        "response_start": reader.plan.response_start,
        "response_length": reader.plan.response_length,
        "pair_id": reader.pair_id,
        "prompt_id": reader.prompt_id,
        "source_row": reader.read_source_rows(),
        **reader.read_unembedding(),
        "source": reader.read_sources(),
    }
    return [*blocks, content_digest(rest)]


def main() -> None:
    """Write `version-N.tar.xz` and, beside it, what must be read from it."""
    from tests.support.models.tiny import (
        make_cache,  # brings torch, which the tests of the format do without
    )

    archive = HERE / f"version-{FORMAT_VERSION}.tar.xz"
    expected = {}
    with tempfile.TemporaryDirectory() as folder, tarfile.open(archive, "w:xz") as tar:
        for name, options in CACHES.items():
            root = make_cache(Path(folder, name), pairs=4, **options)
            expected[name] = decoded(CacheReader(root))
            tar.add(root, arcname=name)
    (HERE / f"version-{FORMAT_VERSION}.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
