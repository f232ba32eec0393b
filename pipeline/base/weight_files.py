"""Finds the files of a base's weights, and checks that they are complete."""

import json
from pathlib import Path
from typing import Final

import safetensors

from mav.cache_schema.errors import BaseModelError

_WEIGHTS: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_ADAPTER: Final = "adapter_config.json"


def safetensors_files(folder: Path) -> list[Path]:
    """Return the files that transformers loads the weights of a base from, sorted by name.

    That is `model.safetensors`, or what its index names; others in the folder are not read.

    Raises:
        BaseModelError: There are none, or some that the index names are not there.
    """
    refuse_adapter(folder)
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    if not (folder / _INDEX).is_file():
        raise BaseModelError(f"{folder}: no {_WEIGHTS} and no {_INDEX}; {_remedy(folder)}.")
    files = [folder / name for name in _indexed(folder / _INDEX)]
    if missing := [file.name for file in files if not file.is_file()]:
        raise BaseModelError(
            f"{folder}: {', '.join(missing)} missing, {len(missing)} of the {len(files)} weight "
            f"files that {_INDEX} names. Download or copy the folder again."
        )
    return files


def refuse_adapter(folder: Path) -> None:
    """Refuse a folder with an adapter, for which transformers would load another base.

    Raises:
        BaseModelError: It has one.
    """
    if (folder / _ADAPTER).is_file():
        raise BaseModelError(
            f"{folder}: has {_ADAPTER}, so it holds an adapter (LoRA, for one), expected a base's "
            f"own weights; merge it into its base (`merge_and_unload` in peft), save that, and "
            f"name it. Where the base is merged already, delete {_ADAPTER}."
        )


def require_whole(files: list[Path]) -> None:
    """Refuse truncated files and files that are not safetensors.

    Raises:
        BaseModelError: Naming the file.
    """
    for file in files:
        try:
            with safetensors.safe_open(file, framework="np"):
                pass
        except (OSError, safetensors.SafetensorError) as error:
            raise BaseModelError(
                f"{file}: cannot be read as safetensors: {error}. Download or copy it again."
            ) from error


def _indexed(index: Path) -> list[str]:
    """Return the file names in an index; names outside its folder are refused."""
    try:
        names = sorted(
            {str(name) for name in json.loads(index.read_bytes())["weight_map"].values()}
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BaseModelError(
            f"{index}: cannot be read as an index of weight files: {error!r}. Download or copy it "
            f"again."
        ) from error
    outside = [name for name in names if Path(name).name != name]
    if outside or not names:
        raise BaseModelError(
            f"{index}: got {outside[0] if outside else 'no file'!r}, expected names of files "
            f"beside it. Download or copy it again."
        )
    return names


def _remedy(folder: Path) -> str:
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    ggufs = sorted(path.name for path in folder.glob("*.gguf"))
    if others:
        return (
            f"it has {', '.join(others)}: call a single file {_WEIGHTS}, or download {_INDEX} "
            f"beside several"
        )
    if pickled:
        return (
            f"it has {pickled[0]}, a pickle, which can run code when loaded; convert it to "
            f"safetensors with transformers' save_pretrained"
        )
    if ggufs:
        return f"it has {', '.join(ggufs)}; name one with `gguf_file`"
    return "download or convert the weights first"
