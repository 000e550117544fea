"""A Hugging Face Hub on the loopback, with the few addresses that an upload and a download need."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """What the server holds.

    Attributes:
        address: for HF_ENDPOINT.
        token: without which nobody may upload.
        files: by repository and name.
        private: which repositories were made private.
        asked: methods and paths of all requests.
    """

    address: str = ""
    token: str = "hf_secret"
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Serve an empty hub."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", headers.get("Length", str(len(body))))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def say(self, content: Any, status: int = 200) -> None:
            self.answer(status, json.dumps(content).encode(), Content_Type="application/json")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            hub.asked.append(f"POST {self.path}")
            if self.path == "/api/validate-yaml":
                return self.say({"errors": [], "warnings": []})
            if self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self.say({"error": "Invalid credentials"}, 401)
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}"
                hub.files.setdefault(name, {})
                hub.private[name] = asked.get("private") or asked.get("visibility") == "private"
                return self.say({"url": f"{hub.address}/{name}", "name": name})
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", self.path):
                files = json.loads(body)["files"]
                return self.say({"files": [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in files
                ]})  # fmt: skip
            if match := re.match(r"/api/models/([^/]+/[^/]+)/commit/main", self.path):
                for line in map(json.loads, body.decode().splitlines()):
                    if line["key"] == "file":
                        content = base64.b64decode(line["value"]["content"])
                        hub.files[match[1]][line["value"]["path"]] = content
                return self.say({
                    "commitUrl": f"{hub.address}/{match[1]}/commit/{_COMMIT}",
                    "commitOid": _COMMIT, "commitMessage": "", "success": True,
                })  # fmt: skip
            return self.say({"error": "not here"}, 404)

        def do_GET(self) -> None:
            hub.asked.append(f"{self.command} {self.path}")
            match = re.match(r"/api/models/([^/]+/[^/]+)/tree/", self.path)
            if match and match[1] in hub.files:
                listed = [
                    {"type": "file", "path": name, "size": len(data), "oid": _COMMIT}
                    for name, data in hub.files[match[1]].items()
                ]
                return self.say(listed)
            match = re.match(r"/api/models/([^/]+/[^/?]+)", self.path)
            if match and match[1] in hub.files:
                files = [{"rfilename": name} for name in hub.files[match[1]]]
                return self.say({"id": match[1], "sha": _COMMIT, "siblings": files})
            match = re.match(r"/([^/]+/[^/]+)/resolve/[^/]+/([^?]+)", self.path)
            content = hub.files.get(match[1], {}).get(match[2]) if match else None
            if content is None:
                return self.say({"error": "not here"}, 200 if self.path == "/" else 404)
            etag = hashlib.sha1(content).hexdigest()
            return self.answer(200, content, ETag=f'"{etag}"', X_Repo_Commit=_COMMIT)

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
