"""Explains failures of the Hugging Face hub in one plain line.

The hub's clients, huggingface_hub and datasets, raise two dozen types with messages of many lines
about addresses. The actual error is found here in the chain of causes; the message says what
happened and what to do.
"""

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, Final

from mav.pipeline.runtime.hub import RepoType

_NOUNS: Final = {"model": "model", "dataset": "data set"}
_BAD_TOKEN: Final = "Invalid credentials"  # noqa: S105
"""Begins what the hub says of a token that it does not know; other 401 are of repositories."""
_PICKLES: Final = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_NOT_DATA: Final = (".md", ".gitattributes", ".gitignore", ".py", ".yaml")
_NAMED: Final = 6
"""Most names in one line."""


def why(
    error: BaseException, repository: str, repo_type: RepoType, revision: str | None = None
) -> str:
    """Return why the hub did not give a repository, and what to do, in one line.

    Args:
        error: What its client raised.
        repository: The id that was asked for.
        repo_type: What it is.
        revision: The branch, tag or commit that was asked for.
    """
    return _known(error, repository, repo_type, revision) or one_line(error)


def why_no_rows(error: BaseException, repository: str, data_dir: str | None) -> str:
    """Return why `datasets` found no rows at the hub, and what to do, in one line.

    It drops the cause of some of its errors, so the hub is asked again.

    Args:
        error: What `datasets.load_dataset` raised.
        repository: The id that was asked for.
        data_dir: The folder in it.
    """
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import HfApi

    if known := _known(error, repository, "dataset", None):
        return known
    if isinstance(error, (DatasetNotFoundError, ConnectionError)):
        try:
            HfApi().auth_check(repository, repo_type="dataset")
        except Exception as answer:
            return why(answer, repository, "dataset")
    names = _file_names(repository, "dataset", None)
    data = [name for name in names if not name.lower().endswith(_NOT_DATA)]
    if names and not data:
        return f"it has no data files ({_listed(names)}). Check the id."
    folder = PurePosixPath(data_dir) if data_dir else None
    if data and folder and not any(folder in PurePosixPath(name).parents for name in data):
        folders = sorted({name.rpartition("/")[0] for name in data} - {""})
        held = f"it has {_listed(folders)}" if folders else "its files are in no folder"
        return f"it has no data folder {data_dir!r}; {held}. Check `data_dir`."
    return why_no_table(error)


def why_no_table(error: BaseException) -> str:
    """Return why `datasets` made no table of the files of a data set, in one line."""
    if isinstance(error, StopIteration):
        return "its files of data are empty."
    cause = error.__cause__
    return one_line(error) + (f" ({one_line(cause)})" if cause else "")


def why_not_there(repository: str, commit: str, expected: str, remedies: dict[str, str]) -> str:
    """Return that a repository was fetched and lacks what is needed, and what it has instead.

    Args:
        repository: Its id.
        commit: The commit that was fetched.
        expected: What it lacks.
        remedies: Ending of files -> what to do with such a one, the best first.
    """
    names = _file_names(repository, "model", commit)
    for ending, remedy in remedies.items():
        if others := [name for name in names if name.endswith(ending)]:
            return f"no {expected} in it, but {_listed(others)}: {remedy}"
    held = f"; it has {_listed(names)}" if names else ""
    return f"no {expected} in it{held}. Check the id and the revision."


PICKLES_REMEDY: Final = dict.fromkeys(
    _PICKLES,
    "a pickle can run code when loaded, so MAV reads none; take a repository with safetensors, or "
    "convert it with transformers' save_pretrained.",
)


