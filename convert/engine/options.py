"""The options with which a TensorRT engine is built, and which library supports which."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, cast

import click

from irv2.cli.program import F
from irv2.errors import UsageError

if TYPE_CHECKING:
    from irv2.manifest import Format

HardwareCompatibility = Literal["none", "ampere+", "same-compute-capability"]
Profile = tuple[int, int, int]  # the smallest, the best and the largest batch
DEFAULT_WORKSPACE_MB = 4096
OPT_BATCH = 8  # the batch size that an engine is tuned for, unless a profile says otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How an engine is built; what only `tensorrt` supports is refused for `tensorrt_rtx`.

    A profile is (smallest, best, largest) batch; without any there is one, up to the bundle's
    largest batch.
    """

    profiles: tuple[Profile, ...] = ()
    workspace_mb: int = DEFAULT_WORKSPACE_MB
    timing_cache: Path | None = None
    hardware_compatibility: HardwareCompatibility = "none"
    version_compatible: bool = False

    def profiles_up_to(self, max_batch: int) -> tuple[Profile, ...]:
        """The profiles; raises UsageError unless together they hold every batch to `max_batch`."""
        if not self.profiles:
            return ((1, min(OPT_BATCH, max_batch), max_batch),)
        reached = 0
        for smallest, best, largest in sorted(self.profiles):
            if not 1 <= smallest <= best <= largest:
                got = f"{smallest}:{best}:{largest}"
                raise UsageError("--profile", got, "1 <= MIN <= OPT <= MAX")
            if smallest > reached + 1:
                raise UsageError("--profile", f"none holds a batch of {reached + 1}", "no gap")
            reached = max(reached, largest)
        if reached != max_batch:
            raise UsageError(
                "--profile",
                f"they reach {reached}",
                f"{max_batch}, the largest batch",
                f"pass --max-batch {reached} or another profile",
            )
        return self.profiles

    def require_support(self, flavour: "Format") -> None:
        """Raise UsageError if `flavour` lacks an option."""
        lacking = [
            option
            for option, is_used in (
                ("--timing-cache", self.timing_cache is not None),
                ("--hardware-compatibility", self.hardware_compatibility != "none"),
                ("--version-compatible", self.version_compatible),
            )
            if is_used and flavour == "tensorrt_rtx"
        ]
        if lacking:
            raise UsageError(
                lacking[0],
                "tensorrt_rtx does not support it",
                "tensorrt, on a machine with a GPU",
                "leave it out here",
            )

    def to_record(self, max_batch: int) -> dict[str, str]:
        """How the engine was built, for the bundle's `built_with`; no file of this machine."""
        record = {
            "profiles": ", ".join(
                ":".join(map(str, profile)) for profile in self.profiles_up_to(max_batch)
            ),
            "workspace_mb": str(self.workspace_mb),
        }
        if self.hardware_compatibility != "none":
            record["hardware_compatibility"] = self.hardware_compatibility
        if self.version_compatible:
            record["version_compatible"] = "yes"
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, str]) -> Self:
        """The options that `to_record` named; the others as by default."""
        profiles = record.get("profiles")
        return cls(
            profiles=tuple(map(read_profile, profiles.split(", "))) if profiles else (),
            workspace_mb=int(record.get("workspace_mb", DEFAULT_WORKSPACE_MB)),
            hardware_compatibility=cast(
                HardwareCompatibility, record.get("hardware_compatibility", "none")
            ),
            version_compatible="version_compatible" in record,
        )


def engine_options(command: F) -> F:
    """The options of an engine, named as the fields of EngineOptions."""
    for option in (
        click.option(
            "--version-compatible", is_flag=True,
            help="An engine that later versions run too; can be slower. Only tensorrt.",
        ),
        click.option(
            "--hardware-compatibility",
            type=click.Choice(["none", "ampere+", "same-compute-capability"]), default="none",
            help="An engine for more GPUs than this one; slower. Only tensorrt.",
        ),
        click.option(
            "--timing-cache", type=click.Path(path_type=Path), metavar="FILE",
            help="Keep what was tuned, for the next build on this GPU. Only tensorrt.",
        ),
        click.option(
            "--workspace-mb", type=click.IntRange(1), default=DEFAULT_WORKSPACE_MB, metavar="MB",
            help="Memory on the GPU that the engine may use beside weights and activations.",
        ),
        click.option(
            "--profile", "profiles", multiple=True, callback=_read_profiles,
            metavar="MIN:OPT:MAX",
            help="Batch sizes the engine is tuned for; may be repeated, without gaps from 1 to "
            "--max-batch.  [default: 1:8:MAX]", show_default=False,
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def read_profile(text: str) -> Profile:
    """MIN:OPT:MAX, three batch sizes; raises UsageError. Their order is checked later."""
    sizes = text.split(":")
    if len(sizes) != 3 or not all(size.isdecimal() for size in sizes):
        raise UsageError("--profile", text, "three batch sizes, like 1:8:64")
    return int(sizes[0]), int(sizes[1]), int(sizes[2])


def _read_profiles(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[Profile, ...]:
    return tuple(map(read_profile, values))
