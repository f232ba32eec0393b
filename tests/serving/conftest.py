"""Two tiny bases on disk, a head for both, a server of them, and its clients."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from playwright.sync_api import sync_playwright

from mav.pipeline.serving.http_server import HttpServer
from tests.support.models.tiny import make_cache, save_base, tiny_base
from tests.support.running.browser import launch
from tests.support.running.server import client, http, running
from tests.support.steering.heads import write_head


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("bases")
    return (
        str(save_base(tiny_base(), folder / "first")),
        str(save_base(tiny_base(seed=3, num_hidden_layers=6), folder / "second")),
    )


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("served")
    return write_head(folder / "head", make_cache(folder, tiny_base(), pairs=8))


@pytest.fixture(scope="session")
def server(head: str, bases: tuple[str, str]) -> Iterator[HttpServer]:
    with running(head=head, bases=bases, max_rows=8) as running_server:
        yield running_server


@pytest.fixture
def ai(server: HttpServer) -> Iterator[openai.OpenAI]:
    with client(server) as openai_client:
        yield openai_client


@pytest.fixture(scope="session")
def web(server: HttpServer) -> Iterator[httpx2.Client]:
    with http(server) as plain_client:
        yield plain_client


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as started:
        chromium = launch(started)
        yield chromium
        chromium.close()
