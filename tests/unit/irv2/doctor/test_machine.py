"""What the system tells of itself: quotas, memory, ports."""

import pytest
from cgroups import V2, Written

from irv2.doctor.machine import check_cores, check_memory, check_port, check_processor
from irv2.errors import UsageError


@pytest.fixture
def group(tmp_path):
    return Written(tmp_path, "0::/\n", ("/", "cg", V2))


def test_a_quota_of_half_a_core_is_a_problem(group):
    group.write("cg/cpu.max", "50000 100000\n")
    found = check_cores(group.process)
    assert found.level == "problem"
    assert found.found == "a quota of 0.5 of a core: each answer takes 2 times as long"
    assert "limits.cpu" in found.way_out
    group.write("cg/cpu.max", "100000 100000\n")
    assert check_cores(group.process).level == "ok"


@pytest.mark.parametrize(("mib", "level"), [(300, "problem"), (1024, "note"), (2048, "ok")])
def test_the_limit_of_a_group_counts_as_the_memory(group, mib, level):
    file = group.write("cg/memory.max", f"{mib << 20}\n")
    found = check_memory(group.process)
    assert found.level == level
    assert f"allowed by {file}" in found.found


def test_the_processor_is_named_with_its_features():
    found = check_processor()
    assert found.found
    assert found.level in ("ok", "note")


def test_what_is_no_address_is_wrong_usage():
    with pytest.raises(UsageError, match=r"write 127.0.0.1:8500, without http://"):
        check_port("--listen", "http://127.0.0.1:8500")
    assert check_port("--listen", "127.0.0.1:0").level == "ok"
    for host in ("no.such.host.invalid", "a..b", "a" * 64):
        assert check_port("--listen", f"{host}:1").level == "problem"
