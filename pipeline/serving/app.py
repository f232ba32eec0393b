"""The routes of the server, and what stands before them."""

from time import time
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from mav.pipeline.serving import middleware
from mav.pipeline.serving.errors import ApiError
from mav.pipeline.serving.jobs import Asked
from mav.pipeline.serving.metrics import Metrics
from mav.pipeline.serving.options import ServeOptions
from mav.pipeline.serving.requests import FieldLimits, chat_asked, completion_asked, json_body
from mav.pipeline.serving.responses import ChatForm, CompletionForm
from mav.pipeline.serving.static_files import HEADERS, PageFile, page_files
from mav.pipeline.serving.streaming import Answer
from mav.pipeline.serving.worker import Worker


def build_app(options: ServeOptions, worker: Worker, metrics: Metrics) -> ASGIApp:
    """Return the ASGI application of a server.

    Args:
        options: Its settings.
        worker: What decodes.
        metrics: What is counted.
    """
    # FastAPI's own pages of documentation load scripts from elsewhere.
    app = FastAPI(title="mav", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(HTTPException, _no_such_route)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _failed)
    _add_api(app, options, worker)
    _add_watching(app, options, worker, metrics)
    for file in page_files():
        _add_page_file(app, file)

    guarded: ASGIApp = middleware.BodyLimit(middleware.HeadAsGet(app))
    if options.api_key is not None:
        guarded = middleware.ApiKey(guarded, options.api_key)
    else:
        guarded = middleware.LocalHost(guarded)
    return middleware.SecurityHeaders(middleware.Counted(guarded, metrics.answered), HEADERS)


def _add_api(app: FastAPI, options: ServeOptions, worker: Worker) -> None:
    started = int(time())
    limits = FieldLimits(
        alpha=options.alpha, max_new_tokens=options.max_new_tokens, max_rows=options.max_rows
    )

    def known(asked: Asked) -> Asked:
        if asked.model is not None and asked.model not in worker.bases:
            raise no_such_model(asked.model)
        return asked

    def no_such_model(name: str) -> ApiError:
        return ApiError(
            404,
            f"model: got {name!r}, expected one of {', '.join(worker.bases)}",
            param="model",
            code="model_not_found",
        )

    def described(name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": started,
            "owned_by": "mav",
            "in_use": name == worker.base,
        }

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        if name not in worker.bases:
            raise no_such_model(name)
        return described(name)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {
            "object": "list",
            "data": [described(name) for name in worker.bases],
            "alpha": options.alpha,
            "max_tokens": options.max_new_tokens,
        }

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        asked = known(chat_asked(await json_body(request), limits))
        return Answer(worker, asked, ChatForm)

    @app.post("/v1/completions")
    async def complete(request: Request) -> Response:
        asked = known(completion_asked(await json_body(request), limits))
        return Answer(worker, asked, CompletionForm)


def _add_watching(app: FastAPI, options: ServeOptions, worker: Worker, metrics: Metrics) -> None:
    head = options.head.rstrip("/").rpartition("/")[2]

    @app.get("/health")
    async def health() -> Response:
        content = {
            "status": "ok" if worker.alive else "stopping",
            "base": worker.base,
            "head": head,
            "queue": len(worker.waiting),
            "rows": worker.rows,
        }
        return JSONResponse(content, 200 if worker.alive else 503)

    @app.get("/metrics")
    async def numbers() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_page_file(app: FastAPI, file: PageFile) -> None:
    @app.get(file.path)
    async def page() -> Response:
        headers = {"Cache-Control": "no-cache"}
        return Response(file.content, media_type=file.media_type, headers=headers)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return middleware.error_response(error)


async def _no_such_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = ApiError(
        error.status_code,
        f"{request.method} {request.url.path}: {error.detail}",
        headers=dict(error.headers or {}),
    )
    return middleware.error_response(said)


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=499)


async def _failed(_: Request, error: Exception) -> Response:
    said = ApiError(500, f"The server failed with {type(error).__name__}; its log says more.")
    return middleware.error_response(said)
