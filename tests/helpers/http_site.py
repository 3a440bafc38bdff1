"""Requests over HTTP to a server in the test's process."""

import asyncio
import json
import urllib.error
import urllib.request
from email.message import Message
from typing import NamedTuple

from serving_site import Site

from irv2.serve.access.address import Address

HTTP = Address("127.0.0.1", 0)


class Answer(NamedTuple):
    status: int
    headers: Message
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


async def ask(site: Site, path: str, body: bytes | None = None, **headers: str) -> Answer:
    """GET, or POST of a body; underscores in the names of headers stand for hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await asyncio.to_thread(_ask, site, path, body, named)


def _ask(site: Site, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
    url = f"http://{site.server.description['http']}{path}"
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=20)
    except urllib.error.HTTPError as error:
        response = error
    with response:
        return Answer(response.status, response.headers, response.read())
