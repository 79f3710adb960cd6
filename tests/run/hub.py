"""A stand-in for a hub of models: a small server on this machine that the real client talks to."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_test"
COMMIT = "c" * 40


class Hub:
    """repositories: {name: {path: bytes}}; private: names; commits: how many each has had; asked: (method, path)."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.commits: list[str] = []
        self.asked: list[tuple[str, str]] = []
        self.refuses = False
        self.url = ""


@contextmanager
def served() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Nothing on the terminal."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path))
        if path == "/api/whoami-v2":
            known = self.headers.get("authorization") == f"Bearer {TOKEN}"
            return self._json({"name": "tester", "type": "user"} if known else {"error": "no"}, 200 if known else 401)
        if path.startswith("/api/models/"):
            name, rest = self._split(path.removeprefix("/api/models/"))
            if name not in self.hub.repositories:
                return self._missing("RepoNotFound")
            if rest[:1] == ["tree"]:
                return self._json([_entry(n, c) for n, c in self.hub.repositories[name].items()])
            if rest[:1] == ["revision"] and rest[1] not in ("main", "v1", COMMIT):
                return self._missing("RevisionNotFound")
            siblings = [{"rfilename": n} for n in self.hub.repositories[name]]
            facts = {"id": name, "modelId": name, "sha": COMMIT, "private": name in self.hub.private}
            return self._json({**facts, "siblings": siblings, "tags": [], "downloads": 0})
        name, rest = self._split(path.lstrip("/"))
        file = "/".join(rest[2:])
        if rest[:1] != ["resolve"] or file not in self.hub.repositories.get(name, {}):
            return self._missing("EntryNotFound")
        content = self.hub.repositories[name][file]
        etag = hashlib.sha256(content).hexdigest()
        return self._send(content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(("POST", path))
        body = self._body()
        if self.hub.refuses or self.headers.get("authorization") != f"Bearer {TOKEN}":
            return self._json({"error": "you may not write here"}, 403)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, [asked.get("organization"), asked["name"]]))
            self.hub.repositories[name] = {}
            if asked.get("private") or asked.get("visibility") == "private":
                self.hub.private.add(name)
            return self._json({"url": f"{self.hub.url}/{name}"})
        name, rest = self._split(path.removeprefix("/api/models/"))
        if rest[:1] == ["preupload"]:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self._json({"files": files})
        if rest[:1] == ["commit"]:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    self.hub.repositories[name][entry["value"]["path"]] = content
                if entry["key"] == "deletedFile":
                    del self.hub.repositories[name][entry["value"]["path"]]
            self.hub.commits.append(name)
            return self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT})
        return self._json({})

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _split(self, path: str) -> tuple[str, list[str]]:
        org, name, *rest = [*path.split("/"), "", ""]
        return f"{org}/{name}", [part for part in rest if part]

    def _missing(self, code: str) -> None:
        self._json({"error": code}, 404, {"X-Error-Code": code, "X-Error-Message": code})

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})}, status)

    def _send(self, content: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _entry(name: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
