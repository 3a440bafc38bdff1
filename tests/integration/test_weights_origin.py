"""Where weights came from stays known: import, training, resumed training, bundle."""

import json

import pytest
import torch
from click.testing import CliRunner
from small_run import SMALL
from tiny_checkpoint import CLASSES, write_images

from irv2.cli.main import main
from irv2.model.paper import inception_resnet_v2
from irv2.system.files import file_sha256

WIDTH = 0.125  # of which an import can tell from the channels alone


def irv2(*arguments: object) -> str:
    done = CliRunner().invoke(main, [*map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """weights.pth, imported.pt from it, run/ begun with that and resumed, and its bundle."""
    root = tmp_path_factory.mktemp("origin")
    write_images(root / "data")
    (root / "data" / "train").symlink_to("val")
    torch.manual_seed(0)
    torch.save(inception_resnet_v2(6, blocks=(1, 1, 1), width=WIDTH).state_dict(), root / "own.pth")
    (root / "names").write_text("\n".join(CLASSES))
    irv2("import", root / "own.pth", "-o", root / "imported.pt", "--classes", root / "names")
    run = (
        "train",
        *SMALL,
        "--width",
        WIDTH,
        "--data",
        root / "data",
        "--out",
        root / "run",
        "--workers",
        0,
    )
    begin = ("--epochs", 1, "--init-from", root / "imported.pt")
    irv2(*run, *begin)
    (root / "run" / "metrics.jsonl").unlink()  # as if killed before the evaluation's end
    irv2(*run, *begin, "--resume")
    few = ("--precision", "fp32", "--max-batch", 2, "--accept-chance")
    irv2("export", root / "run" / "best.pt", "--data", root / "data", *few)
    return root


def test_the_bundle_of_a_fine_tuned_network_tells_every_step_back_to_the_published_file(site):
    source = json.loads((site / "run" / "best.bundle" / "bundle.json").read_text())["source"]
    assert source["checkpoint_sha256"] == file_sha256(site / "run" / "best.pt")
    assert "imported" not in source
    assert source["begun_from"] == {
        "checkpoint_sha256": file_sha256(site / "imported.pt"),
        "arch": "inception_resnet_v2",
        "setting": "imported",
        "epoch": 0,
        "imported": {
            "file": "own.pth",
            "sha256": file_sha256(site / "own.pth"),
            "kind": "irv2's own state_dict",
        },
    }


def test_inspect_shows_the_steps(site):
    shown = " ".join(irv2("inspect", site / "run" / "best.bundle").split())
    began, published = file_sha256(site / "imported.pt"), file_sha256(site / "own.pth")
    assert (
        f"begun from a checkpoint of setting imported, epoch 0, sha256 {began} "
        f"imported own.pth, irv2's own state_dict, sha256 {published} made on"
    ) in shown
