"""A small Hugging Face hub on this machine, which the real huggingface_hub client talks to over HTTP; and ways to make it misbehave.

It keeps commits as mappings of path to bytes. Files of 1 KiB and more, and safetensors, are "large": they have a SHA-256 and are served
through a redirect to another host name (``localhost`` instead of ``127.0.0.1``), as the hub sends clients to its storage; others
have git's id. Files of data sets are served too, from the same names. Not covered: Xet, discussions, multipart uploads.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

LARGE_BYTES = 1024
TOKEN = "hf_aGoodTokenThatMustNotBePrinted"
READER = "hf_aTokenThatMayOnlyRead"


def git_id(data: bytes) -> str:
    """git's id of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_large(path: str, data: bytes) -> bool:
    return path.endswith(".safetensors") or len(data) >= LARGE_BYTES


@dataclass
class Repo:
    """Branches of commits; a commit's files by path."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    pull_requests: int = 0

    def commit(self, files: dict[str, bytes], branch: str) -> str:
        text = repr((len(self.commits), branch, sorted(files))).encode()
        oid = hashlib.sha1(text).hexdigest()
        self.commits[oid] = dict(files)
        self.branches[branch] = oid
        return oid

    def find(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.branches.get(revision)


class Hub:
    """The server's content and its faults.

    Attributes:
        requests: (method, path, authorization) of every request, in order.
        damage: path of a file -> what is done to its bytes before they are sent.
        cut: path of a file -> bytes after which the next transfers are cut; one number per transfer.
        listing: changes the list of files of a tree answer.
        status: part of a path -> (status, X-Error-Code, X-Error-Message) answered instead.
        store: SHA-256 -> content of large files.
        spoil: what is done to the bytes of an upload before they are stored.
        before_commit: called before a commit is made.
        page: entries per page of a tree answer.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.damage: dict[str, Callable[[bytes], bytes]] = {}
        self.cut: dict[str, list[int]] = {}
        self.listing: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] = lambda entries: entries
        self.status: dict[str, tuple[int, str, str]] = {}
        self.store: dict[str, bytes] = {}
        self.spoil: Callable[[bytes], bytes] = lambda data: data
        self.before_commit: Callable[[], None] = lambda: None
        self.page = 1000
        self.port = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(self, name: str, files: dict[str, bytes], *, branch: str = "main", **options: Any) -> str:
        """Make a repository, or a commit on a branch of one; returns the commit."""
        repo = self.repos.setdefault(name, Repo(**options))
        for path, data in files.items():
            if is_large(path, data):
                self.store[hashlib.sha256(data).hexdigest()] = data
        return repo.commit(files, branch)

    def sent(self, method: str, part: str) -> list[str]:
        """Paths of the requests of a method that hold ``part``."""
        return [path for used, path, _ in self.requests if used == method and part in path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def _serve(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) if self.command in {"POST", "PUT"} else b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = self._chunks()
        parts = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        authorization = self.headers.get("authorization")
        self.hub.requests.append((self.command, parts.path, authorization))
        for part, (status, code, message) in self.hub.status.items():
            if part in self.path:
                return self._error(status, code, message)
        token = (authorization or "").removeprefix("Bearer ")
        if authorization and token not in {TOKEN, READER}:
            return self._error(401, "", "Invalid credentials in Authorization header")
        self.may_read, self.may_write = bool(token), token == TOKEN
        for pattern, method in _ROUTES:
            match = re.fullmatch(pattern, parts.path)
            if match:
                return method(self, *(unquote(group) if group is not None else None for group in match.groups()))
        return self._error(404, "", f"no route {parts.path}")

    def _chunks(self) -> bytes:
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _json(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._answer(status, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _error(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Code": code} if code else {}
        self._json({"error": message}, status, {**headers, "X-Error-Message": message})

    def _repo(self, name: str) -> Repo | None:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self.may_read):
            self._error(404 if self.may_read else 401, "RepoNotFound" if self.may_read else "", "Repository not found")
            return None
        return repo

    def _found(self, name: str, revision: str | None) -> tuple[Repo, str] | None:
        repo = self._repo(name)
        if repo is None:
            return None
        oid = repo.find(revision or "main")
        if oid is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repo, oid

    def info(self, name: str, revision: str | None) -> None:
        found = self._found(name, revision)
        if found:
            repo, oid = found
            siblings = [{"rfilename": path} for path in repo.commits[oid]]
            self._json({"id": name, "sha": oid, "private": repo.private, "gated": repo.gated, "siblings": siblings, "tags": []})

    def tree(self, name: str, revision: str) -> None:
        found = self._found(name, revision)
        if not found:
            return
        entries = []
        for path, data in sorted(found[0].commits[found[1]].items()):
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": git_id(data)}
            if is_large(path, data):
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            entries.append(entry)
        entries = self.hub.listing(entries)
        start = int(self.query.get("cursor", 0))
        stop = start + self.hub.page
        link = f'<{self.hub.endpoint}/api/models/{name}/tree/{quote(revision, safe="")}?recursive=true&cursor={stop}>; rel="next"'
        self._json(entries[start:stop], headers={"Link": link} if stop < len(entries) else {})

    def resolve(self, name: str, revision: str, path: str) -> None:
        found = self._found(name, revision)
        if not found:
            return None
        repo, oid = found
        if repo.gated:
            return self._error(403, "GatedRepo", f"Access to model {name} is restricted")
        data = repo.commits[oid].get(path)
        if data is None:
            return self._error(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": oid}
        if not is_large(path, data):
            return self._content(path, data, {**headers, "ETag": f'"{git_id(data)}"'})
        digest = hashlib.sha256(data).hexdigest()
        location = f"http://localhost:{self.hub.port}/storage/{digest}/{quote(path)}"
        headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data)), "Location": location}
        return self._answer(302, b"", headers)

    def storage(self, digest: str, path: str) -> None:
        self._content(path, self.hub.store[digest], {"ETag": '"etag-of-the-storage"'})

    def _content(self, path: str, data: bytes, headers: dict[str, str]) -> None:
        """A file's bytes, damaged or cut where that is asked for; with Range where the client goes on."""
        status = 200
        if self.command == "GET":
            data = self.hub.damage.get(path, lambda data: data)(data)
            if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
                start = int(match[1])
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
                data, status = data[start:], 206
            if cuts := self.hub.cut.get(path):
                announced, data = str(len(data)), data[: cuts.pop(0)]
                self.close_connection = True
                return self._answer(status, data, {**headers, "Content-Length": announced})
        return self._answer(status, data, headers)

    def create(self) -> None:
        if not self.may_write:
            return self._error(403 if self.may_read else 401, "", "You don't have the rights to create a model")
        wanted = json.loads(self.body)
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.hub.repos:
            return self._json({"error": "You already created this model repo", "url": f"{self.hub.endpoint}/{name}"}, 409)
        self.hub.add(name, {".gitattributes": b"*.safetensors filter=lfs\n"}, private=wanted.get("visibility") == "private")
        return self._json({"url": f"{self.hub.endpoint}/{name}"})

    def branch(self, name: str, branch: str) -> None:
        repo = self._writable(name)
        if repo:
            repo.branches[branch] = repo.branches["main"]
            self._json({})

    def _writable(self, name: str) -> Repo | None:
        repo = self._repo(name)
        if repo is not None and not self.may_write:
            self._error(403, "", f"token {self.headers.get('authorization', '')[7:]} has no write access")
            return None
        return repo

    def preupload(self, name: str, revision: str) -> None:
        found = self._found(name, revision)
        if not found or not self._writable(name):
            return
        there = found[0].commits[found[1]]
        answer = []
        for file in json.loads(self.body)["files"]:
            large = file["path"].endswith(".safetensors") or file["size"] >= LARGE_BYTES
            held = there.get(file["path"])
            oid = None if held is None else hashlib.sha256(held).hexdigest() if large else git_id(held)
            answer.append({"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid})
        self._json({"files": answer})

    def batch(self, name: str) -> None:
        if not self._writable(name):
            return
        objects = []
        for item in json.loads(self.body)["objects"]:
            url = f"http://localhost:{self.hub.port}/upload/{item['oid']}"
            actions = {} if item["oid"] in self.hub.store else {"actions": {"upload": {"href": url}}}
            objects.append({"oid": item["oid"], "size": item["size"], **actions})
        self._json({"transfer": "basic", "objects": objects})

    def upload(self, digest: str) -> None:
        self.hub.store[digest] = self.hub.spoil(self.body)
        self._json({})

    def commit(self, name: str, revision: str) -> None:
        repo = self._writable(name)
        if repo is None:
            return None
        self.hub.before_commit()
        head = repo.find(revision)
        if head is None:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files, branch = dict(repo.commits[head]), revision
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header" and value.get("parentCommit") not in {None, head}:
                return self._error(412, "", "The branch was updated meanwhile")
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.store[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        if self.query.get("create_pr"):
            repo.pull_requests += 1
            branch = f"refs/pr/{repo.pull_requests}"
        oid = repo.commit(files, branch)
        url = f"{self.hub.endpoint}/{name}"
        pull_request = f"{url}/discussions/{repo.pull_requests}" if branch.startswith("refs/pr/") else None
        return self._json({"success": True, "commitOid": oid, "commitUrl": f"{url}/commit/{oid}", "pullRequestUrl": pull_request})

    def validate(self) -> None:
        bad = b"not: [valid" in self.body
        self._json({"errors": [{"message": "bad yaml"}] if bad else [], "warnings": []}, 400 if bad else 200)


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES: list[tuple[str, Any]] = [
    (rf"/api/models/{_NAME}(?:/revision/([^/]+))?", _Handler.info),
    (rf"/api/models/{_NAME}/tree/([^/]+)", _Handler.tree),
    (rf"/(?:datasets/)?{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
    (r"/storage/(\w+)/(.+)", _Handler.storage),
    (r"/api/repos/create", _Handler.create),
    (rf"/api/models/{_NAME}/branch/([^/]+)", _Handler.branch),
    (rf"/api/models/{_NAME}/preupload/([^/]+)", _Handler.preupload),
    (r"/([\w.-]+/[\w.-]+?)\.git/info/lfs/objects/batch", _Handler.batch),
    (r"/upload/(\w+)", _Handler.upload),
    (rf"/api/models/{_NAME}/commit/([^/]+)", _Handler.commit),
    (r"/api/validate-yaml", _Handler.validate),
]


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub on a free port of this machine, for the length of the block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
