"""Bearer tokens: who may ask, by name, from a file that may change while the server runs."""

import hmac
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeAlias

import grpc

from irv2.errors import UsageError
from irv2.protocol import is_token
from irv2.serve.access.watched_files import Watched

# Whose token came with the request that is being answered; for logs, which never show the token.
CALLER: ContextVar[str] = ContextVar("caller", default="")

MIN_TOKEN_CHARACTERS = 16
# Load balancers have no token, and learn nothing but whether the server takes requests.
_OPEN_TO_ALL = "/grpc.health.v1.Health/"

# As text: it is generic for type checkers alone.
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"


class Tokens(grpc.aio.ServerInterceptor):
    """Lets in calls with `authorization: Bearer TOKEN`, where a line of the file is `NAME TOKEN`.

    Refused calls get UNAUTHENTICATED before a byte of their message is read.
    """

    def __init__(self, path: Path, on_call: Callable[[str], None]) -> None:
        """`on_call` hears the name of each caller, "" for one that is refused."""
        self._tokens = Watched([path], lambda: read_tokens(path))
        self._on_call = on_call

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        details: grpc.HandlerCallDetails,
    ) -> _Handler:
        """gRPC's hook, called as each call begins."""
        if not details.method.startswith(_OPEN_TO_ALL):
            name = self._name(dict(details.invocation_metadata).get("authorization", ""))
            self._on_call(name)
            if not name:
                # As a stream, whatever the method: a unary one would be read whole first.
                return grpc.stream_stream_rpc_method_handler(_refuse)
            CALLER.set(name)
        return await continuation(details)

    def _name(self, authorization: str | bytes) -> str:
        scheme, _, given = str(authorization).partition(" ")
        found = ""
        for name, token in self._tokens.current().items():  # all of them, in constant time
            if hmac.compare_digest(token.encode(), given.strip().encode()):
                found = name
        return found if scheme.lower() == "bearer" else ""


def read_tokens(path: Path) -> dict[str, str]:
    """Token by name; empty lines and those that begin with # are skipped. Raises UsageError."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(path, f"can't be read ({error})", "lines NAME TOKEN") from error
    tokens: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, *words = line.split()
        token = " ".join(words)
        if len(token) < MIN_TOKEN_CHARACTERS or name in tokens:
            got = f"{name!r} twice" if name in tokens else "no token, or a short one"
            expected = f"NAME TOKEN, the token {MIN_TOKEN_CHARACTERS} characters or more"
            raise UsageError(f"{path}:{number}", got, expected)
        if not is_token(token):
            got = f"a token of {name!r} that no header can carry"
            raise UsageError(f"{path}:{number}", got, "one word of printable ASCII")
        tokens[name] = token
    if not tokens:
        raise UsageError(path, "holds no token, nobody could ask", "lines NAME TOKEN")
    return tokens


async def _refuse(_requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:  # noqa: ANN401 (never read)
    await context.abort(
        grpc.StatusCode.UNAUTHENTICATED, "expected the header `authorization: Bearer TOKEN`"
    )
