"""Commands refuse a location that cannot hold a cache, in one line."""

import pytest

from tests.support.running.commands import refused


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_commands_refuse_it_too(command: str) -> None:
    told = refused(2, command, "s3://bucket/a//b")
    assert "two slashes in a row" in told
