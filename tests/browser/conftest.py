"""ComfyUI's own frontend in a headless Chromium."""

import os
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from dev.browser import NoBrowser, chromium
from dev.host import ComfyHost

# The sandbox needs rights that root in a container lacks; the rest keeps Chromium from calling home.
FLAGS = [
    *(["--no-sandbox"] if getattr(os, "geteuid", lambda: 1)() == 0 else []),
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Notification.ShowVersionUpdates": False,
}


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium, started once. Without one the tests are skipped, and fail where CI is set."""
    try:
        path = chromium()
    except NoBrowser as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))
    with sync_playwright() as playwright:
        chromium_browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium_browser
        chromium_browser.close()


@pytest.fixture
def page(browser: Browser, server: ComfyHost) -> Iterator[Page]:
    """A fresh page with ComfyUI's frontend ready, without its tutorial.

    ``page.console_errors`` collects what the page logs as an error or throws, with the address it came from.
    """
    server.request("/api/settings", SETTINGS)
    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    page = context.new_page()
    page.console_errors = []
    page.on("console", lambda message: _collect(message, page.console_errors))
    page.on("pageerror", lambda error: page.console_errors.append(f"{error.message}\n{error.stack}"))
    page.goto(server.url)
    page.wait_for_function("window.app?.vueAppReady && !window.app.extensionManager.spinner", timeout=60_000)
    yield page
    context.close()


@pytest.fixture(params=["litegraph", "vue"])
def renderer(request: pytest.FixtureRequest, server: ComfyHost) -> Iterator[str]:
    """ComfyUI's setting for the renderer that draws the nodes, made before the page opens."""
    server.request("/api/settings", {"Comfy.VueNodes.Enabled": request.param == "vue"})
    yield request.param
    server.request("/api/settings", {"Comfy.VueNodes.Enabled": False})


@pytest.fixture
def chinese(server: ComfyHost) -> Iterator[None]:
    """ComfyUI's setting for a user who reads Chinese, made before the page opens."""
    server.request("/api/settings", {"Comfy.Locale": "zh"})
    yield
    server.request("/api/settings", {"Comfy.Locale": "en"})


def _collect(message: ConsoleMessage, errors: list[str]) -> None:
    if message.type == "error":
        errors.append(f"{message.location.get('url')}: {message.text}")
