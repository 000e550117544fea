"""A layer in front of gradio: it bounds requests, words errors, and hides the server's paths.

gradio tells browsers where files lie on the server. Here the folder is replaced by an alias of the
same length on the way out, and back on the way in.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

_TEXTS = (b"application/json", b"text/")
_ROOM = 1 << 20  # bytes of a request beside its picture
_PATIENCE = 4  # times the limit, of which no more is kept, until a client is cut off


class Guard:
    """An ASGI application around that of the page.

    Args:
        application: to guard.
        folder: where its files lie, as it names it.
        max_bytes: of a picture.
    """

    def __init__(self, application: Application, folder: Path, max_bytes: int) -> None:
        self.application = application
        self.folder = str(folder).encode()
        self.alias = b"/" + b"files".ljust(len(self.folder) - 1, b"-")
        self.max_bytes = max_bytes * 4 // 3 + _ROOM  # base64 makes four bytes of three

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return await self.application(scope, receive, send)
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.max_bytes:
            return await self._refuse(receive, send)
        if headers.get(b"content-type", b"").startswith(b"application/json"):
            body = await self._whole(receive)
            if body is None:
                return await self._refuse(receive, send)
            receive = _first({"type": "http.request", "body": self.inwards(body)}, receive)
        await self.application(self._scope(scope), receive, self._sender(send))

    def inwards(self, data: bytes) -> bytes:
        """Return what a visitor sends with the folder's own name."""
        return data.replace(self.alias, self.folder)

    def outwards(self, data: bytes) -> bytes:
        """Return an answer with the folder's alias."""
        return data.replace(self.folder, self.alias)

    def _scope(self, scope: Message) -> Message:
        found = {**scope, "path": self.inwards(scope["path"].encode()).decode()}
        for key in ("raw_path", "query_string"):
            found[key] = self.inwards(scope.get(key) or b"")
        return found

    async def _whole(self, receive: Receive) -> bytes | None:
        """Return the body of a request, or None if it is too long."""
        body = bytearray()
        while len(body) <= self.max_bytes:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                return bytes(body)
        return None

    def _sender(self, send: Send) -> Send:
        text = False

        async def translated(message: Message) -> None:
            nonlocal text
            if message["type"] == "http.response.start":
                kind = dict(message.get("headers", ())).get(b"content-type", b"")
                text = kind.startswith(_TEXTS)
            elif text and message["type"] == "http.response.body":
                message = {**message, "body": self.outwards(message.get("body", b""))}
            await send(message)

        return translated

    async def _refuse(self, receive: Receive, send: Send) -> None:
        read = 0  # most clients hear nothing before they have sent everything
        while read < _PATIENCE * self.max_bytes:
            message = await receive()
            read += len(message.get("body", b""))
            if not message.get("more_body"):
                break
        most = self.max_bytes * 3 // 4 >> 20
        said = f"the request is larger than this page takes; send a picture of at most {most} MB"
        body = json.dumps({"detail": said}).encode()
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _first(message: Message, receive: Receive) -> Receive:
    """Return a channel that gives a message that was read already, and then the others."""
    waiting = [message]

    async def next_one() -> Message:
        return waiting.pop() if waiting else await receive()

    return next_one
