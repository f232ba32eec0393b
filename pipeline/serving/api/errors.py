"""Errors in the form of OpenAI's API, so that its clients understand them."""

from typing import Any, Final

_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


class ApiError(Exception):
    """An error response.

    Attributes:
        status: HTTP status.
        message: Text for the user.
        param: The invalid field.
        code: Identifier of the cause, for programs.
        headers: Further headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers or {}

    @property
    def type(self) -> str:
        """Kind of error, in the words of OpenAI's API."""
        return _TYPES.get(self.status, "invalid_request_error")

    def to_json(self, request_id: str) -> dict[str, Any]:
        """Return the body of the response, with the request's id if the server is at fault."""
        error = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        if self.status >= 500:
            error["request_id"] = request_id
        return {"error": error}


def shutting_down() -> ApiError:
    """Return the error for requests that arrive while the server shuts down."""
    return ApiError(503, "The server is shutting down; try again later.", code="shutting_down")


def schema_failed(reason: str) -> ApiError:
    """Return the error for a completion that cannot go on by its schema."""
    return ApiError(
        400, f"response_format: {reason}", param="response_format", code="schema_failed"
    )
