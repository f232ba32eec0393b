"""What the loopback hub has: a base, and data sets in the forms that are common there."""

import gzip
import io
import json
from pathlib import Path
from typing import Any, Final

import pyarrow
from pyarrow import parquet

from mav.pipeline.base.model import BaseModel
from tests.support.models.tiny import rows, save_base

DATA_README: Final = b"---\nlicense: mit\n---\n# Preferences\n"


def base_files(base: BaseModel, folder: Path, *, shards: bool = True) -> dict[str, bytes]:
    """Return the files of a base's repository, its weights in several shards with an index."""
    save_base(base, folder)
    if shards:
        (folder / "model.safetensors").unlink()
        base.model.save_pretrained(folder, max_shard_size="40KB")
        assert (folder / "model.safetensors.index.json").is_file()
    return files_in(folder) | {"README.md": b"# A tiny base\n"}


def files_in(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder by their path in it."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def hh_rlhf(pairs: int = 40) -> dict[str, bytes]:
    """Return a data set in the form of Anthropic/hh-rlhf: subset folders of compressed lines."""
    found = {"README.md": DATA_README}
    for number, (subset, split) in enumerate(
        (subset, split)
        for subset in ("harmless-base", "helpful-base")
        for split in ("train", "test")
    ):
        count = pairs if split == "train" else pairs // 4
        some = rows(pairs * (number + 1))[-count:]
        lines = "".join(json.dumps(row) + "\n" for row in some)
        found[f"{subset}/{split}.jsonl.gz"] = gzip.compress(lines.encode(), mtime=0)
    return found


def ultrafeedback(pairs: int = 40) -> dict[str, bytes]:
    """Return one in the form of UltraFeedback: parquet files of messages, splits of its own."""
    readme = "---\nconfigs:\n- config_name: default\n  data_files:\n"
    found = {}
    for split, count in (("train_prefs", pairs), ("test_prefs", pairs // 4)):
        path = f"data/{split}-00000-of-00001.parquet"
        readme += f"  - split: {split}\n    path: data/{split}-*\n"
        found[path] = _parquet([_messages(row) for row in rows(count)])
    return {"README.md": f"{readme}---\n# Preferences\n".encode(), **found}


def _messages(row: dict[str, str]) -> dict[str, Any]:
    """Return a transcript's row as UltraFeedback has it: a text and two conversations."""
    prompt, _, _ = row["chosen"].rpartition("\n\nAssistant:")
    question = prompt.removeprefix("\n\nHuman: ")
    return {
        "prompt": question,
        **{
            key: [
                {"role": "user", "content": question},
                {"role": "assistant", "content": row[key].rpartition("Assistant: ")[2]},
            ]
            for key in ("chosen", "rejected")
        },
    }


def _parquet(some: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(some), file)
    return file.getvalue()
