"""Reading prompts to decode from a file."""

import json
from pathlib import Path

from cache_schema.errors import DataError


def read_prompts(path: Path) -> list[str]:
    """Read one prompt a line; in a `.jsonl` file, objects with a field `prompt`.

    Raises:
        DataError: The file cannot be read, has no prompt, or a line is not as it should be.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if path.suffix != ".jsonl":
            prompts.append(line)
            continue
        try:
            row = json.loads(line)
            prompt = row["prompt"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}, line {number}: got {line[:60]!r}, expected an object with the field "
                f"'prompt'"
            ) from error
        if not isinstance(prompt, str):
            raise DataError(f"{path}, line {number}: 'prompt' is no text")
        prompts.append(prompt)
    if not prompts:
        raise DataError(f"{path}: no prompt in it")
    return prompts
