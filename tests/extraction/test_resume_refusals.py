"""Going on with a cache under other settings: refused, each difference named, nothing touched.

A cache whose blocks come from two bases, two tokenizers or two ways of storing would be whole by
every checksum and wrong all the same. So whatever decides the values of a cache or their places is
compared before anything is computed or written, for a cache that was interrupted and for one that
is complete.
"""

import copy
import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner

from mav.cache_schema.comparison import require_same
from mav.cache_schema.errors import CacheError, MismatchError
from mav.cache_schema.root import ROOT, encode_root, read_manifest
from mav.cache_schema.storage.open import open_object_store
from mav.cache_schema.writer import CacheWriter
from mav.cli import main
from mav.pipeline.base.model import BaseModel
from mav.pipeline.extraction.extract import extract
from mav.pipeline.extraction.options import ExtractOptions
from mav.pipeline.preferences.sources import DataSource
from tests.support.faults.mutation import changed
from tests.support.models.tiny import save_base, tiny_base, tiny_extraction, write_rows

PAIRS: Final = 12


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A cache, complete or interrupted after its first block, and the request that began it."""

    options: ExtractOptions
    complete: bool

    @property
    def root(self) -> Path:
        """Its folder."""
        return Path(self.options.output)


@dataclass(frozen=True, kw_only=True)
class Other:
    """Another request than the one a cache was begun with.

    Attributes:
        changes: Changed options.
        base: Makes another base.
        rows: Rows of the data set.
        named: The fields of the manifest that the refusal must name, and no others.
    """

    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    base: Callable[[], BaseModel] | None = None
    rows: int = PAIRS
    named: set[str]


@cache
def the_base() -> BaseModel:
    return tiny_base()


def other_tokenizer() -> BaseModel:
    """The same model with one more token, which no text has."""
    tokenizer = copy.deepcopy(the_base().tokenizer)
    tokenizer.add_tokens(["<unheard of>"])
    return dataclasses.replace(the_base(), tokenizer=tokenizer)


def files_of(root: Path) -> dict[str, bytes | None]:
    """Everything in a folder, hidden files and folders too."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


def begin(folder: Path, *, complete: bool, base: BaseModel | None = None, **changes: Any) -> Begun:
    """Extract a small cache, or as much of it as one block."""
    base = base or the_base()
    folder.mkdir()
    data = write_rows(folder / "pairs.jsonl", PAIRS)
    options = tiny_extraction(data, folder / "cache", **{"storage_dtype": "float32", **changes})
    if complete:
        extract(options, base=base)
        return Begun(options=options, complete=True)
    write = CacheWriter.write_block
    blocks: list[int] = []

    def interrupted(self: CacheWriter, block: int, *rest: Any) -> None:
        if blocks:
            raise KeyboardInterrupt
        blocks.append(block)
        write(self, block, *rest)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(CacheWriter, "write_block", interrupted)
        extract(options, base=base)
    assert not read_manifest(open_object_store(options.output)).complete
    return Begun(options=options, complete=False)


def check_refused(begun: Begun, other: Other, folder: Path) -> None:
    """Check that a request is refused, all differences are named, and nothing is changed."""
    before = files_of(begun.root)
    source = write_rows(folder / "asked.jsonl", other.rows)
    options = dataclasses.replace(begun.options, data=DataSource(id=str(source)), **other.changes)
    base = other.base() if other.base else the_base()
    with pytest.raises(MismatchError) as caught:
        extract(options, base=base)
    assert named_in(str(caught.value)) == other.named
    assert files_of(begun.root) == before


def named_in(message: str) -> set[str]:
    """The fields that a refusal names, each with what is stored and what was asked for."""
    return set(
        re.findall(r"^  - ([a-z_.\[\]0-9]+): stored .+, asked for .+$", message, re.MULTILINE)
    )


pytestmark = pytest.mark.usefixtures("unflushed_disk")


