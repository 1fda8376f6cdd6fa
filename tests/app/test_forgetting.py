"""What is left of a user when the page has been closed for as long as Gradio remembers it: an hour, here a second."""

import gc
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="gradio is not installed (pip install 'tagrank[app]')")
pytest.importorskip("playwright", reason="playwright is not installed")

import uvicorn
from playwright.sync_api import sync_playwright

from tagrank import Annotator
from tagrank.app import layout
from tagrank.app.server import address, import_gradio, listen, make_app
from tagrank.app.service import Service
from tagrank.app.session import Photograph
from tagrank.app.uploads import MEGABYTE, Uploads


def photographs() -> int:
    """How many photographs there are in this process."""
    gc.collect()
    return sum(type(thing) is Photograph for thing in gc.get_objects())


@pytest.mark.exhaustive
def test_nothing_is_left(annotator: Annotator, world: Path, chromium: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_IS_E2E_TEST", "1")
    monkeypatch.setenv("GRADIO_HEARTBEAT_INTERVAL", "1")
    import_gradio()
    pages = []
    make = layout.make_page
    monkeypatch.setattr(layout, "make_page", lambda *given: pages.append(make(*given)) or pages[0])
    service, uploads, listener = Service(annotator), Uploads(MEGABYTE), listen("127.0.0.1", 0)
    app, hang_up = make_app(service, uploads)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=lambda: server.run(sockets=[listener]))
    thread.start()
    before = photographs()
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page()
            page.goto(address(listener))
            page.wait_for_selector(".dropzone")
            page.set_input_files(".dropzone input", world / "photos" / "a.jpg")
            page.wait_for_selector(".tags li")
            assert photographs() == before + 1
            assert len(uploads) == 0
            assert pages[0].state_holder.session_data
            page.close()
            end = time.monotonic() + 60
            while pages[0].state_holder.session_data and time.monotonic() < end:
                time.sleep(0.2)
            assert not pages[0].state_holder.session_data
            assert photographs() == before
    finally:
        hang_up()
        server.should_exit = True
        thread.join()
        service.close()
