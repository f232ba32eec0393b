"""Fetches models and data sets from the Hugging Face hub."""

import glob
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

RepoType = Literal["model", "dataset"]


def download(
    repository: str,
    *,
    repo_type: RepoType = "model",
    revision: str | None = None,
    allow: Sequence[str],
    ignore: Sequence[str] = (),
) -> Path:
    """Download missing files of a repository into the hub's local cache.

    Args:
        repository: Its id.
        repo_type: `model` or `dataset`.
        revision: Branch, tag or commit, or None for the main branch.
        allow: Patterns of files to fetch.
        ignore: Patterns of files to leave out regardless.

    Returns:
        The folder of one commit, named by its hash.

    Raises:
        Exception: What the hub's client raises; `hub_errors.why` explains it.
    """
    from huggingface_hub import snapshot_download

    bound_waiting()
    return Path(
        snapshot_download(
            repository,
            repo_type=repo_type,
            revision=revision,
            allow_patterns=list(allow),
            ignore_patterns=list(ignore),
        )
    )


def upload(
    folder: Path,
    repository: str,
    *,
    files: Sequence[str],
    private: bool | None = None,
    revision: str | None = None,
    message: str,
) -> str:
    """Send files of a folder to a model's repository, which is made if there is none.

    Args:
        folder: The folder.
        repository: Id of the repository.
        files: Names of the files.
        private: Whether a new repository is private.
        revision: Branch, made if there is none.
        message: Message of the commit.

    Returns:
        The address of the commit.

    Raises:
        Exception: What the hub's client raises; `hub_errors.why` explains it.
    """
    from huggingface_hub import HfApi

    bound_waiting()
    api = HfApi()
    api.create_repo(repository, private=private, exist_ok=True)
    if revision is not None:
        api.create_branch(repository, branch=revision, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repository,
        folder_path=folder,
        allow_patterns=[*files],
        revision=revision,
        commit_message=message,
    )
    return str(commit.commit_url)


def find_data(repository: str, data_dir: str | None) -> str:
    """Return the argument of `datasets.load_dataset` for a data set on the hub.

    That is its id; or, for a folder in it, a local copy with that folder, because `datasets` does
    not find the rows of a folder again when it is offline.

    Args:
        repository: Its id.
        data_dir: The folder in it, or None.

    Raises:
        FileNotFoundError: It has no such folder.
        Exception: What the hub's client raises; `hub_errors.why_no_rows` explains it.
    """
    bound_waiting()
    if data_dir is None:
        return repository
    inside = PurePosixPath(data_dir)
    if not inside.is_absolute() and ".." not in inside.parts:
        pattern = "*" if inside == PurePosixPath() else f"{glob.escape(str(inside))}/*"
        copy = download(repository, repo_type="dataset", allow=[pattern])
        if (copy / inside).is_dir():
            return str(copy)
    raise FileNotFoundError(f"there is no folder {data_dir!r} in it. Check `data_dir`.")


def bound_waiting() -> None:
    """Set a time-out for all requests of the hub's clients.

    Their metadata requests have none, so a server that accepts the connection and never answers
    would block them forever. HF_HUB_DOWNLOAD_TIMEOUT is their own limit of
    seconds without a byte, 10 unless set.
    """
    from huggingface_hub import get_session

    hooks = get_session().event_hooks
    if _limit not in hooks["request"]:
        hooks["request"].append(_limit)


def _limit(request: Any) -> None:
    """Give a request without a time-out the client's own."""
    from huggingface_hub import constants

    limits = request.extensions.get("timeout", {})
    seconds = float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
    request.extensions["timeout"] = {
        name: seconds if limits.get(name) is None else limits[name]
        for name in ("connect", "read", "write", "pool")
    }