def one_line(error: BaseException) -> str:
    """Return the text of an error without its line breaks, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def _known(
    error: BaseException, repository: str, repo_type: RepoType, revision: str | None
) -> str | None:
    """Return the line for what the hub's clients are known to raise, from the surest cause on."""
    from huggingface_hub import constants, errors

    chain = list(_chain(error))

    def first(*types: type[BaseException]) -> Any:
        return next((link for link in chain if isinstance(link, types)), None)

    noun, endpoint = _NOUNS[repo_type], constants.ENDPOINT
    page = f"{endpoint}/{'datasets/' if repo_type == 'dataset' else ''}{repository}"
    login = "log in with `hf auth login`"
    system = (link for link in chain if isinstance(link, OSError))
    if full := next((link for link in system if link.errno in _UNWRITABLE), None):
        return (
            f"it cannot be kept in {constants.HF_HOME}: {os.strerror(full.errno or 0)}. Free some "
            f"space, or name another folder in HF_HOME."
        )
    if refusal := first(errors.GatedRepoError):
        return (
            f"access to this {noun} is restricted (HTTP {refusal.response.status_code}). Accept "
            f"its terms at {page}, then {login}."
        )
    if first(errors.DisabledRepoError):
        return f"the hub has disabled this {noun} (HTTP 403). Take another one."
    if refusal := first(errors.RevisionNotFoundError):
        return (
            f"it has no revision {revision!r} (HTTP {refusal.response.status_code}). Name a "
            f"branch, tag or commit that {page} lists."
        )
    if first(errors.OfflineModeIsEnabled) or (constants.HF_HUB_OFFLINE and _is_offline(chain)):
        return (
            "the local cache does not have it whole, and HF_HUB_OFFLINE forbids asking the hub. "
            "Run it once with HF_HUB_OFFLINE=0, or name a folder."
        )
    if refusal := first(errors.HFValidationError):
        return f"{one_line(refusal)} Name it as owner/name."
    answers = [link for link in chain if isinstance(link, errors.HfHubHTTPError)]
    # Files that a repository may lack are asked for on the way to what went wrong.
    answers.sort(key=lambda answer: isinstance(answer, errors.EntryNotFoundError))
    if answers:
        return _of_answer(answers[0], noun, page, login)
    if first(errors.FileMetadataError) or _is_no_json(chain):
        return (
            f"what answers at {endpoint} is not the hub (a page without its headers). Check the "
            f"network, a sign-in page of it, the proxy and HF_ENDPOINT."
        )
    if _of_type(chain, "TimeoutException"):
        return f"{endpoint} did not answer in time. Try again later; what has arrived is kept."
    if broken := _of_type(chain, "ProtocolError", "ReadError", "DecodingError"):
        return (
            f"the transfer from {endpoint} broke off ({one_line(broken)}). Run it again; the files "
            f"that have arrived are kept."
        )
    short = next((link for link in chain if str(link).startswith("Consistency check failed")), None)
    if short:
        detail = one_line(short).removeprefix("Consistency check failed: ").partition(" (")[0]
        return (
            f"a transfer from {endpoint} ended early ({detail}). Run it again; the files that have "
            f"arrived are kept."
        )
    if _of_type(chain, "TransportError") or first(ConnectionError):
        cause = _of_type(chain, "TransportError")
        detail = f" ({one_line(cause)})" if cause else ""
        return (
            f"{endpoint} cannot be reached{detail}. Check the network, the proxy and HF_ENDPOINT, "
            f"or name a folder."
        )
    return None


_UNWRITABLE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)


def _of_answer(error: Any, noun: str, page: str, login: str) -> str:
    """Return the line for an answer by which the hub refuses."""
    response = error.response
    status, detail = response.status_code, response.headers.get("X-Error-Message") or ""
    file = str(response.request.url).partition("/resolve/")[2].partition("/")[2]
    if status == 401 and detail.startswith(_BAD_TOKEN):
        return (
            "the hub refuses the token (HTTP 401). Log in again with `hf auth login`, or unset "
            "HF_TOKEN."
        )
    if status == 401 or response.headers.get("X-Error-Code") == "RepoNotFound":
        return (
            f"there is no {noun} of that name, or it is private (HTTP {status}). Check the id; "
            f"for a private one {login}."
        )
    if status == 404 and file:
        return f"its file {file} is gone (HTTP 404). Look at {page}, or name another revision."
    if status == 429:
        wait = response.headers.get("Retry-After") or ""
        later = f"in {wait} seconds" if wait.isdecimal() and int(wait) else "later"
        return f"too many requests (HTTP 429). Try again {later}; to be allowed more, {login}."
    if status >= 500:
        return (
            f"the hub is out of order (HTTP {status} {response.reason_phrase}). Try again later; "
            f"what has arrived is kept."
        )
    return (
        f"the hub answered HTTP {status} {' '.join(detail.split())}".rstrip() + f". Look at {page}."
    )


def _is_offline(chain: list[BaseException]) -> bool:
    from huggingface_hub import errors

    return any(
        isinstance(link, (errors.LocalEntryNotFoundError, ConnectionError)) for link in chain
    )


def _is_no_json(chain: list[BaseException]) -> bool:
    """Whether a response of the hub was not JSON; files are parsed elsewhere."""
    import json

    return any(isinstance(link, json.JSONDecodeError) for link in chain[:1])


def _of_type(chain: list[BaseException], *names: str) -> BaseException | None:
    """Return the first error of a type of httpx, for either of its packages."""
    for error in chain:
        if any(base.__name__ in names for base in type(error).__mro__):
            return error
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all that led to it, nearest first."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        link = waiting.pop(0)
        if id(link) not in seen:
            seen.add(id(link))
            yield link
            waiting += [cause for cause in (link.__cause__, link.__context__) if cause]


def _file_names(repository: str, repo_type: RepoType, revision: str | None) -> list[str]:
    """Return the names of a repository's files, or none where the hub cannot be asked."""
    from huggingface_hub import HfApi

    try:
        return sorted(HfApi().list_repo_files(repository, repo_type=repo_type, revision=revision))
    except Exception:
        return []


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
