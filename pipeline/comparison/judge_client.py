"""Client of an OpenAI-compatible `/chat/completions` endpoint, with retries."""

import http.client
import json
import logging
import math
import os
import threading
import urllib.error
import urllib.parse
import urllib.request
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

from mav.cache_schema.errors import DataError, UsageError
from mav.pipeline.comparison.options import JudgeOptions as JudgeOptions
from mav.pipeline.runtime.json_input import strict_json

_log = logging.getLogger(__name__)

ANSWER_SECONDS: Final = 180.0
"""Seconds without a response after which a call counts as failed."""
TRIES: Final = 6
_LONGEST_WAIT: Final = 600.0
_MOST_BYTES: Final = 1 << 24
_SHOWN: Final = 200
_PATH: Final = "/chat/completions"
_WORTH_ANOTHER_TRY: Final = frozenset({408, 409, 425, 429, *range(500, 600)})
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


class CallFailedError(Exception):
    """A call that failed, with the reason; other calls may succeed."""


class OutOfCallsError(Exception):
    """The limit on calls is reached."""


class StoppedError(Exception):
    """The client was stopped while waiting to retry."""


class JudgeClient:
    """A client that several threads may use at once.

    Attributes:
        calls: Requests sent, including retries.
    """

    def __init__(self, options: JudgeOptions) -> None:
        """Prepare; nothing is sent yet.

        Raises:
            UsageError: The URL is invalid, or the key cannot be sent in a header.
        """
        host, whole = _host(options.judge_url), options.judge_url.rstrip("/")
        self.url = whole if whole.endswith(_PATH) else whole + _PATH
        self.calls = 0
        self._options = options
        self._headers = {"Content-Type": "application/json", "User-Agent": "mav-compare"}
        key = os.environ.get(options.judge_key, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise UsageError(
                f"{options.judge_key}: the key in it has characters that are not allowed in a key"
            )
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        # A server on this machine is never reached through a proxy.
        proxies = [urllib.request.ProxyHandler({})] if host in _LOOPBACK else []
        self._opener = urllib.request.build_opener(_NoRedirects, *proxies)
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Stop all retries."""
        self._stopped.set()

    def ask(self, text: str) -> str:
        """Return the model's reply to a message.

        Requests that time out, cannot be sent, or meet a busy or failing server (408, 409, 425, 429
        and 5xx) are retried after 1, 2, 4, … seconds, or after `Retry-After`.

        Raises:
            CallFailedError: There is no reply.
            OutOfCallsError: The limit on calls is reached.
            StoppedError: `stop` was called.
            UsageError: The server rejects the key, or requires one.
            DataError: The endpoint or model does not exist.
        """
        for number in range(1, TRIES + 1):
            if self._stopped.is_set():
                raise StoppedError
            self._count()
            try:
                return self._ask_once(text)
            except _RetryError as error:
                if number == TRIES:
                    raise CallFailedError(f"{error.reason}, {TRIES} times") from error
                seconds = max(float(2 ** (number - 1)), error.seconds)
                _log.warning(f"The judge: {error.reason}; trying again in {seconds:.0f} s")
                pause(self._stopped, seconds)
        raise AssertionError("the last try returns or raises")

    def _count(self) -> None:
        with self._lock:
            most = self._options.judge_max_calls
            if most is not None and self.calls >= most:
                raise OutOfCallsError
            self.calls += 1

    def _ask_once(self, text: str) -> str:
        body: dict[str, Any] = {
            "model": self._options.judge_model,
            "messages": [{"role": "user", "content": text}],
        }
        if self._options.judge_temperature is not None:
            body["temperature"] = self._options.judge_temperature
        request = urllib.request.Request(  # noqa: S310 - the scheme is checked above
            self.url, json.dumps(body).encode(), self._headers, method="POST"
        )
        try:
            with self._opener.open(request, timeout=ANSWER_SECONDS) as response:
                raw: bytes = response.read(_MOST_BYTES)
        except urllib.error.HTTPError as error:
            with error:
                raise self._meaning(error) from error
        except TimeoutError as error:
            raise _RetryError(f"no answer within {ANSWER_SECONDS:g} s") from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise _RetryError(f"no answer within {ANSWER_SECONDS:g} s") from error
            raise _RetryError(f"{self.url} cannot be reached: {error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            reason = f"{type(error).__name__} {error}".strip()
            raise _RetryError(f"the connection was lost: {reason}") from error
        return _reply(raw)

    def _meaning(self, error: urllib.error.HTTPError) -> Exception:
        """Return the exception for a response with an error status."""
        reason = f"{self.url} answered {error.code}: {_message(error)}"
        if error.code in (401, 403):
            remedy = (
                f"the key in {self._options.judge_key} was rejected; set another one"
                if "Authorization" in self._headers
                else f"no key was sent because {self._options.judge_key} is not set; set it, or "
                f"name another variable"
            )
            return UsageError(f"{reason}: {remedy}")
        if error.code in (404, 405):
            return DataError(f"{reason}: check `judge_url` and `judge_model`")
        if 300 <= error.code < 400:
            place = error.headers.get("Location") or "nowhere"
            return DataError(
                f"{reason}, which leads to {_shown(place.encode())}: check `judge_url`"
            )
        if error.code in _WORTH_ANOTHER_TRY:
            return _RetryError(reason, _retry_after(error.headers.get("Retry-After")))
        return CallFailedError(reason)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: it would turn a question into a GET, and take the key elsewhere."""

    def redirect_request(self, *_: Any) -> None:
        """Return no request in place of the one that was redirected."""


def pause(stopped: threading.Event, seconds: float) -> None:
    """Wait before a retry, or until the client is stopped."""
    stopped.wait(seconds)


class _RetryError(Exception):
    """A call that may succeed later.

    Attributes:
        reason: What went wrong.
        seconds: Minimum wait, as the server asks for.
    """

    def __init__(self, reason: str, seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.seconds = seconds


def _host(url: str) -> str:
    """Return the host of a base URL, or refuse the URL."""
    try:
        parts = urllib.parse.urlsplit(url)
        # What `http.client` could not send is refused here: such hosts, and other letters.
        host = (parts.hostname or "").encode("idna").decode()
        sound = parts.scheme in ("http", "https") and parts.port != 0 and url.isprintable()
    except ValueError:
        sound = False
    if not sound or not host or " " in url or not parts.path.isascii():
        raise UsageError(
            f"judge_url: got {url!r}, expected a base URL such as https://api.openai.com/v1"
        )
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise UsageError(
            "judge_url: got one with a user, a query or a fragment, expected a base URL such as "
            "https://api.openai.com/v1; a key comes from the variable that `judge_key` names"
        )
    return host


def _reply(raw: bytes) -> str:
    """Return the text of a chat completion."""
    try:
        content = strict_json(raw)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise CallFailedError(f"got {_shown(raw)}, expected a chat completion") from error
    if not isinstance(content, str):
        raise CallFailedError(f"got a chat completion without text: {_shown(raw)}")
    return content


def _message(error: urllib.error.HTTPError) -> str:
    """Return the message in the body of an error, or its status in words."""
    try:
        raw = error.read(_MOST_BYTES)
    except (OSError, http.client.HTTPException):
        return str(error.reason)
    try:
        said = strict_json(raw)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return _shown(raw) if raw.strip() else str(error.reason)
    return _shown(str(said).encode()).strip("'\"")


def _shown(raw: bytes) -> str:
    text = " ".join(raw.decode("utf-8", "replace").split())
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")


def _retry_after(value: str | None) -> float:
    """Return the seconds of a `Retry-After` header, which may name a date; 0 for none."""
    if value is None:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return 0.0
    return min(max(seconds, 0.0), _LONGEST_WAIT) if math.isfinite(seconds) else 0.0
