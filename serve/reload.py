"""When to look for a new bundle: on SIGHUP, and with --watch whenever its bundle.json changes."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from irv2.bundle import MANIFEST
from serve.watched import stamp

WATCH_EVERY_S = 1.0


class Reloader:
    """Calls `reload` one time after another, never twice at a time; belongs to one event loop."""

    def __init__(self, reload: Callable[[], Awaitable[None]]) -> None:
        self._reload, self._wanted = reload, asyncio.Event()

    def want(self) -> None:
        """Reload soon; asked for while one runs, it is done once more after it."""
        self._wanted.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            await self._reload()

    async def watch(self, bundle_path: Path) -> None:
        """Want a reload whenever another bundle lies there; until cancelled."""
        # A bundle appears by rename, bundle.json in it: half of one is never seen. A link to the
        # folder may be turned too, for which no file system sends word; hence a look every second.
        manifest = [bundle_path / MANIFEST]
        seen = stamp(manifest)
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            found = stamp(manifest)
            if found not in (seen, (None,)):
                seen = found
                self.want()
