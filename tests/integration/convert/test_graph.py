"""`irv2 graph`: what the picture says is what the ONNX file holds."""

import json
from xml.etree import ElementTree

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from tiny_bundle import write_tiny_bundle
from tiny_checkpoint import CLASSES, PREPROCESS
from torch import nn

from irv2.checkpoint import Checkpoint
from irv2.cli.main import main
from irv2.convert.inspect.graph import Branches, Layer, layers, read_blocks
from irv2.convert.onnx.float32 import write_onnx
from irv2.model import inception_resnet_v2

TITLES = [
    "Input",
    "Stem",
    "Inception-ResNet-A",
    "Reduction-A",
    "Inception-ResNet-B",
    "Reduction-B",
    "Inception-ResNet-C",
    "Classifier",
]


@pytest.fixture(scope="module")
def network():
    """Two A, three B, one C."""
    torch.manual_seed(0)
    return inception_resnet_v2(len(CLASSES), blocks=(2, 3, 1), width=0.125).eval()


@pytest.fixture(scope="module")
def onnx_path(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    checkpoint = Checkpoint(
        model=network.config,
        state_dict=network.state_dict(),
        classes=CLASSES,
        setting="2",
        epoch=1,
        preprocess=PREPROCESS,
        step=1,
    )
    write_onnx(checkpoint, "0" * 64, path)
    return path


def test_blocks_are_found_counted_and_measured(onnx_path, network):
    blocks = read_blocks(onnx_path)
    assert [block.title for block in blocks] == TITLES
    assert [block.count for block in blocks] == [1, 1, 2, 1, 3, 1, 1, 1]
    channels = [
        3,
        *[network.stem.out_channels] * 2,
        *[network.reduction_a.out_channels] * 2,
        *[network.reduction_b.out_channels] * 2,
    ]
    sides = [75, 7, 7, 3, 3, 1, 1]
    expected = [(c, s, s) for c, s in zip(channels, sides, strict=True)]
    assert [block.shape for block in blocks] == [*expected, (len(CLASSES),)]


def test_every_convolution_of_the_network_is_drawn_in_its_block(onnx_path, network):
    parts = [
        network.stem,
        network.blocks_a,
        network.reduction_a,
        network.blocks_b,
        network.reduction_b,
        network.blocks_c,
    ]
    for block, part in zip(read_blocks(onnx_path)[1:], parts, strict=False):
        drawn = [
            layer.label for layer in layers(block.series) if layer.kind == "Conv"
        ] * block.count
        convolutions = [m for m in part.modules() if isinstance(m, nn.Conv2d)]
        expected = [
            f"{m.kernel_size[0]}×{m.kernel_size[1]} conv {m.out_channels}" for m in convolutions
        ]
        assert [" ".join(label.split()[:3]) for label in drawn] == expected


def labels(series):
    """A series as nested lists of labels."""
    return [
        item.label if isinstance(item, Layer) else [labels(branch) for branch in item.series]
        for item in series
    ]


def test_branches_padding_strides_and_missing_activations_are_read_from_the_graph(onnx_path):
    blocks = {block.title: labels(block.series) for block in read_blocks(onnx_path)}
    assert blocks["Inception-ResNet-C"] == [
        [
            [],
            [
                [["1×1 conv 24"], ["1×1 conv 24", "3×1 conv 32", "1×3 conv 32"]],
                "concatenate",
                "1×1 conv 264 linear",
            ],
        ],
        "add, ReLU",
    ]
    assert blocks["Reduction-A"] == [
        [
            ["3×3 max pool /2 V"],
            ["3×3 conv 48 /2 V"],
            ["1×1 conv 32", "3×3 conv 32", "3×3 conv 48 /2 V"],
        ],
        "concatenate",
    ]
    assert blocks["Input"] == ["cast", "transpose", "subtract", "multiply"]
    assert blocks["Classifier"] == ["average pool", "linear 6"]


def draw(*arguments):
    return CliRunner().invoke(main, ["graph", *map(str, arguments)])


def test_a_bundle_is_drawn_with_its_titles_as_text(exported, tmp_path):
    done = draw(exported.bundle, "-o", tmp_path / "graph.svg", "--json")
    assert done.exit_code == 0, done.output
    assert [block["title"] for block in json.loads(done.stdout)["blocks"]] == TITLES
    texts = [element.text for element in ElementTree.parse(tmp_path / "graph.svg").iter()]
    assert set(TITLES) <= set(texts)
    assert "best.bundle/model.onnx" in texts


def test_the_picture_grows_with_the_network(onnx_path, tmp_path):
    out = tmp_path / "graph.png"
    assert draw(onnx_path, "-o", out).stdout == f"{out}\n"
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        width, height = picture.size
    assert width > height > 1000


def test_a_network_without_our_names_is_one_block(tmp_path):
    [block] = read_blocks(write_tiny_bundle(tmp_path / "tiny") / "model.onnx")
    assert block.title == "Network"
    assert not any(isinstance(item, Branches) for item in block.series)
    assert labels(block.series)[0] == "cast"
    assert labels(block.series)[-1] == "linear 10"


@pytest.mark.parametrize(
    ("content", "line"),
    [(b"\x89PNG\r\n\x1a\nnot a model", "not an ONNX model"), (b"", "not an ONNX model")],
)
def test_another_file_is_one_line(tmp_path, content, line):
    (tmp_path / "model.onnx").write_bytes(content)
    done = draw(tmp_path / "model.onnx", "-o", tmp_path / "graph.png")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert line in done.stderr
    assert not (tmp_path / "graph.png").exists()


def test_another_kind_of_picture_is_refused(onnx_path, tmp_path):
    done = draw(onnx_path, "-o", tmp_path / "graph.gif")
    assert done.exit_code == 2
    assert "expected a name that ends in .png or .svg" in done.stderr
