"""A loopback server that speaks the hub's HTTP, reached by the hub's own clients.

What it says follows huggingface.co as huggingface_hub 1 to 2.4 and datasets 4 to 5.2 ask it: what a
repository is at a revision, the tree of a commit, `resolve` with its headers, and large files at
another origin, as the hub leads to its CDN. Repositories may be in trouble, each in its own way.
What is sent to it is in `hub_uploads`.
"""

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final, Literal, get_args
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.hub import uploads as uploads
from tests.support.hub.files import LARGE, blob, entries, sha256

Kind = Literal["models", "datasets"]
Trouble = Literal[
    "gated",
    "disabled",
    "bad-token",
    "rate-limited",
    "unavailable",
    "error-page",
    "no-hub",
    "file-gone",
    "cut",
    "cut-once",
    "cut-six",
    "short",
]
TROUBLES: Final[tuple[Trouble, ...]] = get_args(Trouble)
TOKEN: Final = "hf_" + "a" * 34
_API: Final = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/([a-z-]+)(?:/([^/]+)(/.*)?)?)?")
_FILE: Final = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_PAGE: Final = "<html><body><h1>Sign in to the guest network</h1></body></html>"


@dataclass
class Repository:
    """A repository: commits of files, and the branches and tags that point to them.

    Attributes:
        trouble: What is the matter with it.
        commits: Commit -> path -> contents.
        refs: Branch or tag -> commit.
    """

    trouble: Trouble | None = None
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes], ref: str = "main") -> str:
        """Add a commit, its hash made of the files; return it."""
        listing = json.dumps([(path, sha256(files[path])) for path in sorted(files)])
        name = hashlib.sha1(listing.encode()).hexdigest()
        self.commits[name] = dict(files)
        self.refs[ref] = name
        return name


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request, as it came."""

    method: str
    path: str
    authorized: bool
    byte_range: str | None
    on_cdn: bool


@dataclass
class Hub:
    """What the server has and what it was asked for.

    Attributes:
        endpoint: Its address, for HF_ENDPOINT.
        cdn: Address of the origin that has large files.
        repositories: (kind, id) -> repository.
        asked: All requests so far.
        sent: How often each file was asked for.
        stored: Large files that were sent, by their SHA-256.
        private: Repositories that were made, and whether they were to be private.
    """

    endpoint: str
    cdn: str
    repositories: dict[tuple[Kind, str], Repository] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    stored: dict[str, bytes] = field(default_factory=dict)
    private: dict[str, bool | None] = field(default_factory=dict)

    def add(
        self, kind: Kind, name: str, files: Mapping[str, bytes], trouble: Trouble | None = None
    ) -> Repository:
        """Add a repository with one commit on `main`."""
        found = self.repositories[kind, name] = Repository(trouble=trouble)
        found.commit(files)
        return found

    def environment(self, home: object) -> dict[str, str]:
        """What a process needs to reach it, its caches in a folder of its own."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_TOKEN": "",
            "no_proxy": "127.0.0.1",
            "NO_PROXY": "127.0.0.1",
        }


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Serve an empty hub and its CDN on two ports of 127.0.0.1 until the context is left."""
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), _Handler) for _ in range(2)]
    addresses = [f"http://127.0.0.1:{server.server_address[1]}" for server in servers]
    hub = Hub(endpoint=addresses[0], cdn=addresses[1])
    threads = []
    for server in servers:
        server.hub = hub  # type: ignore[attr-defined]
        threads.append(threading.Thread(target=server.serve_forever, daemon=True))
        threads[-1].start()
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    @property
    def hub(self) -> Hub:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        return hub

    @property
    def token(self) -> str | None:
        return self.headers.get("Authorization")

    def _answer(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        host, port = self.connection.getsockname()[:2]
        on_cdn = self.hub.cdn == f"http://{host}:{port}"
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(
            Asked(
                method=self.command,
                path=path,
                authorized=self.token is not None,
                byte_range=self.headers.get("Range"),
                on_cdn=on_cdn,
            )
        )
        if on_cdn and self.command == "PUT":
            self.hub.stored[path.rpartition("/")[2]] = self.body
            self._send(200, b"", {})
        elif on_cdn:
            self._from_cdn(path)
        elif self.command == "POST" and (sent := uploads.answer(self.hub, path, self.body)):
            if self.token is None:
                self._refuse(401, None, "Invalid username or password.")
            elif sent.status == 200:
                self._json(sent.value)
            else:
                self._refuse(sent.status, None, str(sent.value))
        elif path == "/api/whoami-v2":
            self._json({"type": "user", "name": "tester", "orgs": []})
        elif found := _API.fullmatch(path):
            kind, name, verb, revision, below = found.groups()
            self._about("datasets" if kind == "datasets" else "models", name, verb, revision, below)
        elif found := _FILE.fullmatch(path):
            prefix, name, revision, file = found.groups()
            self._resolve("datasets" if prefix else "models", name, revision, file)
        else:
            self._refuse(404, None, "Not Found")

    def _repository(self, kind: Kind, name: str) -> Repository | None:
        """Return a repository that says something; else its trouble has been answered."""
        found = self.hub.repositories.get((kind, name))
        trouble = found.trouble if found else None
        if found is None:
            # The hub does not tell strangers what there is.
            if self.token is None:
                self._refuse(401, None, "Invalid username or password.")
            else:
                self._refuse(404, "RepoNotFound", "Repository not found")
        elif trouble == "disabled":
            self._refuse(403, None, "Access to this resource is disabled.")
        elif trouble == "bad-token":
            self._refuse(401, None, "Invalid credentials in Authorization header")
        elif trouble == "rate-limited":
            self._refuse(429, None, "We had to rate limit you", {"Retry-After": "0"})
        elif trouble == "unavailable":
            self._refuse(503, None, "The hub is being mended", {"Retry-After": "0"})
        elif trouble in ("error-page", "no-hub"):
            status = 504 if trouble == "error-page" else 200
            headers = {"Content-Type": "text/html", "Retry-After": "0"}
            self._send(status, _PAGE.encode(), headers)
        else:
            return found
        return None

    def _about(
        self, kind: Kind, name: str, verb: str | None, revision: str | None, below: str | None
    ) -> None:
        repository = self._repository(kind, name)
        if repository is None:
            return
        if verb == "auth-check":
            if repository.trouble == "gated":
                self._refuse_gated(name)
            else:
                self._send(200, b"OK", {"Content-Type": "text/plain"})
            return
        commit = self._commit(repository, revision or "main")
        if commit is None:
            return
        files = repository.commits[commit]
        if verb in (None, "revision"):
            self._json(
                {
                    "id": name,
                    "modelId": name,
                    "sha": commit,
                    "private": False,
                    "gated": "manual" if repository.trouble == "gated" else False,
                    "disabled": False,
                    "tags": [],
                    "siblings": [{"rfilename": path} for path in sorted(files)],
                }
            )
        elif verb == "tree":
            recursive = parse_qs(urlsplit(self.path).query).get("recursive", [""])[0].lower()
            folder = (below or "").strip("/")
            found = entries(files, folder, deep=recursive in ("true", "1"))
            if folder and not found:
                self._refuse(404, "EntryNotFound", f"{folder} does not exist on {revision}")
            else:
                self._json(found)
        elif verb == "paths-info":
            wanted = parse_qs(self.body.decode()).get("paths", [])
            everything = entries(files, "", deep=True)
            self._json([entry for entry in everything if entry["path"] in wanted])
        else:
            self._refuse(404, None, "Not Found")

    def _commit(self, repository: Repository, revision: str) -> str | None:
        commit = repository.refs.get(revision, revision)
        if commit in repository.commits:
            return commit
        self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return None

    def _resolve(self, kind: Kind, name: str, revision: str, file: str) -> None:
        repository = self._repository(kind, name)
        if repository is None:
            return
        if repository.trouble == "gated":
            self._refuse_gated(name)
            return
        commit = self._commit(repository, revision)
        if commit is None:
            return
        about = {"X-Repo-Commit": commit}
        contents = repository.commits[commit].get(file)
        if contents is None or (repository.trouble == "file-gone" and "." in file[1:]):
            self._refuse(404, "EntryNotFound", "Entry not found", about)
        elif file.endswith(LARGE):
            digest = sha256(contents)
            place = f"{self.hub.cdn}/{kind}/{name}/{commit}/{file}"
            linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(contents))}
            self._send(302, b"", {**about, **linked, "Location": place})
        else:
            self._contents(contents, repository.trouble, {**about, "ETag": f'"{blob(contents)}"'})

    def _from_cdn(self, path: str) -> None:
        _, kind, owner, name, commit, file = path.split("/", 5)
        repository = self.hub.repositories[
            "datasets" if kind == "datasets" else "models", f"{owner}/{name}"
        ]
        contents = repository.commits[commit][file]
        self._contents(contents, repository.trouble, {"ETag": f'"{sha256(contents)}"'})

    def _contents(self, contents: bytes, trouble: Trouble | None, headers: dict[str, str]) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"} | headers
        if self.command != "GET":
            self._send(200, contents, headers)
            return
        status, part = 200, contents
        if asked:
            first, last = int(asked[1]), int(asked[2] or len(contents) - 1)
            status, part = 206, contents[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{last}/{len(contents)}"
        if trouble == "short":
            self._send(status, part[: len(part) // 2], headers)
        elif self._is_cut(trouble):
            self._send(status, part, headers, sent=part[: len(part) // 2])
        else:
            self._send(status, part, headers)

    def _is_cut(self, trouble: Trouble | None) -> bool:
        """Whether this transfer breaks off: always, the first time, or six times for one file."""
        self.hub.sent[self.path] += 1
        times = self.hub.sent[self.path]
        return (
            trouble == "cut"
            or (trouble == "cut-once" and times == 1)
            or (trouble == "cut-six" and times <= 6 and self.path.endswith("/tokenizer.json"))
        )

    def _refuse_gated(self, name: str) -> None:
        self._refuse(
            401 if self.token is None else 403,
            "GatedRepo",
            f"Access to {name} is restricted and you are not in the authorized list. "
            f"Visit https://huggingface.co/{name} to ask for access.",
        )

    def _refuse(
        self, status: int, code: str | None, text: str, headers: Mapping[str, str] | None = None
    ) -> None:
        told = {"X-Error-Message": text} | ({"X-Error-Code": code} if code else {})
        body = json.dumps({"error": text}).encode()
        self._send(status, body, {"Content-Type": "application/json", **told, **(headers or {})})

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(
        self, status: int, body: bytes, headers: Mapping[str, str], sent: bytes | None = None
    ) -> None:
        self.send_response(status, HTTPStatus(status).phrase)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if sent is None else sent)
        if sent is not None:
            self.close_connection = True
