"""The page for browsers: what it is made of, and what it does in a real one."""

import asyncio
import base64
import hashlib
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import AXE, browser_is_missing, drop, opened, paste, violations
from http_site import HTTP, ask
from PIL import Image
from serving_site import jpeg, request, scenario_with
from tiny_bundle import write_tiny_bundle

from irv2.bundle import Bundle
from irv2.manifest import SIGNATURE

TOKEN = "a-token-of-20-letters"
in_a_browser = pytest.mark.skipif(bool(browser_is_missing()), reason=browser_is_missing())


class Elements(HTMLParser):
    """The elements of a page, their nesting, and the text of its script and style."""

    VOID = ("meta", "link", "input", "br", "rect", "circle", "path", "line", "polyline")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.found, self.text = [], [], {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text[self.open[-1] if self.open else ""] = data


def test_the_page_is_one_file_whose_policy_allows_its_own_script_and_style_alone(bundle):
    async def scenario(site):
        answer = await ask(site, "/")
        assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        page = Elements(answer.body.decode())
        assert page.open == []
        said = answer.headers["Content-Security-Policy"].split("; ")
        policy = dict(each.split(" ", 1) for each in said)
        for tag in ("script", "style"):
            assert [name for name, _ in page.found].count(tag) == 1
            digest = hashlib.sha256(page.text[tag].encode()).digest()
            assert policy[f"{tag}-src"] == f"'sha256-{base64.b64encode(digest).decode()}'"
        assert (policy["default-src"], policy["connect-src"]) == ("'none'", "'self'")
        assert policy["img-src"] == "blob: data:"
        attributes = {name for _, each in page.found for name in each}
        assert not [name for name in attributes if name == "style" or name.startswith("on")]

    scenario_with(bundle, scenario, http=HTTP)


def test_the_page_names_no_other_place_and_stores_nothing(bundle):
    async def scenario(site):
        text = (await ask(site, "/")).body.decode()
        assert re.findall(r"\w+://[^'\"\s]+", text) == ["http://www.w3.org/2000/svg"]  # a namespace
        assert not re.search(r"localStorage|sessionStorage|indexedDB|cookie|innerHTML|eval\(", text)

    scenario_with(bundle, scenario, http=HTTP)


def test_a_browser_that_has_the_page_is_told_so(bundle):
    async def scenario(site):
        etag = (await ask(site, "/")).headers["Etag"]
        assert (await ask(site, "/", If_None_Match=etag)).status == 304

    scenario_with(bundle, scenario, http=HTTP)


def test_without_the_page_everything_else_is_there(bundle):
    async def scenario(site):
        assert (await ask(site, "/")).status == 404
        assert (await ask(site, "/v1/model")).status == 200
        assert (await ask(site, "/v1/classify", jpeg(0))).status == 200

    scenario_with(bundle, scenario, http=HTTP, has_page=False)


def test_the_model_says_what_getmodel_does_and_what_its_bundle_does(bundle, tmp_path):
    signed = write_tiny_bundle(tmp_path / "signed.bundle")
    (signed / SIGNATURE).write_bytes(b"not looked at")

    def scenario_of(signature):
        async def scenario(site):
            found = (await ask(site, "/v1/model")).json
            assert found["model"]["id"] == site.bundle.id
            assert found["model"]["classes"] == site.bundle.classes
            assert (found["limits"]["max_images"], found["artifact"]) == (20, "model.onnx")
            [artifact] = found["artifacts"]
            [evidence] = artifact["evidence"]
            assert (artifact["precision"], evidence["parity"]["verdict"]) == ("fp32", "passed")
            assert found["signature"] == signature

        return scenario

    scenario_with(bundle, scenario_of("none"), http=HTTP)
    scenario_with(Bundle.open(signed), scenario_of("unchecked"), http=HTTP)


def test_who_has_no_token_gets_the_page_and_not_the_model(bundle, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text(f"me {TOKEN}\n")

    async def scenario(site):
        assert (await ask(site, "/")).status == 200
        refused = await ask(site, "/v1/model")
        assert (refused.status, refused.json["error"]["status"]) == (401, "UNAUTHENTICATED")
        found = await ask(site, "/v1/model", Authorization=f"Bearer {TOKEN}")
        assert found.json["model"]["id"] == bundle.id

    scenario_with(bundle, scenario, http=HTTP, token_file=tokens)


def url_of(site) -> str:
    return f"http://{site.server.description['http']}/"


def turned() -> bytes:
    exif, out = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.new("RGB", (90, 60), "red").save(out, "JPEG", exif=exif)
    return out.getvalue()


def written(folder: Path, files: dict[str, bytes]) -> list[Path]:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in files]


ANSWERED = "#pictures[aria-busy=false]"


@in_a_browser
def test_thirty_dropped_pictures_are_answered_and_two_of_them_compared(bundle, tmp_path):
    files = {f"{number}.jpg": jpeg(number) for number in range(28)}
    files |= {"notes.jpg": b"no picture", "turned.jpg": turned()}
    paths = written(tmp_path, files)

    async def scenario(site):
        expected = (await site.stub.Classify(request(3))).results[0].scores
        async with opened(url_of(site)) as (page, complaints):
            await page.locator(".verdict").wait_for()
            await drop(page, *paths)
            await page.wait_for_selector(ANSWERED)
            said = await page.locator("#progress").text_content()
            assert said == "29 of 30 answered, 1 failed"
            cards = page.locator(".picture")
            assert await cards.count() == 30
            rows = await cards.nth(3).locator(".scores li").all_inner_texts()
            assert [row.split("\n")[0] for row in rows] == [score.label for score in expected]
            shown = float(rows[0].split("\n")[1].removesuffix(" %"))
            assert shown == pytest.approx(100 * expected[0].probability, abs=0.06)
            assert "decoding" in await cards.nth(3).locator(".foot").inner_text()
            assert "NOT_AN_IMAGE" in await cards.nth(28).inner_text()
            note = cards.nth(29).locator(".remark")
            assert "EXIF orientation 6" in await note.inner_text()
            await note.get_by_role("button").click()
            assert await cards.nth(29).locator("img.as-stored").count() == 1

            await paste(page, "pasted.jpg", jpeg(3))
            await page.wait_for_selector(ANSWERED)
            assert await page.locator("#progress").text_content() == "30 of 31 answered, 1 failed"

            # By keyboard alone: choose two, read, leave.
            await page.get_by_role("button", name="Compare pasted.jpg").press("Enter")
            await page.get_by_text("Choose another picture").wait_for()
            await page.get_by_role("button", name="Compare 3.jpg", exact=True).press("Space")
            heading = page.get_by_role("dialog").get_by_role("heading")
            assert await heading.inner_text() == f"Both: {expected[0].label}"
            assert await page.locator(".both tbody tr").count() == 5
            await page.keyboard.press("Escape")
            assert await page.get_by_role("dialog").count() == 0

            await page.get_by_role("button", name="Remove all").click()
            assert await cards.count() == 0
            assert complaints == []

    scenario_with(bundle, scenario, http=HTTP)


@in_a_browser
@pytest.mark.skipif(not AXE.exists(), reason="axe-core is missing: make js-client")
def test_axe_finds_nothing_in_light_and_dark(bundle, tmp_path):
    files = {"0.jpg": jpeg(0), "1.jpg": jpeg(1), "notes.jpg": b"", "turned.jpg": turned()}

    async def scenario(site):
        async with opened(url_of(site)) as (page, complaints):
            await page.locator(".verdict").wait_for()
            for colours in ("light", "dark"):
                await page.emulate_media(color_scheme=colours)
                assert await violations(page) == []
            await drop(page, *written(tmp_path, files))
            await page.wait_for_selector(ANSWERED)
            await page.get_by_text("All verdicts").click()
            for colours in ("light", "dark"):
                await page.emulate_media(color_scheme=colours)
                assert await violations(page) == []
                for name in ("Compare 0.jpg", "Compare 1.jpg"):
                    await page.get_by_role("button", name=name).click()
                assert await violations(page) == []
                await page.get_by_role("button", name="Close").click()
            await page.set_viewport_size({"width": 360, "height": 740})
            assert await violations(page) == []
            wide = "() => document.documentElement.scrollWidth > innerWidth"
            assert not await page.evaluate(wide)
            assert complaints == []

    scenario_with(bundle, scenario, http=HTTP)


@in_a_browser
def test_a_busy_server_is_asked_again_when_it_says(bundle):
    async def scenario(site):
        await site.stub.Classify(request(0))
        async with opened(url_of(site)) as (page, complaints):
            site.runner.seconds = 0.4
            full = asyncio.ensure_future(site.stub.Classify(request(*range(20))))
            await asyncio.sleep(0.2)
            await paste(page, "late.jpg", jpeg(1))
            await page.get_by_text("The server is busy; again in").wait_for()
            await page.wait_for_selector(ANSWERED)
            assert await page.locator("#progress").text_content() == "1 of 1 answered"
            await full
            refused = re.compile(r"^[1-9]")
            await page.locator("#refused").filter(has_text=refused).wait_for()
            assert all("429" in each for each in complaints)  # what Chromium says of such answers

    scenario_with(bundle, scenario, http=HTTP, max_queue=20)


@in_a_browser
def test_pictures_wait_for_a_token_that_is_kept_nowhere(bundle, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text(f"me {TOKEN}\n")

    async def scenario(site):
        async with opened(url_of(site)) as (page, complaints):
            field = page.get_by_label("This server answers only those who have a token")
            await field.wait_for()
            await paste(page, "0.jpg", jpeg(0))
            await field.fill("not the right token")
            await field.press("Enter")
            await page.get_by_text("The server does not know that one").wait_for()
            await field.fill(TOKEN)
            await field.press("Enter")
            await page.wait_for_selector(ANSWERED)
            await page.locator(".verdict").wait_for()
            assert await page.locator("#progress").text_content() == "1 of 1 answered"
            kept = "() => [localStorage.length, sessionStorage.length, document.cookie]"
            assert await page.evaluate(kept) == [0, 0, ""]
            assert TOKEN not in await page.content()
            assert all("401" in each for each in complaints)

    scenario_with(bundle, scenario, http=HTTP, token_file=tokens)


@in_a_browser
def test_a_folder_gives_its_pictures_and_what_is_too_large_is_not_sent(bundle, tmp_path):
    folder = tmp_path / "folder" / "inner"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(jpeg(0))
    (folder / "large.png").write_bytes(bytes(200_000))
    (folder / "readme.txt").write_text("no picture")

    async def scenario(site):
        async with opened(url_of(site)) as (page, complaints):
            await page.locator(".verdict").wait_for()
            for give in ("choose", "drop"):
                if give == "choose":
                    await page.set_input_files("#folder", folder.parent)
                else:
                    await page.get_by_role("button", name="Remove all").click()
                    await drop(page, folder.parent)
                    await page.locator(".picture").first.wait_for()
                await page.wait_for_selector(ANSWERED)
                said = await page.locator("#progress").text_content()
                assert said == "1 of 2 answered, 1 failed"
                assert await page.locator("#hint").text_content() == "1 file is no picture"
                failed = await page.locator(".message.error").inner_text()
                assert failed == "0.2 MiB; this server takes at most 0.1 MiB"
            assert complaints == []

    scenario_with(bundle, scenario, http=HTTP)
