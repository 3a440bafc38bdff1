"""Names of bundles in registries: oci://HOST[:PORT]/NAME[:TAG][@sha256:DIGEST]."""

import re
from dataclasses import dataclass
from typing import Self

from irv2.errors import UsageError

SCHEME = "oci://"
_FORM = "oci://HOST[:PORT]/NAME:TAG or oci://HOST[:PORT]/NAME@sha256:DIGEST"
# As the specification of distribution has names and tags.
_PART = "[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_PATTERN = re.compile(
    rf"oci://(?P<host>[A-Za-z0-9.\-]+(?::\d+)?|\[[0-9a-f:]+\](?::\d+)?)/(?P<name>{_PART}(?:/{_PART})*)"
    r"(?::(?P<tag>\w[\w.\-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Reference:
    """Where a bundle lies in a registry; a digest says exactly which, a tag may be moved."""

    host: str
    name: str
    tag: str | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text. Raises UsageError unless it names a tag or a digest."""
        match = _PATTERN.fullmatch(text)
        if match is None or not (match["tag"] or match["digest"]):
            raise UsageError(text, "no place in a registry", _FORM)
        return cls(match["host"], match["name"], match["tag"], match["digest"])

    @property
    def manifest(self) -> str:
        """What the registry is asked for."""
        found = self.digest or self.tag
        assert found is not None
        return found

    @property
    def url(self) -> str:
        """The registry's address of this name; without TLS on this machine alone, like docker."""
        machine = self.host.rsplit(":", 1)[0] if not self.host.endswith("]") else self.host
        is_local = machine in ("localhost", "127.0.0.1", "[::1]")
        return f"{'http' if is_local else 'https'}://{self.host}/v2/{self.name}"

    def at(self, digest: str) -> "Reference":
        """This name, by digest."""
        return Reference(self.host, self.name, None, digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{SCHEME}{self.host}/{self.name}{tag}" + (f"@{self.digest}" if self.digest else "")
