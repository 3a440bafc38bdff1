"""A newcomer's first minutes: the four commands of docs/start.md, and a picture on the page.

    python tests/long/newcomer.py [PICTURE]

Runs the commands as they stand, in an empty folder, with an empty home and so no package kept from
before; what they clone is this repository's last commit. Then drops PICTURE, or a digit that is
drawn here, on the page in Chromium. Prints a transcript, each step with the time since the start.
Exit status 1 where the answer was not there after 8 minutes; on a busy machine that says nothing.
It needs Playwright and Chromium (CONTRIBUTING.md), and the server's usual ports, 8500 and 8501.
"""

import asyncio
import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.error import URLError
from urllib.request import urlopen

from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))  # the tests' own modules

from browser import drop, opened
from project import ROOT

PAGE = "http://127.0.0.1:8501/"
MAX_SECONDS = 8 * 60
OF_THIS_ENVIRONMENT = ("PYTHONPATH", "VIRTUAL_ENV", "XDG_CACHE_HOME")


def commands() -> list[str]:
    """The lines of the first block of the section, as a newcomer copies them."""
    page = (ROOT / "docs" / "start.md").read_text()
    section = page.partition("## Four commands\n")[2]
    return re.search(r"```bash\n(.*?)```", section, re.DOTALL).group(1).splitlines()


def clean_environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in OF_THIS_ENVIRONMENT}
    paths = os.environ["PATH"].split(os.pathsep)
    path = os.pathsep.join(each for each in paths if not Path(each).is_relative_to(sys.prefix))
    return {**kept, "HOME": str(home), "PATH": path, "REPOSITORY": str(ROOT)}


@contextmanager
def serving(command: str, folder: Path, environment: dict[str, str]):
    """Run a command that serves, until the block ends; begin the block when its page is there."""
    server = subprocess.Popen(["bash", "-c", f"exec {command}"], cwd=folder, env=environment)
    try:
        while not is_there(PAGE):
            assert server.poll() is None, "it has said why"
            time.sleep(0.1)
        yield
    finally:
        server.terminate()
        server.wait()


def is_there(url: str) -> bool:
    try:
        return urlopen(url).status == 200
    except URLError:  # nobody listens yet
        return False


async def answer_to(picture: Path) -> str:
    """Drop a picture on the page; return what the page then says of it."""
    async with opened(PAGE) as (page, complaints):
        await page.locator(".verdict").wait_for()
        await drop(page, picture)
        scores = page.locator(".picture .scores li")
        await scores.first.wait_for()
        assert not complaints
        return ", ".join(" ".join(text.split()) for text in await scores.all_inner_texts())


def drawn_digit(path: Path) -> Path:
    picture = Image.new("RGB", (200, 200))
    points = [(40, 35), (160, 35), (90, 170)]
    ImageDraw.Draw(picture).line(points, fill="white", width=30, joint="curve")
    picture.save(path)
    return path


def main(*pictures: str) -> None:
    start = time.monotonic()

    def say(text: str) -> float:
        seconds = time.monotonic() - start
        print(f"[{seconds:4.0f} s] {text}", flush=True)
        return seconds

    with TemporaryDirectory() as name:
        folder, home = Path(name), Path(name) / "home"
        home.mkdir()
        environment = clean_environment(home)
        *steps, serve = commands()
        for step in steps:
            say(f"$ {step}")
            if step.startswith("cd "):
                folder /= step.removeprefix("cd ")
                continue
            subprocess.run(["bash", "-c", step], cwd=folder, env=environment, check=True)
        say(f"$ {serve}")
        with serving(serve, folder, environment):
            say(f"the page is there: {PAGE}")
            picture = Path(*pictures) if pictures else drawn_digit(home / "mine.png")
            answer = asyncio.run(answer_to(picture))
            seconds = say(f"{picture.name}: {answer}")
    sys.exit(seconds > MAX_SECONDS)


if __name__ == "__main__":
    main(*sys.argv[1:])
