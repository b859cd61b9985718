"""A hub on 127.0.0.1: what `huggingface_hub` and `datasets` ask for when they download, and a push of a model."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_loopbackSecret"
"""Opens gated repositories, and may push."""

_RESOLVE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_INFO = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/([^/]+))?")
_TREE = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)/(tree|paths-info)/([^/]+)(?:/(.*))?")
_PREUPLOAD = re.compile(r"/api/models/([^/]+/[^/]+)/preupload/main")
_BATCH = re.compile(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch")
_COMMIT = re.compile(r"/api/models/([^/]+/[^/]+)/commit/main")


@dataclass
class Repository:
    """The commits of a repository, each with all of its files by path, oldest first; ``main`` is the last one."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: bool = False
    private: bool = False

    def add(self, files: Mapping[str, bytes]) -> str:
        """Add a commit and return its 40 digits."""
        listing = sorted((path, hashlib.sha256(content).hexdigest()) for path, content in files.items())
        commit = hashlib.sha1(json.dumps([listing, len(self.commits)]).encode()).hexdigest()
        self.commits[commit] = dict(files)
        return commit


class LoopbackHub:
    """Repositories by (``models`` or ``datasets``, ``owner/name``), and the paths that were asked for.

    Attributes:
        cut_off: a file's content is cut off after so many bytes and the connection closed; None sends all of it.
        refuse: HTTP status of every answer, such as 429; 0 answers properly.
        refusals: how many answers are refused so; None refuses all.
        retry_after: seconds that a refusal asks to wait, or None to say nothing.
    """

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.asked: list[str] = []
        self.objects: dict[str, bytes] = {}
        self.cut_off: int | None = None
        self.refuse = 0
        self.refusals: int | None = None
        self.retry_after: int | None = None
        self.url = ""

    def refuses(self) -> bool:
        """Whether the next answer is a refusal; counts it."""
        if not self.refuse or self.refusals == 0:
            return False
        if self.refusals is not None:
            self.refusals -= 1
        return True

    def repository(self, kind: str, name: str) -> Repository:
        """Return a repository, made if missing."""
        return self.repositories.setdefault((kind, name), Repository())


