"""How many front ends there are where that is left to the server."""

from dataclasses import replace
from pathlib import Path

import pytest
from serving_site import OPTIONS
from tiny_bundle import passed_parity

from irv2.errors import UsageError
from irv2.manifest import Evidence
from irv2.serve.access.address import UnixSocket
from irv2.serve.access.connection_limits import ConnectionLimits
from irv2.serve.front_ends.choose import AUTO, with_front_ends
from irv2.serve.options import ShadowOptions
from irv2.system.machine import num_cores

SOCKET = UnixSocket(Path("/run/irv2.sock"))


def recorded(images_per_s: float | None) -> Evidence:
    return Evidence(
        backend="tensorrt",
        instruction_set="",
        threads=1,
        parity=passed_parity(),
        invariance=None,
        images_per_s=images_per_s,
    )


@pytest.mark.parametrize(
    ("images_per_s", "expected"), [(None, 1), (20.0, 1), (1250.0, 1), (1251.0, 2), (1e6, 64)]
)
def test_auto_takes_one_for_each_1250_images_per_second_and_no_more_than_cores(
    images_per_s, expected
):
    options = replace(OPTIONS, num_front_ends=AUTO)
    chosen = with_front_ends(options, recorded(images_per_s)).num_front_ends
    assert chosen == min(expected, num_cores())
    socket = replace(options, listen=SOCKET)
    assert with_front_ends(socket, recorded(images_per_s)).num_front_ends == 1
    shadowed = replace(options, shadow=ShadowOptions(bundle=Path("second.bundle")))
    assert with_front_ends(shadowed, recorded(images_per_s)).num_front_ends == 1


def test_what_was_asked_for_is_taken_and_refused_where_it_cannot_be():
    assert with_front_ends(replace(OPTIONS, num_front_ends=3), recorded(None)).num_front_ends == 3
    with pytest.raises(UsageError, match="--front-ends: 2; expected 1 with --listen unix:/run"):
        replace(OPTIONS, num_front_ends=2, listen=SOCKET)
    few = ConnectionLimits(max_connections=1)
    with pytest.raises(UsageError, match="--max-connections: 1; expected at least --front-ends, 2"):
        replace(OPTIONS, num_front_ends=2, connections=few)