@pytest.fixture(scope="module", params=[True, False], ids=["complete", "interrupted"])
def begun(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Begun:
    return begin(tmp_path_factory.mktemp("begun") / "here", complete=request.param)


PLAN: Final = {"plan.blocks", "plan.tokens", "plan.digest"}
OTHERS: Final = {
    "weights": Other(base=lambda: tiny_base(seed=1), named={"base.weights_digest"}),
    "architecture": Other(
        base=lambda: tiny_base("qwen3"),
        named={"base.architecture", "base.weights_digest", "base.config_digest"},
    ),
    "depth": Other(
        base=lambda: tiny_base(num_hidden_layers=6),
        named={
            "base.num_hidden_layers",
            "base.weights_digest",
            "base.config_digest",
            "states.layers",
        },
    ),
    "tokenizer": Other(base=other_tokenizer, named={"base.tokenizer_digest"}),
    "data": Other(
        rows=PAIRS - 1,
        named={
            "data.fingerprint",
            *(f"data.sources[0].{it}" for it in ("rows", "pairs", "fingerprint")),
            *PLAN,
        },
    ),
    "layers": Other(
        changes={"layer_selection": "0,4"}, named={"states.layer_selection", "states.layers"}
    ),
    "pooled size": Other(
        changes={"pooled_size": 16}, named={"states.pooled_size", "states.stored_width"}
    ),
    "pooling up": Other(changes={"pooled_size": 64}, named={"states.pooled_size"}),
    "stored type": Other(changes={"storage_dtype": "bfloat16"}, named={"states.dtype"}),
    "dense logits": Other(changes={"logits": "dense"}, named={"logits.encoding"}),
    "top-k logits": Other(
        changes={"logits": "topk", "top_k": 8}, named={"logits.encoding", "logits.top_k"}
    ),
    "max length": Other(changes={"max_length": 127}, named={"text.max_length"}),
    "shorter texts": Other(
        changes={"max_length": 40},
        named={"text.max_length", "data.prompts_truncated", "data.responses_cut", *PLAN},
    ),
    "block size": Other(changes={"block_tokens": 512}, named={"plan.block_tokens", "plan.blocks"}),
    "compression": Other(changes={"compression": "zstd"}, named={"storage.compression"}),
    "quantized states": Other(
        changes={"storage_dtype": "int8"}, named={"storage.states", "states.dtype"}
    ),
    "all at once": Other(
        changes={
            "layer_selection": "2",
            "pooled_size": 16,
            "logits": "dense",
            "max_length": 127,
            "compression": "blosc",
        },
        base=lambda: tiny_base(seed=2),
        named={
            "base.weights_digest",
            "states.layer_selection",
            "states.layers",
            "states.pooled_size",
            "states.stored_width",
            "logits.encoding",
            "text.max_length",
            "storage.compression",
        },
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_request_is_refused(begun: Begun, name: str, tmp_path: Path) -> None:
    check_refused(begun, OTHERS[name], tmp_path)


@pytest.mark.parametrize("complete", [True, False])
def test_another_number_of_logits_is_refused(complete: bool, tmp_path: Path) -> None:
    begun = begin(tmp_path / "here", complete=complete, logits="topk", top_k=8)
    check_refused(begun, Other(changes={"top_k": 9}, named={"logits.top_k"}), tmp_path)


def test_another_format_version_is_refused(begun: Begun, tmp_path: Path) -> None:
    file = begun.root / ROOT
    whole = file.read_bytes()
    manifest = read_manifest(open_object_store(begun.root))
    file.write_bytes(encode_root(dataclasses.replace(manifest, format_version=3)))
    before = files_of(begun.root)
    with pytest.raises(CacheError, match=r"format version 3, but this MAV reads version 2\b"):
        extract(begun.options, base=the_base())
    assert files_of(begun.root) == before
    file.write_bytes(whole)


@pytest.mark.parametrize("complete", [True, False])
def test_the_same_request_is_not_refused(complete: bool, tmp_path: Path) -> None:
    begun = begin(tmp_path / "here", complete=complete)
    source = write_rows(tmp_path / "the same rows in another place.jsonl", PAIRS)
    before = files_of(begun.root)
    report = extract(
        dataclasses.replace(begun.options, data=DataSource(id=str(source))), base=the_base()
    )
    assert report.manifest.complete
    assert (files_of(begun.root) == before) == complete
    assert (report.pairs_done == 0) == complete


def test_the_same_weights_with_another_configuration_are_refused(tmp_path: Path) -> None:
    begun = begin(tmp_path / "here", complete=False, base=tiny_base("gemma2"))
    before = files_of(begun.root)
    with pytest.raises(MismatchError, match=r"base\.config_digest"):
        extract(begun.options, base=tiny_base("gemma2", final_logit_softcapping=30.0))
    assert files_of(begun.root) == before


# From the command line


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A complete cache of a saved base, and the command that made it."""
    folder = tmp_path_factory.mktemp("saved")
    save_base(the_base(), folder / "base")
    command = {
        "--base-model": str(folder / "base"),
        "--dataset": str(write_rows(folder / "pairs.jsonl", PAIRS)),
        "--output": str(folder / "cache"),
        "--dtype": "float32",
        "--storage-dtype": "float32",
        "--device": "cpu",
    }
    arguments = ["extract", *(part for option in command.items() for part in option)]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    return folder / "cache", arguments


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (["--storage-dtype", "bfloat16"], {"states.dtype"}),
        (["--layer-selection", "1,2"], {"states.layer_selection", "states.layers"}),
        (["--logits", "topk", "--top-k", "5"], {"logits.encoding", "logits.top_k"}),
        (
            ["--compression", "blosc", "--max-length", "300"],
            {"storage.compression", "text.max_length"},
        ),
    ],
)
def test_the_command_line_names_each_difference_and_exits_with_1(
    saved: tuple[Path, list[str]], changes: list[str], named: set[str]
) -> None:
    root, command = saved
    before = files_of(root)
    result = CliRunner().invoke(main, [*command, *changes])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("Give the settings it was begun with")
    assert named_in(result.stderr) == named
    assert files_of(root) == before


def test_the_command_line_refuses_another_base(
    saved: tuple[Path, list[str]], tmp_path: Path
) -> None:
    root, command = saved
    save_base(tiny_base(seed=1), tmp_path / "base")
    before = files_of(root)
    result = CliRunner().invoke(main, [*command, "--base-model", str(tmp_path / "base")])
    assert (result.exit_code, named_in(result.stderr)) == (1, {"base.weights_digest"})
    assert files_of(root) == before


def test_without_the_comparison_nothing_is_refused(tmp_path: Path) -> None:
    begun = begin(tmp_path / "here", complete=False)
    without = changed(require_same, "if different:", "if False:")
    with without, pytest.raises((AssertionError, pytest.fail.Exception)):
        check_refused(begun, OTHERS["compression"], tmp_path)
