"""Finds a base model (hub id, folder or GGUF file) and computes its digests."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from mav.cache_schema.errors import BaseModelError, UsageError
from mav.cache_schema.portable import portable_name
from mav.pipeline.base.given.adapter import adapter_digest, base_of_adapter, is_adapter
from mav.pipeline.base.weight_files import refuse_adapter, safetensors_files
from mav.pipeline.runtime import hub, hub_errors

_HUB_PATTERNS: Final = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
_HUB_IGNORED: Final = ("original/*", "consolidated*", "*.bin", "*.pth", "*.pt")
_NOT_COMPUTED: Final = (
    "transformers_version",
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
)
"""Members of a configuration that name its origin, or that the manifest records itself."""
_INSTEAD: Final = {".gguf": "name one with `gguf_file`", **hub_errors.PICKLES_REMEDY}
"""What to do with the weights that a repository has instead of those that were expected."""
_TOKENIZERS: Final = ("*token*", "vocab*", "*.model", "tekken.json")
_READ_AT_ONCE: Final = 1 << 22
_SHA256: Final = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class BaseSource:
    """Where a base model's files are.

    Attributes:
        id: Hub id, or absolute path.
        folder: Local folder with config, tokenizer and weights.
        gguf_file: Name of the GGUF file in the folder, or None for safetensors.
        revision: Commit of the hub repository, or None for local files.
        converted: Folder with the GGUF file's contents as safetensors, if there is one; see
            `mav.pipeline.base.gguf_copy`.
        adapter: Folder of an adapter that the files above are the base of; `id` is its then.
    """

    id: str
    folder: Path
    gguf_file: str | None
    revision: str | None
    converted: Path | None = None
    adapter: Path | None = None

    @property
    def loaded_from(self) -> dict[str, Any]:
        """Path that transformers reads config, tokenizer or weights from."""
        if self.gguf_file is None or self.converted is not None:
            return {"pretrained_model_name_or_path": self.converted or self.folder}
        return {"pretrained_model_name_or_path": self.folder, "gguf_file": self.gguf_file}

    @property
    def name(self) -> str:
        """Its name in caches and heads: hub id, or name of the folder or file."""
        return portable_name(self.id)

    def weight_files(self) -> list[Path]:
        """Return the files that hold the weights; for GGUF, the file itself.

        Raises:
            BaseModelError: There are none that may be loaded, or not all of them.
        """
        if self.gguf_file is not None:
            return [self.folder / self.gguf_file]
        return safetensors_files(self.folder)

    def weights_digest(self) -> str:
        """Return a SHA-256 over the weights: of one file, or of names and contents of several.

        Of an adapter with its base, over both.
        """
        own = self._weights_digest()
        return own if self.adapter is None else adapter_digest(self.adapter, own)

    def _weights_digest(self) -> str:
        files = self.weight_files()
        with ThreadPoolExecutor() as pool:
            digests = list(pool.map(file_digest, files))
        if len(files) == 1:
            return digests[0]  # a single file may be called anything
        listing = [[path.name, digest] for path, digest in zip(files, digests, strict=True)]
        return hashlib.sha256(json.dumps(listing).encode()).hexdigest()

    def config_digest(self) -> str:
        """Return a SHA-256 over the configuration; a GGUF file holds its own, under its digest.

        Raises:
            BaseModelError: It cannot be read.
        """
        if self.gguf_file is not None:
            return config_digest({})
        try:
            return config_digest(json.loads((self.folder / "config.json").read_bytes()))
        except (OSError, ValueError) as error:
            raise BaseModelError(
                f"{self.folder}: its config.json cannot be read: {error}"
            ) from error


def resolve_base(
    base_model: str, gguf_file: str | None = None, revision: str | None = None
) -> BaseSource:
    """Find a base model's files, downloading a hub repository if need be.

    Args:
        base_model: Hub id, folder, or a `.gguf` file.
        gguf_file: File inside the folder or repository, for weights in GGUF.
        revision: Branch, tag or commit of a hub repository.

    Raises:
        BaseModelError: Nothing is there.
        UsageError: A revision is given for local files, or a file inside a file.
    """
    path = Path(base_model)
    if revision is not None and path.exists():
        raise UsageError(
            f"revision: got {revision!r}, but {path} is here and has no revisions; leave it out, "
            f"or name the base by its hub id"
        )
    if gguf_file is not None and path.is_file():
        raise UsageError(f"gguf_file: got {gguf_file!r}, but {path} is a file itself; leave it out")
    if path.suffix == ".gguf" and path.is_file():
        return BaseSource(
            id=str(path.resolve()), folder=path.parent, gguf_file=path.name, revision=None
        )
    if path.is_dir():
        if gguf_file is not None and not (path / gguf_file).is_file():
            raise BaseModelError(f"{path}: no file {gguf_file!r} in it; check `gguf_file`")
        if is_adapter(path):
            return _adapted(base_model, path, gguf_file)
        if gguf_file is None and not (path / "config.json").is_file():
            refuse_adapter(path)
            ggufs = sorted(file.name for file in path.glob("*.gguf"))
            hint = f" It has {', '.join(ggufs)}: name one with `gguf_file`." if ggufs else ""
            raise BaseModelError(f"{path}: no config.json, so not a model's folder.{hint}")
        return BaseSource(id=str(path.resolve()), folder=path, gguf_file=gguf_file, revision=None)
    if (
        path.suffix == ".gguf"
        or base_model.count("/") > 1
        or base_model.startswith((".", "/", "~"))
    ):
        raise BaseModelError(f"{base_model}: no such file or folder")
    return _from_hub(base_model, gguf_file, revision)


def _adapted(name: str, folder: Path, gguf_file: str | None) -> BaseSource:
    """Return the source of an adapter's base, with the adapter."""
    named = base_of_adapter(folder)
    if is_adapter(Path(named)):
        raise BaseModelError(f"{name}: an adapter of {named}, which is an adapter itself")
    try:
        base = resolve_base(named, gguf_file)
    except BaseModelError as error:
        raise BaseModelError(f"{name}: the base of this adapter is not found: {error}") from error
    if base.adapter is not None:
        raise BaseModelError(f"{name}: an adapter of {named}, which is an adapter itself")
    here = Path(name).exists()
    return dataclasses.replace(
        base,
        id=str(folder.resolve()) if here else name,
        revision=None if here else folder.name,
        adapter=folder,
    )


