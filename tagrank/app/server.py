"""The server of the page: a place to listen at, what may be asked for, and an end by Ctrl-C."""

import errno
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from tagrank.app.finding import Finder
from tagrank.app.parts import resource
from tagrank.app.service import Service
from tagrank.app.uploads import Uploads
from tagrank.data.files import first_line, reason
from tagrank.errors import InputError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

API = "/gradio_api"
OPEN = {
    "GET": {"/", "/config", "/theme.css", "/favicon.ico", "/manifest.json"}
    | {f"{API}/startup-events", f"{API}/queue/data"},
    "HEAD": {"/"},
    "POST": {"/photographs", f"{API}/queue/join", f"{API}/reset", f"{API}/cancel"},
}
"""The addresses that the page needs. Gradio has others, at which it gives away files, fetches web pages, ..."""
OPEN_BELOW = {"GET": ("/assets/", "/static/", "/svelte/", f"{API}/heartbeat/")}
HEADERS = {
    # Gradio's page has scripts in it, and compiles ours. Whatever they are: they reach this server and no other.
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: a name or an address of this machine.
        port: 0 for any that is free.

    Raises:
        InputError: the host is not this machine, or the port is taken or may not be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host: expected a name or an address of this machine, got {host!r:.60}") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise InputError(
                f"--port: {port} is taken by another program: expected a free port; 0 takes any that is free"
            ) from error
        if error.errno == errno.EADDRNOTAVAIL:
            raise InputError(f"--host: expected an address of this machine, got {host!r:.60}") from error
        raise InputError(f"--port: {port} cannot be used: {reason(error)}") from error
    return listener


def address(listener: socket.socket) -> str:
    """The address of the page, for a browser on this machine."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def import_gradio() -> None:
    """Import Gradio, with all that would reach other machines turned off.

    Raises:
        InputError: it is not installed.
    """
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1", GRADIO_RUN_HISTORY="False")
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"the page needs packages that are not installed ({first_line(error)}): pip install 'tagrank[app]'"
        ) from error


def make_app(service: Service, uploads: Uploads, finder: Finder | None = None) -> "tuple[ASGIApp, Callable[[], None]]":
    """The page as an ASGI application, and a function to call when it is to end: it hangs up on the browsers."""
    import gradio as gr
    from fastapi import FastAPI, Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import Mount

    from tagrank.app.layout import make_page

    no_pages: dict[str, Any] = {"docs_url": None, "redoc_url": None, "openapi_url": None}
    app = FastAPI(**no_pages)

    @app.post("/photographs")
    async def receive(request: Request) -> PlainTextResponse:
        # Browsers ask before a page of another site may send a header like this one; so no other site can send files.
        name = request.headers.get("x-photograph")
        if name is None:
            return PlainTextResponse("expected the header X-Photograph", 400)
        length = request.headers.get("content-length", "")
        try:
            uploads.check_size(int(length) if length.isdecimal() else 0)
            return PlainTextResponse(await uploads.receive(unquote(name), request.stream()))
        except InputError as error:
            return PlainTextResponse(str(error), 413)

    gr.mount_gradio_app(
        app,
        make_page(service, uploads, finder),
        "/",
        footer_links=[],
        run_history=False,
        app_kwargs=no_pages,
        show_error=False,
        max_file_size=1,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        # Not as css=, which Gradio takes apart: it would lose what is for small windows.
        head=f"<style>{resource('page.css')}</style>",
    )
    mounted: Any = next(route.app for route in app.routes if isinstance(route, Mount))
    return gate(app), mounted.stop_event.set


def gate(app: "ASGIApp") -> "ASGIApp":
    """Let through what the page needs, and answer everything else with 404. All answers have :data:`HEADERS`."""
    from starlette.datastructures import MutableHeaders
    from starlette.responses import PlainTextResponse

    async def gated(scope: "Scope", receive: "Receive", send: "Send") -> None:
        async def send_with_headers(message: "Message") -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if scope["type"] == "lifespan":
            await app(scope, receive, send)
        elif scope["type"] == "http":
            through = app if is_open(scope["method"], scope["path"]) else PlainTextResponse("not found", 404)
            await through(scope, receive, send_with_headers)

    return gated


def is_open(method: str, path: str) -> bool:
    """Whether the page needs an address."""
    return path in OPEN.get(method, ()) or (".." not in path and path.startswith(OPEN_BELOW.get(method, ("\0",))))


def serve(listener: socket.socket, app: "ASGIApp", hang_up: Callable[[], None]) -> None:
    """Serve until Ctrl-C.

    Args:
        listener: where.
        app: what.
        hang_up: called when it is to end.

    Raises:
        KeyboardInterrupt: it was Ctrl-C.
    """
    import uvicorn

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            hang_up()
            super().handle_exit(sig, frame)

    config = uvicorn.Config(app, log_level="error", access_log=False, server_header=False, timeout_graceful_shutdown=5)
    Server(config).run(sockets=[listener])
