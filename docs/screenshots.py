"""Make the pictures of docs/page.md: python docs/screenshots.py BUNDLE PICTURE...

Serves BUNDLE, chooses the PICTUREs in Chromium, and writes docs/page*.webp. It needs Playwright and
Chromium (CONTRIBUTING.md).
"""

import io
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

HERE = Path(__file__).parent
DESKTOP, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 780}


def main(bundle: str, *pictures: str) -> None:
    """Make all of them."""
    with serving(bundle) as url, sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = opened(browser, url, viewport=DESKTOP)
        choose(page, pictures)
        save(page, "page")
        page = opened(browser, url, viewport=DESKTOP, color_scheme="dark")
        choose(page, pictures)
        for number in (0, 1):
            page.get_by_role("button", name="Compare ").nth(number).click()
        save(page, "page-dark")
        page = opened(browser, url, viewport=PHONE, is_mobile=True, has_touch=True)
        choose(page, pictures)
        save(page, "page-phone")
        browser.close()


@contextmanager
def serving(bundle: str) -> Iterator[str]:
    """The address of the page while the block runs."""
    place = "127.0.0.1:0"
    command = [sys.executable, "-m", "irv2", "serve", bundle, "--listen", place, "--http", place]
    server = subprocess.Popen([*command, "--grace-s", "0"], stderr=subprocess.PIPE, text=True)
    assert server.stderr
    try:
        found = (re.search(r"^ready .* http=(\S+)", line) for line in server.stderr)
        ready = next(filter(None, found))
        yield f"http://{ready[1]}/"
    finally:
        server.terminate()
        server.wait()


def opened(browser: Browser, url: str, **context: object) -> Page:
    """The page, when it has said what is served."""
    page = browser.new_page(device_scale_factor=1.5, **context)  # type: ignore[arg-type]
    page.goto(url)
    page.locator(".verdict").wait_for()
    return page


def choose(page: Page, pictures: tuple[str, ...]) -> None:
    """Choose the pictures; return when they are answered and the figures tell so."""
    page.set_input_files("#files", list(pictures))
    page.wait_for_selector("#pictures[aria-busy=false]")
    page.locator("#throughput").filter(has_text=re.compile("[1-9]")).wait_for()


def save(page: Page, name: str) -> None:
    """Write what the window shows."""
    Image.open(io.BytesIO(page.screenshot())).save(HERE / f"{name}.webp", quality=82, method=6)


if __name__ == "__main__":
    main(*sys.argv[1:])
