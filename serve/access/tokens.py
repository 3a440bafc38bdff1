"""Bearer tokens: who may ask, by name, from a file that may change while the server runs."""

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeAlias

import grpc

from irv2.errors import UsageError
from irv2.protocol import is_token
from irv2.serve.access.watched_files import stamp

logger = logging.getLogger(__name__)

# Whose token came with the request that is being answered; for logs, which never show the token.
CALLER: ContextVar[str] = ContextVar("caller", default="")

MIN_TOKEN_CHARACTERS = 16
EXPECTED = "expected the header `authorization: Bearer TOKEN`"  # said to those who are refused
LOOK_EVERY_S = 2.0
# Load balancers have no token, and learn nothing but whether the server takes requests.
_OPEN_TO_ALL = "/grpc.health.v1.Health/"

# As text: it is generic for type checkers alone.
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"


class Tokens(grpc.aio.ServerInterceptor):
    """Lets in calls with `authorization: Bearer TOKEN`, where a line of the file is `NAME TOKEN`.

    Refused calls get UNAUTHENTICATED before a byte of their message is read.
    """

    def __init__(self, file: "TokenFile", on_call: Callable[[str], None]) -> None:
        """`on_call` hears the name of each caller, "" for one that is refused."""
        self._file, self._on_call = file, on_call

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        details: grpc.HandlerCallDetails,
    ) -> _Handler:
        """gRPC's hook, called as each call begins."""
        if not details.method.startswith(_OPEN_TO_ALL):
            name = self._file.name_of(dict(details.invocation_metadata).get("authorization", ""))
            self._on_call(name)
            if not name:
                # As a stream, whatever the method: a unary one would be read whole first.
                return grpc.stream_stream_rpc_method_handler(_refuse)
            CALLER.set(name)
        return await continuation(details)


class TokenFile:
    """The tokens of a file that may change while the server runs, by name.

    A file without fault counts from the next call on. One that is empty, missing or has lines that
    make no sense may be half written, so the tokens stay. Where two looks of `watch` find it alike,
    it is what its owner meant: the lines that make sense count, and all other tokens are withdrawn.
    """

    def __init__(self, path: Path, look_every_s: float = LOOK_EVERY_S) -> None:
        """Raises UsageError where a line makes no sense, or there is none."""
        self._path, self._look_every_s = path, look_every_s
        self._tried = self._taken = stamp(path)
        self._tokens = read_tokens(path)

    def current(self) -> dict[str, str]:
        """The tokens that count now."""
        found = stamp(self._path)
        if found != self._tried:
            self._tried = found
            with suppress(UsageError):  # `watch` decides what it means
                self._tokens = read_tokens(self._path)
                self._taken = found
                logger.info("tokens_reloaded file=%s tokens=%d", self._path, len(self._tokens))
        return self._tokens

    def name_of(self, authorization: str | bytes) -> str:
        """The name to which the token of this header belongs; "" if there is none."""
        scheme, _, given = str(authorization).partition(" ")
        found = ""
        for name, token in self.current().items():  # all of them, in constant time
            if hmac.compare_digest(token.encode(), given.strip().encode()):
                found = name
        return found if scheme.lower() == "bearer" else ""

    async def watch(self) -> None:
        """Take in what `current` does not, until cancelled."""
        before = self._taken
        while True:
            await asyncio.sleep(self._look_every_s)
            self.current()
            found = stamp(self._path)
            if found == before != self._taken:
                self._taken = found
                self._take_what_makes_sense()
            before = found

    def _take_what_makes_sense(self) -> None:
        try:
            self._tokens, faults = _parse(self._path)
        except UsageError as error:
            self._tokens, faults = {}, [error]
        for fault in faults:
            logger.error("token_ignored error=%s", fault)
        tell = logger.info if self._tokens else logger.error  # without any, nobody is answered
        tell("tokens_reloaded file=%s tokens=%d", self._path, len(self._tokens))


def read_tokens(path: Path) -> dict[str, str]:
    """Token by name; empty lines and those that begin with # are skipped. Raises UsageError."""
    tokens, faults = _parse(path)
    if faults:
        raise faults[0]
    if not tokens:
        raise UsageError(path, "holds no token, nobody could ask", "lines NAME TOKEN")
    return tokens


def _parse(path: Path) -> tuple[dict[str, str], list[UsageError]]:
    """The tokens of the lines that make sense, by name, and what is wrong with the others.

    Faults tell the number of a line and nothing in it: what looks like a name may be a token.
    """
    try:
        # Some editors begin a file with a byte-order mark.
        lines = path.read_text("utf-8-sig", "replace").splitlines()
    except OSError as error:
        raise UsageError(path, f"can't be read ({error.strerror})", "lines NAME TOKEN") from error
    tokens: dict[str, str] = {}
    faults = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, *words = line.split()
        token = " ".join(words)
        if len(token) < MIN_TOKEN_CHARACTERS or name in tokens:
            got = "a name for the second time" if name in tokens else "no token, or a short one"
            expected = f"NAME TOKEN, the token {MIN_TOKEN_CHARACTERS} characters or more"
            faults.append(UsageError(f"{path}:{number}", got, expected))
        elif not is_token(token):
            got = "a token that no header can carry"
            faults.append(UsageError(f"{path}:{number}", got, "one word of printable ASCII"))
        else:
            tokens[name] = token
    return tokens, faults


async def _refuse(_requests: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    context.set_code(grpc.StatusCode.UNAUTHENTICATED)
    context.set_details(EXPECTED)
