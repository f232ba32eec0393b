"""What the loopback hub answers to those who send it files: repositories, branches, commits.

It follows what huggingface_hub 2.4 sends without Xet: a repository is made, `preupload` says which
files are large, LFS's `batch` where those go, and `commit` takes the rest in its lines.
"""

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

READ_ONLY: Final = "readonly/taken"
"""A repository that nobody may write to."""
_API: Final = re.compile(r"/api/models/([^/]+/[^/]+)/(preupload|commit|branch)/(.+)")
_BATCH: Final = re.compile(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch")


class _Repository(Protocol):
    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str]

    def commit(self, files: Mapping[str, bytes], ref: str = "main") -> str: ...


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer: JSON, or with another status than 200 a text."""

    value: Any
    status: int = 200


def answer(hub: Any, path: str, body: bytes) -> Answer | None:
    """Return the answer to a POST that sends something, or None where it is none."""
    if path == "/api/repos/create":
        return _made(hub, json.loads(body))
    if path == "/api/validate-yaml":
        return Answer(value={"warnings": [], "errors": []})
    if found := _BATCH.fullmatch(path):
        return _places(hub, json.loads(body))
    if found := _API.fullmatch(path):
        name, verb, revision = found.groups()
        repository: _Repository = hub.repositories["models", name]
        if verb == "preupload":
            return _preupload(json.loads(body))
        if verb == "branch":
            repository.refs.setdefault(revision, repository.refs["main"])
            return Answer(value={})
        return _commit(hub, repository, name, revision, body)
    return None


def _made(hub: Any, asked: Mapping[str, Any]) -> Answer:
    owner = asked.get("organization") or "tester"
    name = asked["name"] if "/" in asked["name"] else f"{owner}/{asked['name']}"
    if name == READ_ONLY:
        return Answer(value="You don't have the rights to create a model here", status=403)
    if ("models", name) not in hub.repositories:
        hub.add("models", name, {".gitattributes": b"*.safetensors filter=lfs\n"})
        # Later clients send the word.
        hub.private[name] = asked.get("private", asked.get("visibility") == "private" or None)
    return Answer(value={"url": f"{hub.endpoint}/{name}"})


def _preupload(asked: Mapping[str, Any]) -> Answer:
    return Answer(
        value={
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in asked["files"]
            ]
        }
    )


def _places(hub: Any, asked: Mapping[str, Any]) -> Answer:
    objects = [
        {
            **file,
            "actions": {"upload": {"href": f"{hub.cdn}/upload/{file['oid']}", "header": {}}},
        }
        for file in asked["objects"]
    ]
    return Answer(value={"transfer": "basic", "objects": objects})


def _commit(hub: Any, repository: _Repository, name: str, revision: str, body: bytes) -> Answer:
    files = dict(repository.commits[repository.refs[revision]])
    for line in map(json.loads, body.decode().splitlines()):
        value = line["value"]
        if line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            files[value["path"]] = hub.stored[value["oid"]]
    commit = repository.commit(files, revision)
    url = f"{hub.endpoint}/{name}/commit/{commit}"
    return Answer(value={"commitUrl": url, "commitOid": commit, "success": True})
