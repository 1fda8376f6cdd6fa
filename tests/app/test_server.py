"""Where the page listens, and what it answers to whom."""

import socket

import pytest

from tagrank.app.server import address, is_open, listen
from tagrank.errors import InputError


def test_listening() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert address(listener) == f"http://127.0.0.1:{port}/"
        with socket.create_connection(("127.0.0.1", port)):
            pass
        with pytest.raises(InputError, match=f"^--port: {port} is taken by another program"):
            listen("127.0.0.1", port)
    with listen("localhost", port) as again:
        assert again.getsockname()[1] == port
    with listen("0.0.0.0", 0) as everywhere:
        assert address(everywhere).startswith("http://127.0.0.1:")


@pytest.mark.parametrize("host", ["no such host", "192.0.2.1", "x" * 300, "\0"])
def test_hosts_that_are_not_here(host: str) -> None:
    with pytest.raises(InputError, match=r"^--host: expected"):
        listen(host, 0)


@pytest.mark.parametrize(
    ("method", "path", "open"),
    [
        ("GET", "/", True),
        ("GET", "/assets/index.js", True),
        ("POST", "/photographs", True),
        ("POST", "/gradio_api/queue/join", True),
        # What Gradio would do besides.
        ("GET", "/gradio_api/file=/etc/passwd", False),
        ("GET", "/gradio_api/file/etc/passwd", False),
        ("GET", "/gradio_api/proxy=http://localhost/", False),
        ("POST", "/gradio_api/upload", False),
        ("POST", "/gradio_api/component_server", False),
        ("POST", "/gradio_api/run/predict", False),
        ("POST", "/gradio_api/vibe-edit/", False),
        ("GET", "/monitoring", False),
        ("GET", "/docs", False),
        # Other ways to say the same.
        ("GET", "/assets/../gradio_api/file=/etc/passwd", False),
        ("GET", "//", False),
        ("POST", "/", False),
        ("OPTIONS", "/photographs", False),
        ("DELETE", "/photographs", False),
    ],
)
def test_what_is_open(method: str, path: str, open: bool) -> None:
    assert is_open(method, path) == open
