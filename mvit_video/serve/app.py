"""A page on this machine: drop a video, see its labels, timeline and heat map.

The server answers on a handful of fixed addresses. Results are found by a job's random key and a name from a fixed list,
so nothing that a visitor sends becomes a path.
"""

import os
import signal
import socket
import sys
import time
from contextlib import suppress
from importlib.resources import files
from typing import Any
from urllib.parse import unquote, urlsplit

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from mvit_video.errors import ConfigError
from mvit_video.serve.jobs import SHOWN, Jobs, QueueFull
from mvit_video.version import __version__

UPLOAD_SECONDS = 600.0
HEADER_SECONDS = 20.0  # for a connection to send a request
GRACE_SECONDS = 2  # for uploads, and then for the video in work, when the server is to end
MOST_CONNECTIONS = 64
PAGE = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "media-src 'self'; connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
LOCAL = ("127.0.0.1", "localhost", "::1")


def build_app(jobs: Jobs, host: str) -> Starlette:
    """The application. On a local address it answers requests for that address only, so that no other site's page can
    reach it by a name that resolves to this machine."""
    server = _Server(jobs)
    routes = [
        *(Route(path, server.page, methods=["GET"]) for path in PAGE),
        Route("/about", server.about, methods=["GET"]),
        Route("/jobs", server.upload, methods=["POST"]),
        Route("/jobs/{key}", server.state, methods=["GET"]),
        Route("/jobs/{key}/{name}", server.result, methods=["GET"]),
    ]
    allowed = [*LOCAL, "[::1]"] if host in LOCAL else ["*"]
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=allowed)])


def bound(host: str, port: int) -> socket.socket:
    """The address, taken for this process. ConfigError where that cannot be."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as reason:
        why = str(reason.strerror).partition(" (")[0]  # Python adds the address in brackets
        raise ConfigError(f"port {port} of {host} cannot be opened ({why}): choose another --port or --host") from None


def serve(jobs: Jobs, host: str, place: socket.socket) -> None:
    """Answer at `place` until interrupted or terminated; then delete every upload and result, within seconds.

    A forward pass that is under way cannot be interrupted: where it takes longer than that, the process ends with it.
    """
    settings = uvicorn.Config(
        build_app(jobs, host),
        http="h11",
        ws="none",
        lifespan="off",
        log_level="warning",
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    # When it has ended the server raises the signal again, and SIGTERM would kill the process before the deletion.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with suppress(KeyboardInterrupt):
            _PatientServer(settings).run(sockets=[place])
    finally:
        ended = jobs.close(GRACE_SECONDS)
        signal.signal(signal.SIGTERM, before)
        if not ended:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)


class _PatientServer(uvicorn.Server):
    """Closes connections over which no request has come for a while, and, when it ends, those with half of one."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._silent_since: dict[Any, float] = {}

    async def on_tick(self, counter: int) -> bool:
        now = time.monotonic()
        silent = [each for each in self.server_state.connections if getattr(each, "cycle", None) is None]
        self._silent_since = {each: self._silent_since.get(each, now) for each in silent}
        for connection, since in self._silent_since.items():
            if now - since > HEADER_SECONDS:
                connection.transport.close()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Break off what is still uploaded, which would be waited for and then be an error."""
        for connection in list(self.server_state.connections):
            if getattr(getattr(connection, "cycle", None), "more_body", False):
                connection.transport.close()
        await super().shutdown(sockets)


class _Server:
    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs

    async def page(self, request: Request) -> Response:
        name, kind = PAGE[request.url.path]
        return Response((files("mvit_video.serve") / name).read_bytes(), media_type=kind, headers=HEADERS)

    async def about(self, request: Request) -> Response:
        predictor, limits = self.jobs.predictor, self.jobs.limits
        card = predictor.card
        return _json(
            {
                "network": card.name,
                "classes": len(card.classes),
                "precision": str(predictor.precision),
                "version": __version__,
                "megabytes": limits.upload_bytes // 10**6,
                "seconds": limits.seconds,
            }
        )

    async def upload(self, request: Request) -> Response:
        """The body is the file; its name stands, percent-encoded, in the header X-File-Name."""
        if not _same_origin(request):
            return _json({"error": "uploads are accepted from this page only"}, 403)
        name = unquote(request.headers.get("x-file-name", ""))
        try:
            job = self.jobs.open(name)
        except QueueFull:
            return _json({"error": "the queue is full: try again when a video is done"}, 429)
        started = False
        try:
            with anyio.fail_after(UPLOAD_SECONDS):
                if await self._receive(request, job.upload):
                    self.jobs.start(job)
                    started = True
                    return _json({"key": job.key}, 202)
            most = self.jobs.limits.upload_bytes // 10**6
            return _json({"error": f"{job.name}: is larger than {most} MB, the limit of this page"}, 413)
        except ClientDisconnect:
            return _json({"error": "the upload was interrupted"}, 400)
        except TimeoutError:
            return _json({"error": "the upload took too long"}, 408)
        finally:
            if not started:
                self.jobs.drop(job)

    async def _receive(self, request: Request, place) -> bool:
        """Write the body to a file; False as soon as it is too large."""
        most, taken = self.jobs.limits.upload_bytes, 0
        stated = request.headers.get("content-length", "0")
        if stated.isdigit() and int(stated) > most:
            return False
        async with await anyio.open_file(place, "wb") as file:
            async for part in request.stream():
                taken += len(part)
                if taken > most:
                    return False
                await file.write(part)
        return True

    async def state(self, request: Request) -> Response:
        found = self.jobs.find(request.path_params["key"])
        return _json(found[0].as_dict(found[1])) if found else _missing()

    async def result(self, request: Request) -> Response:
        found, name = self.jobs.find(request.path_params["key"]), request.path_params["name"]
        if not found or name not in SHOWN or name not in found[0].files():
            return _missing()
        return FileResponse(found[0].folder / name, media_type=SHOWN[name], headers=HEADERS)


def _same_origin(request: Request) -> bool:
    """Browsers say which page sends a POST; programs that are no browsers say nothing."""
    origin = request.headers.get("origin")
    if origin is None:
        return True
    try:
        return urlsplit(origin).netloc == request.headers.get("host")
    except ValueError:  # such as http://[::1
        return False


def _json(content: dict, status: int = 200) -> Response:
    return JSONResponse(content, status, headers=HEADERS)


def _missing() -> Response:
    return _json({"error": "not found: only the results of the newest videos are kept"}, 404)
