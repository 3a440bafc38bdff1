"""One checkpoint and one export for all tests of the convert stage."""

from collections.abc import Iterator

import pytest
from conversions import remember_conversions
from exported import Exported
from tiny_checkpoint import make_checkpoint, write_images

from irv2.convert.export import ExportOptions, export


@pytest.fixture(scope="session", autouse=True)
def remembered() -> Iterator[None]:
    """Each network is converted once in this process."""
    with pytest.MonkeyPatch.context() as patch:
        remember_conversions(patch)
        yield


@pytest.fixture(scope="session")
def exported(remembered: None, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Not to be changed; copy `bundle` first."""
    root = tmp_path_factory.mktemp("convert")
    data = write_images(root / "data")
    checkpoint_path = root / "best.pt"
    make_checkpoint(data).save(checkpoint_path)
    report = export(checkpoint_path, data, None, ExportOptions(precisions=("fp32",), max_batch=16))
    return Exported(data, checkpoint_path, root / "best.bundle", report)
