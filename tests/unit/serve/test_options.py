"""What the server's options allow together."""

from dataclasses import replace
from pathlib import Path

import pytest
from serving_site import OPTIONS

from irv2.errors import UsageError
from irv2.serve.access.address import Address
from irv2.serve.access.tls import TlsFiles
from irv2.serve.options import ShadowOptions


def test_streams_are_parts_of_a_cpu():
    with pytest.raises(UsageError, match="--streams: 2; expected 1 with --gpus 2"):
        replace(OPTIONS, num_gpus=2, num_streams=2)
    for num_gpus, num_streams in ((1, 2), (2, 1), (2, None)):
        replace(OPTIONS, num_gpus=num_gpus, num_streams=num_streams)


@pytest.mark.parametrize("port", ["listen", "http"])
def test_other_machines_are_served_encrypted_or_only_when_asked_for(port, tmp_path):
    everywhere = {port: Address("0.0.0.0", 8500)}
    with pytest.raises(UsageError, match="--tls-cert"):
        replace(OPTIONS, **everywhere)
    replace(OPTIONS, **everywhere, insecure=True)
    replace(OPTIONS, **everywhere, tls=TlsFiles(certificate=tmp_path, key=tmp_path))


def test_a_shadow_has_one_front_end():
    shadow = ShadowOptions(bundle=Path("second.bundle"))
    with pytest.raises(UsageError, match="--front-ends: 2; expected 1 with --shadow"):
        replace(OPTIONS, num_front_ends=2, shadow=shadow)
    replace(OPTIONS, shadow=shadow)


@pytest.mark.parametrize(("points", "least"), [(1.0, 299), (0.1, 2995), (100.0, 1)])
def test_a_shadow_is_not_promoted_by_fewer_pictures_than_can_show_its_limit(points, least):
    def promoted_after(num: int) -> ShadowOptions:
        return ShadowOptions(
            bundle=Path("second.bundle"), promote_after=num, max_disagreement_points=points
        )

    promoted_after(least)
    with pytest.raises(UsageError, match=f"--promote-after: {least - 1}; expected at least"):
        promoted_after(least - 1)
