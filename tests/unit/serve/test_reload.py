"""When a server looks for a new bundle: whatever the moment it appears, once each."""

import asyncio

import pytest

from irv2.manifest import MANIFEST
from irv2.serve.reload import Reloader

EVERY_S = 0.02


@pytest.fixture
def place(tmp_path):
    publish(tmp_path, "first")
    return tmp_path


def publish(place, content: str) -> None:
    new = place / "new"
    new.write_text(content)
    new.rename(place / MANIFEST)


class Watching:
    """A reloader at work, and what lay there at each reload."""

    def __init__(self, place) -> None:
        self.place, self.loaded, self.takes_s = place, [], 0.0
        self.reloader = Reloader(place, self._reload, EVERY_S)

    async def _reload(self) -> None:
        self.loaded.append((self.place / MANIFEST).read_text())
        await asyncio.sleep(self.takes_s)

    async def __aenter__(self):
        self.tasks = [
            asyncio.create_task(work) for work in (self.reloader.run(), self.reloader.watch())
        ]
        return self

    async def __aexit__(self, *_):
        for task in self.tasks:
            task.cancel()


def test_what_appears_while_the_server_starts_is_loaded(place):
    async def scenario():
        watching = Watching(place)
        publish(place, "second")  # the first was opened, and is warming up
        async with watching:
            await asyncio.sleep(10 * EVERY_S)
        assert watching.loaded == ["second"]

    asyncio.run(scenario())


def test_what_sighup_has_loaded_is_not_loaded_again(place):
    async def scenario():
        async with Watching(place) as watching:
            publish(place, "second")
            watching.reloader.want()
            await asyncio.sleep(10 * EVERY_S)
        assert watching.loaded == ["second"]

    asyncio.run(scenario())


def test_what_appears_during_a_reload_is_loaded_after_it(place):
    async def scenario():
        async with Watching(place) as watching:
            watching.takes_s = 5 * EVERY_S
            publish(place, "second")
            watching.reloader.want()
            await asyncio.sleep(EVERY_S / 2)
            publish(place, "third")
            await asyncio.sleep(20 * EVERY_S)
        assert watching.loaded == ["second", "third"]

    asyncio.run(scenario())


def test_what_is_copied_into_place_is_loaded_once_it_is_whole(place):
    async def scenario():
        async with Watching(place) as watching:
            publish(place, "second")  # names files that come after it
            for _ in range(20):
                with (place / "model.onnx").open("ab") as file:
                    file.write(b"part")
                await asyncio.sleep(EVERY_S / 4)
            assert watching.loaded == []
            await asyncio.sleep(10 * EVERY_S)
            assert watching.loaded == ["second"]
            (place / "model.onnx").write_bytes(b"mended")
            await asyncio.sleep(10 * EVERY_S)
        assert watching.loaded == ["second", "second"]

    asyncio.run(scenario())


def test_a_bundle_that_is_taken_away_is_no_new_one(place):
    async def scenario():
        async with Watching(place) as watching:
            (place / MANIFEST).unlink()
            await asyncio.sleep(5 * EVERY_S)
        assert watching.loaded == []

    asyncio.run(scenario())
