"""The routes of the server, and the middleware around them."""

from time import time
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from mav.pipeline.runtime.named_values import places_of
from mav.pipeline.runtime.versions import package_versions
from mav.pipeline.serving.api.errors import ApiError
from mav.pipeline.serving.api.openapi import openapi_description
from mav.pipeline.serving.api.requests import (
    CompletionRequest,
    chat_request,
    json_body,
    text_request,
)
from mav.pipeline.serving.api.responses import CHAT, TEXT
from mav.pipeline.serving.http import exchange, middleware
from mav.pipeline.serving.metrics import Metrics
from mav.pipeline.serving.options import ServeOptions
from mav.pipeline.serving.static_files import HEADERS, PageFile, page_files
from mav.pipeline.serving.streaming import CompletionResponse
from mav.pipeline.serving.worker import Worker


def build_app(options: ServeOptions, worker: Worker, metrics: Metrics) -> ASGIApp:
    """Return the ASGI application of a server.

    Args:
        options: Its settings.
        worker: Decodes the requests.
        metrics: Counts them.
    """
    # FastAPI's own documentation pages load scripts from other servers.
    app = FastAPI(title="mav", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, _on_failure)
    _add_api(app, options, worker)
    _add_monitoring(app, options, worker, metrics)
    for file in page_files():
        _add_page_file(app, file)

    guarded: ASGIApp = middleware.BodyLimit(middleware.HeadAsGet(app))
    if options.api_key is not None:
        # What a browser loads before its user can enter the key, and what says that all is well.
        open_paths = {"/health", *(file.path for file in page_files())}
        guarded = middleware.ApiKey(guarded, options.api_key, open_paths)
    else:
        guarded = middleware.LocalHost(guarded)
    if options.allow_origin:
        # Around the check of the key, as a preflight request has none.
        guarded = CORSMiddleware(
            guarded,
            allow_origins=options.allow_origin,
            allow_methods=("GET", "HEAD", "POST"),
            allow_headers=("*",),
            expose_headers=("Retry-After", exchange.HEADER),
        )
    counted = middleware.RequestCounter(guarded, metrics.count_request)
    return middleware.SecurityHeaders(counted, HEADERS)


def _add_api(app: FastAPI, options: ServeOptions, worker: Worker) -> None:
    started = int(time())

    def check_model(request: CompletionRequest) -> CompletionRequest:
        if request.model is not None and request.model not in worker.bases:
            raise no_such_model(request.model)
        return request

    def no_such_model(name: str) -> ApiError:
        return ApiError(
            404,
            f"model: got {name!r}, expected one of {', '.join(worker.bases)}",
            param="model",
            code="model_not_found",
        )

    def describe(name: str) -> dict[str, Any]:
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
        return describe(name)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {
            "object": "list",
            "data": [describe(name) for name in worker.bases],
            "alpha": options.alpha,
            "max_tokens": options.max_new_tokens,
        }

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        body = await json_body(request)
        return CompletionResponse(worker, check_model(chat_request(body, options)), CHAT)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = await json_body(request)
        return CompletionResponse(worker, check_model(text_request(body, options)), TEXT)


def _add_monitoring(app: FastAPI, options: ServeOptions, worker: Worker, metrics: Metrics) -> None:
    places = places_of(options.head).items()
    shown = {name: str(place).rstrip("/").rpartition("/")[2] for name, place in places}
    head = shown if options.head_names else shown[""]

    @app.get("/health")
    async def health(request: Request) -> Response:
        content: dict[str, Any] = {"status": "ok" if worker.alive else "stopping"}
        if request.scope.get(middleware.HAS_KEY, True):
            queue, rows = len(worker.queue), worker.rows
            content |= {"base": worker.base, "head": head, "queue": queue, "rows": rows}
        return JSONResponse(content, 200 if worker.alive else 503)

    @app.get("/openapi.json")
    async def openapi() -> dict[str, Any]:
        return openapi_description()

    @app.get("/version")
    async def version() -> dict[str, str]:
        return {"version": package_versions(["mav-align"])["mav-align"]}

    @app.get("/metrics")
    async def prometheus_metrics() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_page_file(app: FastAPI, file: PageFile) -> None:
    @app.get(file.path)
    async def page() -> Response:
        headers = {"Cache-Control": "no-cache"}
        return Response(file.content, media_type=file.media_type, headers=headers)


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return middleware.error_response(error, request.scope)


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Respond to an unknown path or a method that a path does not have."""
    assert isinstance(error, HTTPException)
    api_error = ApiError(
        error.status_code,
        f"{request.method} {request.url.path}: {error.detail}",
        headers=dict(error.headers or {}),
    )
    return middleware.error_response(api_error, request.scope)


async def _on_disconnect(_: Request, __: Exception) -> Response:
    return Response(status_code=499)


async def _on_failure(request: Request, error: Exception) -> Response:
    api_error = ApiError(500, f"The server failed with {type(error).__name__}; see its log.")
    return middleware.error_response(api_error, request.scope)
