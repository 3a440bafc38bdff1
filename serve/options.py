"""The options of a server, checked against each other."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from irv2.errors import UsageError
from irv2.measures.agreement import smallest_passing_n
from irv2.serve.access.address import Address, UnixSocket
from irv2.serve.access.connection_limits import ConnectionLimits
from irv2.serve.access.tls import TlsFiles
from irv2.v1 import classifier_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowOptions:
    """A second bundle on a share of the pictures, and when it takes over, if ever."""

    bundle: Path
    share_percent: float = 5.0
    max_disagreement_points: float = 1.0
    promote_after: int | None = None  # pictures

    def __post_init__(self) -> None:
        least = smallest_passing_n(self.max_disagreement_points)
        if self.promote_after is not None and self.promote_after < least:
            raise UsageError(
                "--promote-after",
                str(self.promote_after),
                f"at least {least} with --max-disagreement {self.max_disagreement_points:g}",
                "fewer pictures can't show so little",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """The options of `irv2-serve`; its help describes them."""

    listen: Address | UnixSocket
    http: Address | None
    insecure: bool
    precision: str | None
    backend: str | None
    num_threads: int
    num_decode_threads: int
    max_batch: int | None
    max_queue: int
    max_queue_delay_ms: float
    default_deadline_ms: int
    grace_s: float
    stop_timeout_s: float
    max_message_bytes: int
    max_images: int
    max_image_bytes: int
    max_image_pixels: int
    connections: ConnectionLimits = field(default_factory=ConnectionLimits)
    tls: TlsFiles | None = None
    token_file: Path | None = None
    watch: bool = False
    log_requests: bool = False
    num_gpus: int = 1
    num_streams: int | None = None  # by the number of cores
    num_front_ends: int = 1  # 0: by the engine's recorded speed
    choose: Literal["recorded", "measure"] = "recorded"
    require_signature: Path | None = None
    shadow: ShadowOptions | None = None
    has_page: bool = True  # on the HTTP port

    def __post_init__(self) -> None:
        if self.max_queue < self.max_images:
            raise UsageError(
                "--max-queue",
                str(self.max_queue),
                f"at least --max-images, {self.max_images}",
                "or lower --max-images: larger requests would always be refused",
            )
        if self.num_gpus > 1 and (self.num_streams or 1) > 1:
            raise UsageError(
                "--streams",
                str(self.num_streams),
                f"1 with --gpus {self.num_gpus}",
                "streams are parts of a CPU; GPUs share each batch",
            )
        if self.num_front_ends > 1 and isinstance(self.listen, UnixSocket):
            raise UsageError(
                "--front-ends",
                str(self.num_front_ends),
                f"1 with --listen {self.listen}",
                "a socket in the file system has one process; take HOST:PORT",
            )
        if self.num_front_ends > 1 and self.shadow:
            raise UsageError(
                "--front-ends",
                str(self.num_front_ends),
                "1 with --shadow",
                "several front ends keep the pictures in memory of their own",
            )
        if self.connections.max_connections < self.num_front_ends:
            raise UsageError(
                "--max-connections",
                str(self.connections.max_connections),
                f"at least --front-ends, {self.num_front_ends}",
            )
        for address in (self.listen, self.http):
            if address and not (address.is_loopback or self.tls or self.insecure):
                raise UsageError(
                    address,
                    "would accept unencrypted requests from other machines",
                    "a loopback address, or --tls-cert and --tls-key",
                    "add --insecure if you want that",
                )

    @property
    def limits(self) -> classifier_pb2.Limits:
        """The limits that GetModel tells clients."""
        return classifier_pb2.Limits(
            max_message_bytes=self.max_message_bytes,
            max_images=self.max_images,
            max_image_bytes=self.max_image_bytes,
            max_image_pixels=self.max_image_pixels,
        )
