"""Which folders a report takes."""

import pytest

from irv2.errors import BundleError, DataError, InputError
from irv2.report.sources import read_sources
from irv2.system.files import file_sha256


def test_runs_and_bundles_are_told_apart(run, bundle):
    found = read_sources([bundle, run])
    assert [each.name for each in found.runs] == ["<i>run"]
    assert [each.name for each in found.bundles] == ["b.bundle"]
    assert found.runs[0].checkpoints == {"best.pt": file_sha256(run / "best.pt")}
    assert len(found.bundles[0].reference) == 6


def test_folders_of_the_same_name_are_called_by_their_paths(run):
    assert [each.name for each in read_sources([run, run]).runs] == [str(run), str(run)]


def test_a_folder_that_is_neither_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"neither a run nor a bundle: .*; expected a folder that"):
        read_sources([tmp_path])


def test_a_changed_bundle_gets_no_report(bundle):
    (bundle / "reference.npz").write_bytes(b"other answers")
    with pytest.raises(BundleError, match=r"reference\.npz"):
        read_sources([bundle])


@pytest.mark.parametrize("text", ["{", "[]", '{"recipe": 1}', "\udcff"])
def test_a_damaged_configuration_is_named(run, text):
    (run / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=r"config.json"):
        read_sources([run])
