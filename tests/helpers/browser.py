"""The page in a real Chromium, where Playwright and Chromium are installed (CONTRIBUTING.md)."""

import os
import shutil
import sys
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
# As of grpc-js: `make js-client` installs it.
_MODULES = Path(os.environ.get("NODE_PATH") or Path(sys.prefix) / "js" / "node_modules")
AXE = _MODULES / "axe-core" / "axe.min.js"


def browser_is_missing() -> str:
    """Why a test in a browser can't run."""
    if not find_spec("playwright"):
        return "playwright is not installed"
    return "" if CHROMIUM else "chromium is not installed"


@asynccontextmanager
async def opened(url: str, **context):
    """The page, whose errors and warnings must be none."""
    from playwright.async_api import async_playwright

    complaints: list[str] = []
    async with async_playwright() as playwright:
        # Tests may run as root, in containers that allow Chromium no sandbox of its own.
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            page = await browser.new_page(**context)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("console", lambda said: complaints.append(f"{said.type}: {said.text}"))
            if AXE.exists():
                await page.add_init_script(path=AXE)
            await page.goto(url)
            yield page, complaints
        finally:
            await browser.close()


async def drop(page, *paths: Path) -> None:
    """Drop files and folders as from the desktop."""
    session = await page.context.new_cdp_session(page)
    dragged = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        event = {"type": kind, "x": 300, "y": 300, "data": dragged}
        await session.send("Input.dispatchDragEvent", event)


async def paste(page, name: str, content: bytes) -> None:
    """Paste a picture."""
    program = """([name, bytes]) => {
        const clipboardData = new DataTransfer();
        clipboardData.items.add(new File([new Uint8Array(bytes)], name, {type: "image/jpeg"}));
        document.body.dispatchEvent(new ClipboardEvent("paste", {clipboardData, bubbles: true}));
    }"""
    await page.evaluate(program, [name, list(content)])


async def violations(page) -> list[str]:
    """What axe-core finds wrong with the page as it is now."""
    found = await page.evaluate("() => axe.run()")
    assert found["passes"]
    return [f"{each['id']}: {each['nodes'][0]['html']}" for each in found["violations"]]
