"""Which requests are accepted?

Gradio limits only the files of its upload route: photos in the JSON of a request may have any size, and a photo given
by its address is downloaded whole. Both are refused here.
"""

import json
from collections.abc import Iterator
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from photos import MAX_BYTES

MOST_PHOTOS = 50
# Base64 encodes three bytes in four characters; the rest of a request is small.
MOST_JSON = MAX_BYTES * 4 // 3 + 100_000
MOST_UPLOAD = MOST_PHOTOS * MAX_BYTES
TOO_LARGE = f"photos may have at most {MAX_BYTES // 1_000_000} MB; send a smaller one"
NO_ADDRESS = "photo addresses are not accepted; upload the photo first or send it as a data: URL"


class Guard:
    """An ASGI middleware that refuses bodies over the limit and photos given by their address."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it with status 411, 413 or 400."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        refused, replay = await self._look(scope, receive)
        if refused is not None:
            await refused(scope, receive, send)
        else:
            await self.app(scope, replay, send)

    async def _look(self, scope: Scope, receive: Receive) -> tuple[JSONResponse | None, Receive]:
        """The refusal, if any, and a `receive` that replays the body read here."""
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        is_upload = scope["path"].endswith("/upload")
        if is_upload and not length.isdigit():
            return JSONResponse({"detail": "an upload needs a Content-Length"}, 411), receive
        if length.isdigit() and int(length) > (MOST_UPLOAD if is_upload else MOST_JSON):
            return JSONResponse({"detail": TOO_LARGE}, 413), receive
        if is_upload:
            return None, receive
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > MOST_JSON:
                return JSONResponse({"detail": TOO_LARGE}, 413), receive
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                break
        if names_an_address(body):
            return JSONResponse({"detail": NO_ADDRESS}, 400), receive
        return None, _replay(body, receive)


def _replay(body: bytes, receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def read() -> Message:
        return messages.pop() if messages else await receive()

    return read


def names_an_address(body: bytes) -> bool:
    """Whether any `path` in this JSON is an address, which Gradio would download."""
    try:
        content = json.loads(body)
    # Invalid JSON is refused by the app itself; a body of brackets is nested too deeply for Python.
    except (ValueError, RecursionError):
        return False
    return any(isinstance(path, str) and "://" in path for path in _paths(content))


def _paths(content: Any) -> Iterator[Any]:
    """Every value of a key `path`, at any depth."""
    waiting = [content]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield part.get("path")
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