@contextmanager
def running() -> Iterator[LoopbackHub]:
    """Serve an empty hub; its `LoopbackHub.url` is for ``HF_ENDPOINT``."""
    hub = LoopbackHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.hub.asked.append(path)
        if self.hub.refuses():
            wait = {} if self.hub.retry_after is None else {"Retry_After": str(self.hub.retry_after)}
            return self._reply(self.hub.refuse, {"error": "not now"}, **wait)
        if self.command in ("POST", "PUT") and "paths-info" not in path:
            return self._write(path)
        if match := _RESOLVE.fullmatch(path):
            return self._file("datasets" if match[1] else "models", match[2], match[3], match[4])
        if match := _TREE.fullmatch(path):
            return self._tree(match[1], match[2], match[4], match[3] == "paths-info", (match[5] or "").strip("/"))
        if match := _INFO.fullmatch(path):
            return self._info(match[1], match[2], match[3] or "main")
        return self._reply(404, {"error": "no such endpoint"})

    do_HEAD = do_POST = do_PUT = do_GET

    def _write(self, path: str) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.headers.get("authorization") != f"Bearer {TOKEN}" and not path.startswith("/objects/"):
            return self._reply(401, {"error": "Invalid username or password."})
        if path == "/api/repos/create":
            return self._create(json.loads(raw))
        if path == "/api/validate-yaml":
            return self._reply(200, {"errors": [], "warnings": []})
        if match := _PREUPLOAD.fullmatch(path):
            return self._preupload(match[1], json.loads(raw)["files"])
        if _BATCH.fullmatch(path):
            return self._reply(
                200, {"transfer": "basic", "objects": list(map(self._batch_entry, json.loads(raw)["objects"]))}
            )
        if path.startswith("/objects/"):
            self.hub.objects[path.removeprefix("/objects/")] = raw
            return self._reply(200)
        if match := _COMMIT.fullmatch(path):
            return self._add_commit(match[1], [json.loads(line) for line in raw.splitlines()])
        return self._reply(404, {"error": "no such endpoint"})

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        known = ("models", name) in self.hub.repositories
        if not known:
            repository = self.hub.repository("models", name)
            repository.private = asked.get("visibility") == "private" or bool(asked.get("private"))
            repository.add({".gitattributes": b""})
        self._reply(409 if known else 200, {"url": f"{self.hub.url}/{name}", "id": name, "name": name})

    def _preupload(self, name: str, files: list[dict[str, Any]]) -> None:
        stored = list(self.hub.repository("models", name).commits.values())[-1]
        answers = []
        for file in files:
            path, large = file["path"], file["path"].endswith(".safetensors")
            content = stored.get(path)
            digest = (lambda c: hashlib.sha256(c).hexdigest()) if large else _git_sha1
            answer = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            answers.append(answer | {"oid": None if content is None else digest(content)})
        self._reply(200, {"files": answers})

    def _batch_entry(self, requested: dict[str, Any]) -> dict[str, Any]:
        """Say where an object has to be sent, or nothing where it is here."""
        actions = {"upload": {"href": f"{self.hub.url}/objects/{requested['oid']}"}}
        known = requested["oid"] in self.hub.objects
        return {"oid": requested["oid"], "size": requested["size"]} | ({} if known else {"actions": actions})

    def _add_commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        repository = self.hub.repository("models", name)
        files = dict(list(repository.commits.values())[-1])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        commit = repository.add(files)
        self._reply(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit})

    def _reply(self, status: int, body: Any = b"", **headers: str) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content_Length": str(len(raw)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.hub.cut_off is not None and isinstance(body, bytes) and len(raw) > self.hub.cut_off:
            self.wfile.write(raw[: self.hub.cut_off])
            self.close_connection = True
            return
        self.wfile.write(raw)

    def _commit(self, kind: str, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Return a commit and its files, or answer why there is none."""
        repository = self.hub.repositories.get((kind, name))
        if repository is None:
            self._reply(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return None
        if repository.gated and self.headers.get("authorization") != f"Bearer {TOKEN}":
            status = 403 if self.headers.get("authorization") else 401
            self._reply(status, {"error": "gated"}, X_Error_Code="GatedRepo", X_Error_Message="Access is restricted.")
            return None
        commit = list(repository.commits)[-1] if revision == "main" else revision
        if commit not in repository.commits:
            self._reply(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
            return None
        return commit, repository.commits[commit]

    def _info(self, kind: str, name: str, revision: str) -> None:
        if commit_and_files := self._commit(kind, name, revision):
            commit, files = commit_and_files
            self._reply(200, {"id": name, "_id": "0", "sha": commit, "siblings": [{"rfilename": p} for p in files]})

    def _file(self, kind: str, name: str, revision: str, path: str) -> None:
        if commit_and_files := self._commit(kind, name, revision):
            commit, files = commit_and_files
            if path not in files:
                return self._reply(404, {"error": "none"}, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            content = files[path]
            headers = {"X_Repo_Commit": commit, "ETag": f'"{_git_sha1(content)}"'}
            byte_range = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range") or "")
            if byte_range and self.command == "GET":
                first, last = int(byte_range[1]), min(int(byte_range[2] or len(content) - 1), len(content) - 1)
                headers["Content_Range"] = f"bytes {first}-{last}/{len(content)}"
                return self._reply(206, content[first : last + 1], **headers)
            if self.command == "HEAD":
                headers["Content_Length"] = str(len(content))
            self._reply(200, b"" if self.command == "HEAD" else content, **headers)
        return None

    def _tree(self, kind: str, name: str, revision: str, listed: bool, below: str) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        if not (commit_and_files := self._commit(kind, name, revision)):
            return
        files = commit_and_files[1]
        entries = [
            {"type": "file", "path": path, "size": len(content), "oid": _git_sha1(content)}
            for path, content in files.items()
        ]
        folders = {"/".join(path.split("/")[:depth]) for path in files for depth in range(1, path.count("/") + 1)}
        entries += [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in folders]
        if listed:
            asked = json.loads(raw)["paths"] if raw.startswith(b"{") else urllib.parse.parse_qs(raw.decode())["paths"]
            paths = {path.strip("/") for path in asked}
            return self._reply(200, [entry for entry in entries if entry["path"] in paths])
        if below and below not in folders:
            return self._reply(404, {"error": "none"}, X_Error_Code="EntryNotFound")
        entries = [entry for entry in entries if not below or str(entry["path"]).startswith(f"{below}/")]
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        if query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
            start = len(below) + bool(below)
            entries = [entry for entry in entries if "/" not in str(entry["path"])[start:]]
        self._reply(200, entries)


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
