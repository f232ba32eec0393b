"""The page before vLLM's server, which says nothing of the base: made up, as in `test_front`."""

import json
import threading
from collections.abc import Iterator

import pytest
import uvicorn
from playwright.sync_api import sync_playwright
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from mav.pipeline.engine.front import Front
from mav.pipeline.engine.front_settings import FrontSettings
from tests.support.running.browser import BROWSER, Opened, launch
from tests.support.running.limits import EVENT, wait_until

pytestmark = BROWSER


async def _models(_: Request) -> Response:
    return JSONResponse({"object": "list", "data": [{"id": "base"}]})


async def _chat(request: Request) -> Response:
    """Write a word for each token that is asked for, as vLLM streams them."""
    body = await request.json()

    def parts() -> Iterator[str]:
        strength = body["vllm_xargs"]["alpha"]
        for number in range(body["max_tokens"]):
            text = f"{strength} " if number else "alpha "
            logprob = {"token": text, "logprob": -0.5, "bytes": None, "top_logprobs": []}
            choice = {"index": 0, "delta": {"content": text}, "logprobs": {"content": [logprob]}}
            yield f"data: {json.dumps({'choices': [{**choice, 'finish_reason': None}]})}\n\n"
        end = {"index": 0, "delta": {"content": ""}, "logprobs": None, "finish_reason": "length"}
        yield f"data: {json.dumps({'choices': [end]})}\n\ndata: [DONE]\n\n"

    return StreamingResponse(parts(), media_type="text/event-stream")


@pytest.fixture(scope="module", params=[1.5, "0:2,8:0"], ids=["number", "schedule"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    settings = FrontSettings(
        names=(), alpha=request.param, max_tokens=77, transcript=False, local_only=True
    )
    app = Starlette(
        routes=[
            Route("/v1/models", _models),
            Route("/v1/chat/completions", _chat, methods=["POST"]),
        ]
    )
    config = uvicorn.Config(Front(app, settings), port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="test-front")
    thread.start()
    wait_until(lambda: server.started)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(EVENT)
    assert not thread.is_alive()


def test_tokens_are_not_coloured_and_the_page_says_so(url: str) -> None:
    with sync_playwright() as started:
        browser = launch(started)
        window = Opened(browser, url).begun()
        page = window.page
        told = page.locator("#uncoloured")
        assert told.is_hidden()
        own = page.get_by_label("Alpha, number").input_value()
        assert own == ("1" if "0:2" in page.locator("#range").text_content() else "1.5")
        window.ask(tokens=5)
        assert window.texts() == [f"alpha {f'{one} ' * 4}" for one in ("0", own, "2")]
        assert "no token is coloured" in told.text_content()
        assert told.is_visible()
        assert page.locator("#legend").is_hidden()
        assert page.locator(".raised, .lowered, .change, .hardly").count() == 0
        page.locator(".token").first.hover()
        assert page.locator("#detail").text_content() == '"alpha ": 60.65 %'
        page.get_by_role("button", name="Continue from this answer").first.click()
        assert told.is_hidden()
        assert window.logged == []
        browser.close()
