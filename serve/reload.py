"""When to look for a new bundle: on SIGHUP, and with --watch whenever its bundle.json changes."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from irv2.bundle import MANIFEST
from serve.watched import stamp

WATCH_EVERY_S = 1.0


class Reloader:
    """Calls `reload` one time after another, never twice at a time; belongs to one event loop."""

    def __init__(
        self, bundle_path: Path, reload: Callable[[], Awaitable[None]],
        watch_every_s: float = WATCH_EVERY_S,
    ) -> None:  # fmt: skip
        """To be made before the bundle is opened: what comes after that is another one."""
        self._reload, self._wanted = reload, asyncio.Event()
        self._watch_every_s = watch_every_s
        # A bundle appears by rename, bundle.json in it: half of one is never seen.
        self._manifest = [bundle_path / MANIFEST]
        self._seen = stamp(self._manifest)

    def want(self) -> None:
        """Reload soon; asked for while one runs, it is done once more after it."""
        self._wanted.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            self._seen = stamp(self._manifest)
            await self._reload()

    async def watch(self) -> None:
        """Want a reload whenever another bundle lies there; until cancelled."""
        # A link to the folder may be turned too, for which no file system sends word; hence a look
        # every second.
        while True:
            await asyncio.sleep(self._watch_every_s)
            if stamp(self._manifest) not in (self._seen, (None,)):
                self.want()
