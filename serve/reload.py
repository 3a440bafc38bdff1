"""When to look for a new bundle: on SIGHUP, and with --watch whenever its files change."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from irv2.manifest import MANIFEST
from irv2.serve.access.watched_files import Stamp, stamp

WATCH_EVERY_S = 1.0


class Reloader:
    """Calls `reload` one time after another, never twice at a time; belongs to one event loop."""

    def __init__(
        self,
        bundle_path: Path,
        reload: Callable[[], Awaitable[None]],
        watch_every_s: float = WATCH_EVERY_S,
    ) -> None:
        """To be made before the bundle is opened: what comes after that is another one."""
        self._reload, self._wanted = reload, asyncio.Event()
        self._bundle_path, self._watch_every_s = bundle_path, watch_every_s
        self._seen = self._look()

    def want(self) -> None:
        """Reload soon; asked for while one runs, it is done once more after it."""
        self._wanted.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            self._seen = self._look()
            await self._reload()

    async def watch(self) -> None:
        """Want a reload whenever another bundle lies there; until cancelled."""
        # A link to the folder may be turned too, for which no file system sends word; hence a look
        # every second. What two of them find alike is no longer being written.
        before = self._seen
        while True:
            await asyncio.sleep(self._watch_every_s)
            found = self._look()
            if found and found == before != self._seen:
                self.want()
            before = found

    def _look(self) -> dict[Path, Stamp]:
        """Of what lies there now; nothing where that is no bundle."""
        with suppress(FileNotFoundError):  # it may be taken away at any moment
            if (self._bundle_path / MANIFEST).is_file():
                return {path: stamp(path) for path in self._bundle_path.iterdir()}
        return {}
