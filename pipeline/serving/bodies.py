"""Reading the body of a request: JSON, an object, and text that can be encoded again."""

from typing import Any

from fastapi import Request

from pipeline.serving.api_errors import ApiError
from pipeline.strict_json import strict_json


async def json_body(request: Request) -> dict[str, Any]:
    """Return the object a request carries.

    Raises:
        ApiError: It carries something else.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Pages of other origins can send other types without the browser asking first.
        raise ApiError(
            400, f"Content-Type: got {kind or 'none'}, expected application/json", code="not_json"
        )
    content = await request.body()
    try:
        body = strict_json(content)
    except ValueError as error:
        raise ApiError(400, f"The body is not JSON: {error}", code="not_json") from error
    if not isinstance(body, dict):
        raise ApiError(
            400, f"The body: got {type(body).__name__}, expected an object", code="not_json"
        )
    return body
