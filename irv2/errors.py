"""The errors that this project foresees, each with a one-line message and an exit status.

Irv2Error                 1   failed
├── UsageError            2   options that contradict each other or the machine
├── InputError            2   a file or folder that is not what it should be
│   ├── ImageError            an image; carries a machine-readable reason
│   ├── DataError             a data folder
│   ├── CheckpointError       a checkpoint
│   └── BundleError           a bundle
├── EngineError           1   a missing or failing engine, library or device
├── ParityError           3   the parity gate was not passed
├── DivergenceError       1   a training run that goes nowhere (train/divergence.py)
└── RequestError          1   a request the server refuses
    ├── InvalidRequest        malformed
    ├── UnknownModel          for a model that is not served
    ├── Overloaded            can't be served in time; carries when to retry
    ├── MessageTooLarge       must not be retried unchanged
    ├── Expired               past its deadline
    └── NotServing            the server is starting or stopping
"""

import copyreg
from enum import StrEnum
from typing import Any


class Irv2Error(Exception):
    """A foreseen failure: its subject, what was found there, what was expected, the way out."""

    exit_code = 1

    def __init__(self, what: object, got: str, expected: str = "", way_out: str = "") -> None:
        self.what, self.got, self.expected, self.way_out = what, got, expected, way_out
        super().__init__(what, got, expected, way_out)

    def __reduce__(self) -> tuple[Any, ...]:
        """Support pickling, since errors travel between processes: restore without __init__.

        By default, exceptions are made anew from `args`, which fails where a subclass takes others.
        """
        return copyreg.__newobj__, (type(self), *self.args), vars(self)  # type: ignore[attr-defined]

    def __str__(self) -> str:
        rest = [self.got, f"expected {self.expected}" if self.expected else "", self.way_out]
        line = f"{self.what}: " + "; ".join(part for part in rest if part)
        return " ".join(line.split())  # library messages may span lines


class UsageError(Irv2Error):
    """Options that contradict each other or can't work on this machine."""

    exit_code = 2


class InputError(Irv2Error):
    """A file or folder that is not what it should be."""

    exit_code = 2


class ImageReason(StrEnum):
    """Why an image was refused; the `reason` of google.rpc.ErrorInfo."""

    NOT_AN_IMAGE = "NOT_AN_IMAGE"
    TRUNCATED = "TRUNCATED"
    TOO_MANY_PIXELS = "TOO_MANY_PIXELS"
    TOO_MANY_SCANS = "TOO_MANY_SCANS"
    TOO_LARGE = "TOO_LARGE"
    UNSUPPORTED = "UNSUPPORTED"
    EMPTY = "EMPTY"
    BAD_PIXELS = "BAD_PIXELS"
    UNREADABLE = "UNREADABLE"  # a local file; never sent by a server
    INTERNAL = "INTERNAL"


class ImageError(InputError):
    """An image that can't or must not be decoded; `what` is "image" until a caller knows more."""

    def __init__(
        self,
        reason: ImageReason,
        got: str,
        expected: str = "",
        way_out: str = "",
        what: object = "image",
    ) -> None:
        super().__init__(what, got, expected, way_out)
        self.reason = reason

    def about(self, what: object, way_out: str = "") -> "ImageError":
        """Return this error about the image `what`; `way_out` is used if it has none yet."""
        return ImageError(self.reason, self.got, self.expected, self.way_out or way_out, what)


class DataError(InputError):
    """A data folder that can't be used."""


class CheckpointError(InputError):
    """A file that is not one of our checkpoints, or a damaged one."""


class BundleError(InputError):
    """A folder that is not a bundle, or a damaged one."""


class EngineError(Irv2Error):
    """An inference engine, its library or its device that is missing or has failed."""


class ParityError(Irv2Error):
    """Artefacts that do not classify like the checkpoint, or too few images to tell."""

    exit_code = 3


class RequestError(Irv2Error):
    """A request that the server does not answer with results."""


class InvalidRequest(RequestError):
    """A malformed request; `what` names the field."""


class UnknownModel(RequestError):
    """A request for a model, or a version of one, that the server does not have."""


class Overloaded(RequestError):
    """A request that can't be served in time; `reason` is for a server's metrics."""

    def __init__(self, what: object, got: str, retry_after_s: float, reason: str = "") -> None:
        super().__init__(what, got, way_out=f"retry in {retry_after_s:.3g} s")
        self.retry_after_s, self.reason = retry_after_s, reason


class MessageTooLarge(RequestError):
    """A message over the size limit; retrying it unchanged can't help."""


class Expired(RequestError):
    """A request whose deadline passed without an answer; `where` is for a server's metrics."""

    def __init__(self, what: object, got: str, where: str = "") -> None:
        super().__init__(what, got)
        self.where = where


class NotServing(RequestError):
    """A request to a server that is not ready yet or no longer takes requests."""
