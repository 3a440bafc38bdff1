"""Deciding when to load a new bundle: on SIGHUP and, with --watch, when its files change."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from irv2.manifest import MANIFEST
from irv2.serve.access.watched_files import Stamp, stamp

WATCH_EVERY_S = 1.0


class Reloader:
    """Calls `reload` whenever wanted, never twice at a time. Belongs to one event loop."""

    def __init__(
        self,
        bundle_path: Path,
        reload: Callable[[], Awaitable[None]],
        watch_every_s: float = WATCH_EVERY_S,
    ) -> None:
        """Make it before the bundle is opened: whatever appears later counts as a new one."""
        self._reload, self._wanted = reload, asyncio.Event()
        self._bundle_path, self._watch_every_s = bundle_path, watch_every_s
        self._seen = self._look()

    def want(self) -> None:
        """Reload soon, or once more after the reload that runs."""
        self._wanted.set()

    async def run(self) -> None:
        """Reload when wanted, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            self._seen = self._look()
            await self._reload()

    async def watch(self) -> None:
        """Want a reload whenever the bundle was replaced, until cancelled."""
        # A link to the folder may be turned as well, which no file system notifies us of; hence a
        # look every second. What two looks find alike is no longer being written.
        before = self._seen
        while True:
            await asyncio.sleep(self._watch_every_s)
            found = self._look()
            if found and found == before != self._seen:
                self.want()
            before = found

    def _look(self) -> dict[Path, Stamp]:
        """The stamps of the files that lie there now; empty where they are no bundle."""
        with suppress(FileNotFoundError):  # the folder may be removed at any moment
            if (self._bundle_path / MANIFEST).is_file():
                return {path: stamp(path) for path in self._bundle_path.iterdir()}
        return {}
