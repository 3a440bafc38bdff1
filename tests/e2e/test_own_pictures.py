"""From a folder of pictures to a served answer, by the commands of README and docs as they stand.

The weights that they name come from a hub on loopback, and are a narrow network's.
"""

import os
import re
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_endpoint import hub_endpoint, repository_files
from PIL import Image
from project import ROOT
from safetensors.torch import save

from irv2.model.build import build
from irv2.network_config import SlimConfig

USUAL = "127.0.0.1:8500"
REPOSITORY = "timm/inception_resnet_v2.tf_in1k"
BLOCK = re.compile(
    rf"```bash\n(irv2 import hf:{re.escape(REPOSITORY)} -o slim.pt\n.*?)```", re.DOTALL
)


def commands(page: str) -> list[str]:
    """Those of the first block that begins with the import and fine-tunes."""
    blocks = BLOCK.findall((ROOT / page).read_text())
    return next(block.splitlines() for block in blocks if "irv2 finetune" in block)


def write_photos(folder: Path) -> None:
    """60 pictures in three classes, each of a colour."""
    rng = np.random.default_rng(0)
    for channel, label in enumerate(("bird", "cat", "dog")):
        (folder / label).mkdir(parents=True)
        for i in range(20):
            small = rng.integers(0, 120, (9, 12, 3))
            small[..., channel] += 120
            pixels = small.astype(np.uint8).repeat(10, 0).repeat(10, 1)
            Image.fromarray(pixels).save(folder / label / f"IMG_{i:02}.jpg")


def seeing_weights() -> bytes:
    """Random weights whose batch norm knows pictures, so that the features tell colours apart."""
    torch.manual_seed(0)
    network = build(SlimConfig(num_classes=3, blocks=(1, 1, 1), width=0.0625)).train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean of all that it sees
    with torch.no_grad():
        colours = torch.rand(32, 3, 1, 1) + 0.3 * torch.rand(32, 3, 75, 75)
        network(2 * colours - 1)
    return save({name: tensor.clone() for name, tensor in network.state_dict().items()})


def test_the_readmes_commands_are_those_of_the_page_about_own_pictures():
    page = commands("docs/own-pictures.md")
    assert len(page) <= 7
    assert [line for line in page if "data check" not in line] == commands("README.md")


@pytest.mark.slow
def test_seven_commands_lead_from_a_folder_of_pictures_to_a_served_answer(environment, tmp_path):
    # A free port: at the usual one some other server might answer.
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    script = [
        line.replace("irv2-serve", f"irv2-serve --listen {address}").replace(USUAL, address)
        for line in commands("docs/own-pictures.md")
    ]
    write_photos(tmp_path / "photos")
    files = {**repository_files(), "model.safetensors": seeing_weights()}
    with hub_endpoint(REPOSITORY, files) as hub:
        hub_variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hub")}
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", "\n".join(script)],
            cwd=tmp_path,
            env={**environment, **hub_variables},
            stdout=(log := (tmp_path / "log").open("w+")),
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that the server ends with it
        )
        try:
            process.wait(timeout=300)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=60)
    log.seek(0)
    printed = log.read()
    log.close()
    assert process.returncode == 0, printed
    answers = re.findall(r"^photos/(\w+)/IMG_\d1\.jpg +(\w+) ", printed, re.MULTILINE)
    assert len(answers) == 6, printed
    assert all(answer == label for label, answer in answers), printed