def config_digest(config: Mapping[str, Any]) -> str:
    """Return a SHA-256 over those fields of a configuration that affect the computation."""
    deciding = {name: value for name, value in config.items() if name not in _NOT_COMPUTED}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def tokenizer_digest(vocabulary: Mapping[str, int]) -> str:
    """Return a SHA-256 over a token-to-id mapping, which defines what an alignment vector means."""
    ordered = sorted((index, token) for token, index in vocabulary.items())
    return hashlib.sha256(json.dumps(ordered).encode()).hexdigest()


def tensors_digest(tensors: Mapping[str, Any]) -> str:
    """Return a SHA-256 over named tensors, for models that were built in memory."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """Return a file's SHA-256, cached until the file changes.

    The hub's client names large files by their SHA-256 and links to them, so the 13 GB of a 7B
    base need not be read to identify it.
    """
    if path.is_symlink():
        # Only one link: the blob itself may be a link to a store shared by repositories.
        blob = path.parent / path.readlink()
        if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name):
            return blob.name
    status = path.stat()
    return _file_digest(path, status.st_size, status.st_mtime_ns)


@lru_cache
def _file_digest(path: Path, size: int, modified: int) -> str:  # noqa: ARG001
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_READ_AT_ONCE):
            digest.update(part)
    return digest.hexdigest()


def _from_hub(repository: str, gguf_file: str | None, revision: str | None) -> BaseSource:
    patterns = [*_HUB_PATTERNS] if gguf_file is None else ["*.json", gguf_file]
    try:
        folder = hub.download(repository, revision=revision, allow=patterns, ignore=_HUB_IGNORED)
    except Exception as error:
        # The hub's client raises a dozen types: no such repository, gated, offline, time-out.
        reason = hub_errors.why(error, repository, "model", revision)
        raise BaseModelError(
            f"{repository}: no such folder here, and the hub did not give it: {reason}"
        ) from error
    if is_adapter(folder):
        return _adapted(repository, folder, gguf_file)
    _require_a_model(repository, folder, gguf_file)
    return BaseSource(id=repository, folder=folder, gguf_file=gguf_file, revision=folder.name)


def _require_a_model(repository: str, folder: Path, gguf_file: str | None) -> None:
    """Refuse a repository without a loadable model, and list what it has."""
    needed = (
        {"config.json": ["config.json"], ".safetensors file": ["*.safetensors"]}
        | {"tokenizer": _TOKENIZERS}
        if gguf_file is None
        else {f"file {gguf_file!r}": [gguf_file]}
    )
    for expected, patterns in needed.items():
        if not any(file for pattern in patterns for file in folder.glob(pattern)):
            reason = hub_errors.why_not_there(repository, folder.name, expected, _INSTEAD)
            raise BaseModelError(f"{repository}: {reason}")
