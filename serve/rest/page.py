"""GET /: the page that shows the answers to a visitor's own pictures (docs/page.md).

It is one file that needs no other. Its Content-Security-Policy names its script and its style by
their hashes: a browser runs nothing else, and asks nobody but this server.
"""

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from irv2.serve.rest.request import Reply

_FILE = Path(__file__).with_name("page.html")
_HEADERS = {
    "Cache-Control": "no-cache",  # a newer server may have a newer page; its ETag says so
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Page(Reply):
    """The page itself tells nothing about this server, and is open to everyone."""

    def get(self) -> None:
        """Send it."""
        body, policy = _page()
        for name, value in _HEADERS.items():
            self.set_header(name, value)
        self.set_header("Content-Security-Policy", policy)
        self.send_bytes(body, "text/html; charset=utf-8")

    head = get


@cache
def _page() -> tuple[bytes, str]:
    """The file and its policy, read when they are first asked for."""
    body = _FILE.read_bytes()
    hashes = {tag: _hash_of(tag, body) for tag in ("script", "style")}
    return body, (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; "
        "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _hash_of(tag: str, body: bytes) -> str:
    """What a policy calls the one element of this name."""
    [text] = re.findall(rb"<%b>(.*?)</%b>" % (tag.encode(), tag.encode()), body, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"
