"""Files that are replaced whole."""

from pathlib import Path

import pytest

from mav.pipeline.runtime.durable_files import write_file


def test_an_error_names_the_file_that_was_meant(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.mkdir()
    with pytest.raises(IsADirectoryError) as error:
        write_file(path, b"x")
    assert error.value.filename == str(path)
    assert list(tmp_path.iterdir()) == [path]
