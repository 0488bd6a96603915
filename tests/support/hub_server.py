"""A loopback Hugging Face Hub: enough of it for huggingface_hub's real download path.

    with HubServer() as hub:
        hub.add_repo("org/name", {"config.json": b"{}", "model.safetensors": weights})
        hub.add_repo("org/tiny", Path("models/tiny-digits"))
        subprocess.run(command, env={**os.environ, **hub.environment()})

It answers the API of models, datasets and spaces, and HEAD and GET of their files with the
headers and errors of the real Hub, ranges included. Connections can be made to break or stall.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

Files = Mapping[str, bytes] | Path

_LFS_SUFFIXES = (".bin", ".ckpt", ".gguf", ".h5", ".pt", ".pth", ".safetensors")
_PREFIX = {"model": "", "dataset": "datasets/", "space": "spaces/"}
_CHUNK = 1 << 16


@dataclass(frozen=True)
class HubFile:
    """One file of one commit.

    Attributes:
        declared_size: What the Hub says, not what it sends.
    """

    content: bytes | Path
    size: int
    sha1: str
    sha256: str
    is_lfs: bool
    declared_size: int

    @classmethod
    def of(cls, name: str, content: bytes | Path, declared_size: int | None) -> HubFile:
        """Hash a file as git and git-lfs do."""
        data = content if isinstance(content, bytes) else content.read_bytes()
        return cls(
            content=content,
            size=len(data),
            sha1=hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
            sha256=hashlib.sha256(data).hexdigest(),
            is_lfs=name.endswith(_LFS_SUFFIXES),
            declared_size=len(data) if declared_size is None else declared_size,
        )

    @property
    def etag(self) -> str:
        """What the Hub calls this content: sha256 in git-lfs, else git's own sha1."""
        return self.sha256 if self.is_lfs else self.sha1

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` up to `end`."""
        if isinstance(self.content, bytes):
            return self.content[start:end]
        with self.content.open("rb") as file:
            file.seek(start)
            return file.read(end - start)


@dataclass(frozen=True)
class HubRepo:
    """A repository: commits by branch or tag, and files by commit."""

    name: str
    kind: str
    refs: dict[str, str]
    commits: dict[str, dict[str, HubFile]]
    gated: bool
    private: bool
    allowed_tokens: frozenset[str]
    on_xet: bool

    @property
    def commit(self) -> str:
        """The commit of the main branch."""
        return self.refs["main"]


@dataclass(frozen=True)
class HubRequest:
    """One request that the server received."""

    method: str
    path: str
    status: int
    range: str | None


@dataclass
class _Fault:
    after: int
    times: int
    release: threading.Event | None = None


@dataclass
class _State:
    repos: dict[str, HubRepo] = field(default_factory=dict)
    known_tokens: set[str] = field(default_factory=set)
    requests: list[HubRequest] = field(default_factory=list)
    faults: dict[str, _Fault] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


class HubServer:
    """Serves repositories on 127.0.0.1 until its `with` block ends."""

    def __init__(self) -> None:
        self._state = _State()
        self._stalls: list[threading.Event] = []
        state = self._state

        class Handler(_Handler):
            hub = state

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for fault in self._state.faults.values():
            if fault.release is not None:
                fault.release.set()
        self._http.shutdown()
        self._http.server_close()

    @property
    def endpoint(self) -> str:
        """The URL for HF_ENDPOINT or `endpoint=`."""
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    @property
    def requests(self) -> list[HubRequest]:
        """Every request answered so far."""
        with self._state.lock:
            return list(self._state.requests)

    def environment(self) -> dict[str, str]:
        """The environment variables that send a process of huggingface_hub here."""
        return {"HF_ENDPOINT": self.endpoint, "HF_HUB_DISABLE_TELEMETRY": "1"}

    def add_repo(
        self,
        name: str,
        files: Files,
        *,
        revisions: Mapping[str, Files] | None = None,
        kind: str = "model",
        gated: bool = False,
        private: bool = False,
        allowed_tokens: frozenset[str] = frozenset(),
        declared_sizes: Mapping[str, int] | None = None,
        on_xet: bool = False,
    ) -> HubRepo:
        """Serve a repository; adding it again replaces it, as a push does.

        Args:
            name: `org/name`, or a bare name.
            files: The main branch: contents by path, or a folder.
            revisions: Further branches and tags.
            kind: model, dataset or space.
            gated: Files need a token that is in `allowed_tokens`; names and sizes don't.
            private: For all others the repository doesn't exist.
            allowed_tokens: Tokens with access.
            declared_sizes: Sizes, by path, to claim in place of the true ones.
            on_xet: Say of large files that Xet has them too; nothing here speaks Xet.
        """
        refs: dict[str, str] = {}
        commits: dict[str, dict[str, HubFile]] = {}
        for ref, source in {"main": files, **(revisions or {})}.items():
            hashed = {
                path: HubFile.of(path, content, (declared_sizes or {}).get(path))
                for path, content in sorted(_contents(source).items())
            }
            listing = "".join(f"{path} {file.etag}\n" for path, file in hashed.items())
            refs[ref] = hashlib.sha1(listing.encode()).hexdigest()
            commits[refs[ref]] = hashed
        repo = HubRepo(name, kind, refs, commits, gated, private, allowed_tokens, on_xet)
        with self._state.lock:
            self._state.repos[_PREFIX[kind] + name] = repo
            self._state.known_tokens |= allowed_tokens
        return repo

    def add_token(self, token: str) -> None:
        """Make a token valid, without access to anything gated or private."""
        with self._state.lock:
            self._state.known_tokens.add(token)

    def break_after(self, path: str, size: int, times: int = 1) -> None:
        """Close the connection after the first `size` bytes of a file, the next `times` times."""
        with self._state.lock:
            self._state.faults[path] = _Fault(size, times)

    def mend(self, path: str) -> None:
        """Let the connection of a file break no more."""
        with self._state.lock:
            del self._state.faults[path]

    def stall_after(self, path: str, size: int) -> threading.Event:
        """Stop once after the first `size` bytes of a file until the returned event is set."""
        release = threading.Event()
        with self._state.lock:
            self._state.faults[path] = _Fault(size, 1, release)
        self._stalls.append(release)
        return release

    def let_go(self) -> None:
        """Set all events of `stall_after`, for those that a test that failed has left waiting."""
        for release in self._stalls:
            release.set()


def _contents(files: Files) -> dict[str, bytes | Path]:
    if isinstance(files, Path):
        return {p.relative_to(files).as_posix(): p for p in files.rglob("*") if p.is_file()}
    return dict(files)


class _RefusedError(Exception):
    """Raised when a request is answered with an error of the Hub."""

    def __init__(
        self, status: HTTPStatus, message: str, code: str | None = None, commit: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message}
        if code is not None:
            self.headers["X-Error-Code"] = code
        if commit is not None:
            self.headers["X-Repo-Commit"] = commit


class _Handler(BaseHTTPRequestHandler):
    hub: _State
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the base
        """Stay silent: the requests are kept for tests to look at."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path).lstrip("/")
        try:
            if match := re.fullmatch(r"api/(model|dataset|space)s/(.+)", path):
                self._send_json(self._api(match[1], match[2]))
            elif match := re.fullmatch(r"((?:datasets/|spaces/)?.+?)/resolve/([^/]+)/(.+)", path):
                self._send_file(match[1], match[2], match[3])
            else:
                raise _RefusedError(HTTPStatus.NOT_FOUND, f"no such page: {path}")
        except _RefusedError as refused:
            body = json.dumps({"error": str(refused)}).encode()
            self._send_head(refused.status, {**refused.headers, "Content-Length": len(body)})
            if self.command == "GET":
                self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client went away: its own tests say why

    def _api(self, kind: str, path: str) -> Any:
        match = re.fullmatch(r"(.+?)(?:/(revision|tree)/([^/]+))?", path)
        assert match is not None  # the group before the options matches anything
        repo = self._find(_PREFIX[kind] + match[1])
        commit = self._resolve(repo, match[3] or "main")
        files = repo.commits[commit]
        if match[2] == "tree":
            return [_tree_entry(name, file, repo.on_xet) for name, file in files.items()]
        return {
            "id": repo.name,
            "sha": commit,
            "private": repo.private,
            "gated": "auto" if repo.gated else False,
            "tags": [],
            "siblings": [{"rfilename": name} for name in files],
        }

    def _token(self) -> str | None:
        header = self.headers.get("Authorization")
        if header is None:
            return None
        token = header.removeprefix("Bearer ")
        if token not in self.hub.known_tokens:
            raise _RefusedError(
                HTTPStatus.UNAUTHORIZED, "Invalid credentials in Authorization header"
            )
        return token

    def _find(self, key: str) -> HubRepo:
        token, repo = self._token(), self.hub.repos.get(key)
        if repo is None or (repo.private and token not in repo.allowed_tokens):
            if token is None:
                raise _RefusedError(HTTPStatus.UNAUTHORIZED, "Invalid username or password.")
            raise _RefusedError(HTTPStatus.NOT_FOUND, "Repository not found", "RepoNotFound")
        return repo

    def _resolve(self, repo: HubRepo, revision: str) -> str:
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            raise _RefusedError(
                HTTPStatus.NOT_FOUND, f"Invalid rev id: {revision}", "RevisionNotFound"
            )
        return commit

    def _send_file(self, key: str, revision: str, name: str) -> None:
        repo = self._find(key)
        if repo.gated and (token := self._token()) not in repo.allowed_tokens:
            status = HTTPStatus.UNAUTHORIZED if token is None else HTTPStatus.FORBIDDEN
            message = f"Access to {repo.kind} {repo.name} is restricted."
            raise _RefusedError(status, message, "GatedRepo")
        commit = self._resolve(repo, revision)
        file = repo.commits[commit].get(name)
        if file is None:
            raise _RefusedError(HTTPStatus.NOT_FOUND, "Entry not found", "EntryNotFound", commit)
        etag = f'"{file.etag}"'
        headers: dict[str, Any] = {"X-Repo-Commit": commit, "ETag": etag}
        if file.is_lfs:
            headers |= {"X-Linked-Etag": etag, "X-Linked-Size": file.declared_size}
        headers["Accept-Ranges"] = "bytes"
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        headers["Content-Length"] = file.declared_size - start
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{file.size - 1}/{file.size}"
        self._send_head(HTTPStatus.PARTIAL_CONTENT if wanted else HTTPStatus.OK, headers)
        if self.command == "GET":
            self._send_content(name, file, start)

    def _send_content(self, name: str, file: HubFile, start: int) -> None:
        with self.hub.lock:
            fault = self.hub.faults.get(name)
            if fault is not None:
                fault.times -= 1
                if fault.times <= 0:
                    del self.hub.faults[name]
        pause = file.size if fault is None else min(max(start, fault.after), file.size)
        self._send_range(file, start, pause)
        if fault is None:
            return
        if fault.release is None:
            self.close_connection = True
            return
        fault.release.wait()
        self._send_range(file, pause, file.size)

    def _send_range(self, file: HubFile, start: int, end: int) -> None:
        for position in range(start, end, _CHUNK):
            self.wfile.write(file.read(position, min(position + _CHUNK, end)))
        self.wfile.flush()

    def _send_json(self, data: Any) -> None:
        body = json.dumps(data).encode()
        self._send_head(
            HTTPStatus.OK, {"Content-Type": "application/json", "Content-Length": len(body)}
        )
        if self.command == "GET":
            self.wfile.write(body)

    def _send_head(self, status: HTTPStatus, headers: Mapping[str, Any]) -> None:
        request = HubRequest(self.command, self.path, int(status), self.headers.get("Range"))
        with self.hub.lock:
            self.hub.requests.append(request)
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, str(value))
        self.end_headers()


def _tree_entry(name: str, file: HubFile, on_xet: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "type": "file",
        "path": name,
        "oid": file.sha1,
        "size": file.declared_size,
    }
    if file.is_lfs:
        lfs = {"oid": file.sha256, "size": file.declared_size, "pointerSize": 134}
        entry["lfs"] = lfs
        if on_xet:
            entry["xetHash"] = file.sha256  # a hash of another kind, of the same form
    return entry


def use_endpoint(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let huggingface_hub, which read HF_ENDPOINT when it was imported, call another Hub."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    url = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
