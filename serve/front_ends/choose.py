"""How many front ends there are."""

import os
from dataclasses import replace
from math import ceil

from irv2.errors import UsageError
from irv2.manifest import Evidence
from irv2.serve.access.address import UnixSocket
from irv2.serve.options import ServeOptions
from irv2.system.machine import num_cores

# One process answers some 1,600 one-image requests a second on any number of cores. This leaves it
# a quarter to spare (docs/serving.md).
IMAGES_PER_S = 1250
AUTO, MAX_FRONT_ENDS = 0, 64


def with_front_ends(options: ServeOptions, evidence: Evidence) -> ServeOptions:
    """Choose the number of front ends where that is left to us, by the engine's recorded speed.

    Raises UsageError where there can't be as many as were asked for.
    """
    has_memory = hasattr(os, "memfd_create")
    if options.num_front_ends > 1 and not has_memory:
        got, expected = str(options.num_front_ends), "1 on this system"
        raise UsageError("--front-ends", got, expected, "several share memory as Linux has it")
    if options.num_front_ends != AUTO:
        return options
    wanted = ceil((evidence.images_per_s or 0) / IMAGES_PER_S)
    is_alone = isinstance(options.listen, UnixSocket) or options.shadow is not None
    can_share = has_memory and not is_alone
    limits = num_cores(), MAX_FRONT_ENDS, options.connections.max_connections
    most = min(limits) if can_share else 1
    return replace(options, num_front_ends=max(1, min(wanted, most)))
