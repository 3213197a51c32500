"""A small S3 server in this process, with faults: what the tests of buckets talk to.

It keeps objects in memory, and knows the requests that the client sends: PUT with conditions, GET with
ranges, HEAD, DELETE and listing in pages. ``test_cloud_seaweedfs.py`` runs the same things against a real
server.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

import pytest

BUCKET = "photos"

ACCESS_KEY = "AKIAIOSFODNN7EXAMPLE"

SECRET = "a-secret-that-must-be-in-no-output"


class Stored(NamedTuple):
    """An object: its bytes, the time in seconds when it was put, and its metadata."""

    content: bytes
    time: float
    metadata: dict[str, str]

    @property
    def etag(self) -> str:
        return f'"{hashlib.md5(self.content).hexdigest()}-{self.time!r}"'


class Request(NamedTuple):
    """A request that came in; ``key`` is that of the object, or the prefix of a listing."""

    method: str
    key: str
    query: dict[str, list[str]]


class S3Server(ThreadingHTTPServer):
    """The server.

    Attributes:
        objects: by key, all in ``BUCKET``.
        requests: all so far.
        conditions: whether it keeps to conditions.
        delay: seconds by which it answers late.
        page: most objects that a listing names at a time.
        fault: called with each request; the status that it returns is the answer, None for the usual one.
        after: called with each request that has been done, before it is answered.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.objects: dict[str, Stored] = {}
        self.requests: list[Request] = []
        self.conditions = True
        self.delay = 0.0
        self.page = 1000
        self.fault: Callable[[Request], int | None] = lambda request: None
        self.after: Callable[[Request], object] = lambda request: None
        self.lock = threading.Lock()

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to find it."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.server_address[1]}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }

    def put(self, key: str, content: bytes, age: float = 0, **metadata: str) -> None:
        """Put an object as if it had been there for ``age`` seconds."""
        self.objects[key] = Stored(content, time.time() - age, metadata)

    def below(self, prefix: str) -> dict[str, bytes]:
        """The content of the objects below a folder, by their name in it."""
        return {
            key.removeprefix(f"{prefix}/"): stored.content
            for key, stored in sorted(self.objects.items())
            if key.startswith(f"{prefix}/")
        }

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: clients may be killed."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: S3Server

    def log_message(self, *_: object) -> None:
        pass

    def _handle(self) -> None:
        server, length = self.server, int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        url = urlsplit(self.path)
        query = parse_qs(url.query, keep_blank_values=True)
        bucket, _, key = unquote(url.path).lstrip("/").partition("/")
        request = Request(self.command, key or query.get("prefix", [""])[0], query)
        if server.delay:
            time.sleep(server.delay)
        with server.lock:
            server.requests.append(request)
        status = server.fault(request)
        if ACCESS_KEY not in self.headers.get("Authorization", ""):
            status = 403
        if status is not None:
            self._answer(status, _error("AccessDenied" if status == 403 else "InternalError"))
            return
        if bucket != BUCKET:
            self._answer(404, _error("NoSuchBucket"))
            return
        with server.lock:
            answer = getattr(self, f"_{self.command.lower()}")(request, body)
        server.after(request)
        self._answer(*answer)

    do_GET = do_HEAD = do_PUT = do_DELETE = do_POST = _handle  # noqa: N815 (the names that it looks for)

    def _put(self, request: Request, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        there = self.server.objects.get(request.key)
        if self.server.conditions:
            if self.headers.get("If-None-Match") == "*" and there is not None:
                return 412, _error("PreconditionFailed"), {}
            wanted = self.headers.get("If-Match")
            if wanted is not None and there is None:
                return 404, _error("NoSuchKey"), {}
            if wanted is not None and there is not None and wanted != there.etag:
                return 412, _error("PreconditionFailed"), {}
        metadata = {
            name.lower().removeprefix("x-amz-meta-"): value
            for name, value in self.headers.items()
            if name.lower().startswith("x-amz-meta-")
        }
        stored = self.server.objects[request.key] = Stored(body, time.time(), metadata)
        return 200, b"", {"ETag": stored.etag}

    def _get(self, request: Request, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        if "list-type" in request.query:
            return 200, self._list(request), {"Content-Type": "application/xml"}
        stored = self.server.objects.get(request.key)
        if stored is None:
            return 404, _error("NoSuchKey"), {}
        headers = {"ETag": stored.etag, "Last-Modified": formatdate(stored.time, usegmt=True)}
        headers |= {f"x-amz-meta-{name}": value for name, value in stored.metadata.items()}
        content, size = stored.content, len(stored.content)
        if "Range" in self.headers:
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            end = min(int(last), size - 1) if last else size - 1
            headers["Content-Range"] = f"bytes {first}-{end}/{size}"
            return 206, content[int(first) : end + 1], headers
        return 200, content, headers

    _head = _get

    def _delete(self, request: Request, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        self.server.objects.pop(request.key, None)
        return 204, b"", {}

    def _post(self, request: Request, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        keys = [part.partition("</Key>")[0] for part in body.decode().split("<Key>")[1:]]
        for key in keys:
            self.server.objects.pop(unescape(key), None)
        deleted = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
        return 200, f"<DeleteResult>{deleted}</DeleteResult>".encode(), {}

    def _list(self, request: Request) -> bytes:
        keys = sorted(key for key in self.server.objects if key.startswith(request.key))
        after = request.query.get("continuation-token", [""])[0]
        keys = [key for key in keys if key > after]
        page, more = keys[: self.server.page], len(keys) > self.server.page
        parts = [f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>"]
        if more:
            parts.append(f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>")
        for key in page:
            stored = self.server.objects[key]
            changed = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(stored.time))
            parts.append(
                f"<Contents><Key>{escape(key)}</Key><LastModified>{changed}</LastModified>"
                f"<ETag>{escape(stored.etag)}</ETag><Size>{len(stored.content)}</Size></Contents>"
            )
        return f"<ListBucketResult>{''.join(parts)}</ListBucketResult>".encode()

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        try:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            if status != 204:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
        except OSError:  # the client was killed
            self.close_connection = True


def _error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()


@contextmanager
def found_by_clients(patch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A with block during which a server answers, which clients find by the environment."""
    server = S3Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
