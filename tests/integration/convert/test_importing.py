"""Published weights, in the files in which others ship them, become checkpoints that work.

The files are made here, in the published layouts and at full size, with random weights and with
logits from references that share no code with irv2 (slim_network.py, original_network.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from imported import State, imported, refused
from keras_models import published
from original_network import Tree, interpret, modules_of
from safetensors.torch import save_file
from slim_network import (
    SlimNetwork,
    keras_layers,
    write_keras_2,
    write_keras_3,
    write_keras_archive,
)
from torch7_writer import Object, Storage, Tensor, save, sequence

from irv2.convert.importing.recognise import read_weights
from irv2.convert.importing.run import classes_of, import_weights
from irv2.convert.importing.slim import read_slim
from irv2.convert.importing.weights import (
    SLIM_PREPROCESS,
    PublishedWeights,
    state_dict_of,
    without_classifier,
)
from irv2.data.imagenet import class_names
from irv2.errors import InputError, UsageError
from irv2.images.preprocess import Preprocess
from irv2.model.build import build

TOLERANCE = 1e-5  # of the largest logit: float32 sums in another order, through 60 to 100 layers


@dataclass(frozen=True)
class Published:
    """A file, and the logits of its weights for `images` as the reference computes them."""

    path: Path
    logits: torch.Tensor


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A gigabyte of files, gone with the module."""
    with TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 299, 299, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def slim(images) -> tuple[SlimNetwork, torch.Tensor]:
    """TF-slim's 1001 classes under Cadene's names."""
    network = SlimNetwork(last="last_linear", num_classes=1001)
    return network, network.logits(images)


@pytest.fixture(scope="module")
def cadene(slim, folder) -> Published:
    """As Cadene's file of 2017: before torch's zip format and before batches were counted."""
    network, logits = slim
    tensors = {n: t for n, t in network.tensors.items() if not n.endswith("num_batches_tracked")}
    torch.save(tensors, folder / "cadene.pth", _use_new_zipfile_serialization=False)
    return Published(folder / "cadene.pth", logits)


@pytest.fixture(scope="module")
def timm(slim, folder) -> Published:
    """As timm's: 1000 classes, `classif`."""
    network, logits = slim
    tensors = {
        name.replace("last_linear", "classif"): tensor[1:].clone()
        if name.startswith("last_linear")
        else tensor
        for name, tensor in network.tensors.items()
    }
    torch.save(tensors, folder / "timm.pth")
    save_file(tensors, folder / "timm.safetensors")
    return Published(folder / "timm.pth", logits[:, 1:])


@pytest.fixture(scope="module")
def keras(images, folder) -> Published:
    network = SlimNetwork(last="classif", gamma=False, seed=1)
    logits = network.logits(images)
    layers = keras_layers(network)
    write_keras_2(folder / "keras.h5", layers)
    write_keras_3(folder / "keras.weights.h5", layers, named=True)
    write_keras_archive(folder / "model.keras", layers, published())
    return Published(folder / "keras.h5", logits)


@pytest.fixture(scope="module")
def tree() -> Object:
    """The original's network as Torch7 holds it, trained on a GPU, its buffers cleared."""
    return Tree().network


@pytest.fixture(scope="module")
def original(tree, images, folder) -> Published:
    return Published(save(folder / "model_90.t7", tree), interpret(tree, images))


@pytest.fixture(scope="module")
def original_state(original) -> State:
    return imported(original.path)[1]


def logits_of(weights: PublishedWeights, state: State, images: torch.Tensor) -> torch.Tensor:
    with torch.device("meta"):
        network = build(weights.config)
    network.load_state_dict(state, assign=True)
    with torch.inference_mode():
        return network.eval()(images)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    largest = expected.abs().max()
    assert largest > 1
    assert (found - expected).abs().max() <= TOLERANCE * largest


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    different = [name for name in found if not torch.equal(found[name], expected[name])]
    assert not different


def test_cadene_weights_give_the_references_logits(cadene, images):
    weights, state = imported(cadene.path)
    assert weights.kind == "Cadene weights"
    assert (weights.config.arch, weights.preprocess) == (
        "inception_resnet_v2_slim",
        SLIM_PREPROCESS,
    )
    assert_close(logits_of(weights, state, images), cadene.logits)


def test_timm_weights_give_the_references_logits_from_either_file(timm, images):
    weights, state = imported(timm.path)
    assert weights.kind == "timm weights"
    assert_close(logits_of(weights, state, images), timm.logits)
    assert_same(imported(timm.path.with_suffix(".safetensors"))[1], state)


@pytest.mark.slow
def test_keras_weights_give_the_references_logits_from_each_kind_of_file(keras, images):
    weights, state = imported(keras.path)
    assert weights.kind == "Keras weights"
    assert_close(logits_of(weights, state, images), keras.logits)
    for other in ("keras.weights.h5", "model.keras"):
        assert_same(imported(keras.path.with_name(other))[1], state)


def test_the_originals_weights_give_the_interpreted_trees_logits(original, original_state, images):
    weights = read_weights(original.path)
    assert (weights.config.arch, weights.preprocess) == ("inception_resnet_v2", Preprocess())
    assert_close(logits_of(weights, original_state, images), original.logits)


def from_two_gpus(network: Object) -> Object:
    """In a DataParallelTable, every tensor in one storage as getParameters leaves them."""
    found = [
        (module.fields, name, value.array)
        for module in modules_of(network)
        for name, value in module.fields.items()
        if isinstance(value, Tensor) and value.array.size
    ]
    storage = Storage(np.concatenate([array.ravel() for _, _, array in found]), "Cuda")
    offset = 0
    for fields, name, array in found:
        fields[name] = Tensor(array, "Cuda", storage, offset)
        offset += array.size
    gpus = sequence(1, 2)
    fields = {"modules": sequence(network), "gpuAssignments": gpus, "dimension": 1}
    return Object("nn.DataParallelTable", fields, 3, (gpus,))


def of_2015(network: Object) -> dict:
    """In a table, never cleared; 1 / sqrt(variance + eps) kept, and biases of zeros."""
    for module in modules_of(network):
        fields = module.fields
        if module.type_name == "nn.SpatialBatchNormalization":
            variance = fields.pop("running_var").array.astype(np.float64)
            fields["running_std"] = Tensor((variance + 1e-5) ** -0.5, "Double")
            module.version = 1
        if module.type_name == "cudnn.SpatialConvolution":
            fields["output"] = Tensor(np.ones((2, 3), np.float32))
            fields["bias"] = Tensor(np.zeros(fields["nOutputPlane"], np.float32))
    return {"model": network, "epoch": 90}


@pytest.mark.parametrize("variant", [from_two_gpus, of_2015])
def test_the_original_is_found_however_torch7_saved_it(original_state, tmp_path, variant):
    path = save(tmp_path / "variant.t7", variant(Tree(kind="Float").network))
    _, state = imported(path)
    path.unlink()
    for name in state:  # to float32's last place: the variance went through its inverse root
        torch.testing.assert_close(state[name], original_state[name], rtol=1e-6, atol=1e-6)


def changed(network: SlimNetwork, **changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """The tensors with some replaced, or dropped where None; `__` stands for a point."""
    tensors = dict(network.tensors)
    for name, tensor in changes.items():
        name = name.replace("__", ".")
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    return tensors


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"conv2d_7b__bn__bias": None}, "1 missing: conv2d_7b.bn.bias"),
        (
            {"last_linear__weight": None, "last_linear__bias": None},
            "2 missing: classif.bias, classif.weight; expected exactly those of "
            "inception_resnet_v2_slim; use the file with the classifier",
        ),
        ({"aux__weight": torch.ones(1)}, "1 left over: aux.weight"),
        (
            {"conv2d_1a__conv__weight": torch.ones(32, 3, 5, 5)},
            "1 of another shape: conv2d_1a.conv.weight 32x3x5x5 instead of 32x3x3x3",
        ),
        ({"conv2d_1a__bn__bias": torch.ones(32, dtype=torch.int64)}, "torch.int64 32 instead of"),
        ({"conv2d_1a__bn__bias": torch.full((32,), torch.nan)}, "bn.bias holds values that"),
    ],
)
def test_what_is_missing_left_over_or_of_another_shape_is_listed(slim, changes, expected):
    tensors = changed(slim[0], **changes)
    path = Path("weights.pth")
    assert expected in refused(lambda: state_dict_of(read_slim(tensors, path), path))


def test_a_long_list_is_shortened(slim):
    tensors = {n: t for n, t in slim[0].tensors.items() if not n.startswith("repeat")}
    line = refused(lambda: state_dict_of(read_slim(tensors, Path("a")), Path("a")))
    assert "958 missing: repeat.0.branch0.conv.weight, " in line
    assert "and 952 more" in line
    assert "--debug lists all" in line


@pytest.mark.parametrize("prefix", ["module.", "model._orig_mod.", "timm_model."])
def test_weights_are_found_under_any_prefix_and_the_classifier_under_any_name(slim, prefix):
    wrapped = {
        f"head.{name.partition('.')[2]}" if name.startswith("last_linear") else f"{prefix}{name}": t
        for name, t in slim[0].tensors.items()
    }
    weights = read_slim(wrapped, Path("a"))
    assert (weights.config.num_classes, weights.names["classifier.weight"]) == (1001, "head.weight")
    found = state_dict_of(weights, Path("a"))
    assert_same(found, state_dict_of(read_slim(dict(slim[0].tensors), Path("a")), Path("a")))


def test_a_classifier_may_be_all_that_is_missing(slim):
    headless = {n: t for n, t in slim[0].tensors.items() if not n.startswith("last_linear")}
    weights = without_classifier(read_slim(headless, Path("a")))
    assert weights.config.num_classes == 0
    assert not [name for name in state_dict_of(weights, Path("a")) if "classifier" in name]
    less = {name: t for name, t in headless.items() if name != "conv2d_7b.bn.bias"}
    weights = without_classifier(read_slim(less, Path("a")))
    assert "3 missing: " in refused(lambda: state_dict_of(weights, Path("a")))


def test_a_torch7_network_with_a_block_less_says_how_much_is_missing(tree, tmp_path):
    modules = {i: module for i, module in tree.fields["modules"].items() if i != 7}
    path = save(tmp_path / "a.t7", Object("nn.Sequential", {"modules": modules}))
    line = refused(lambda: imported(path))
    path.unlink()
    assert "are 35 missing: blocks_a." in line  # 7 convolutions, each with 4 tensors of batch norm
    assert "left over" not in line


@pytest.mark.parametrize("move", ["within its block", "ahead of it", "away"])
def test_a_torch7_network_with_a_max_pool_elsewhere_is_refused(tree, tmp_path, move):
    """Every weight is in its place, so that only the pools can tell."""
    modules = tree.fields["modules"]
    join = modules[4].fields["modules"][2]
    pool, convolution = modules[4].fields["modules"][1].fields["modules"].values()
    branches = {
        "within its block": sequence(convolution, pool),
        "ahead of it": sequence(Object("nn.Identity"), convolution),
        "away": sequence(Object("nn.Identity"), convolution),
    }[move]
    block = [Object("nn.ConcatTable", {"modules": branches}), join]
    if move == "ahead of it":
        block.insert(0, pool)
    changed = Object("nn.Sequential", {"modules": sequence(*block)})
    path = save(tmp_path / "a.t7", Object("nn.Sequential", {"modules": modules | {4.0: changed}}))
    line = refused(lambda: imported(path))
    path.unlink()
    assert "has max pools elsewhere than the network: " in line
    assert "stem.3.branches.0" in line


@pytest.mark.parametrize("size", [9, 40, 1000, 1_000_000])
def test_truncated_files_of_each_kind_are_refused(cadene, timm, keras, original, tmp_path, size):
    paths = [
        cadene.path,
        timm.path,
        timm.path.with_suffix(".safetensors"),
        original.path,
        keras.path,
        keras.path.with_name("model.keras"),
    ]
    for path in paths:
        with path.open("rb") as whole:
            (tmp_path / path.name).write_bytes(whole.read(size))
        assert path.name in refused(lambda path=path: imported(tmp_path / path.name))


def test_options_that_do_not_fit_the_file_are_refused_and_leave_no_checkpoint(
    timm, original, tmp_path
):
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\n")
    for path, options, expected in [
        (original.path, {"keep_background": True}, "--keep-background: "),
        (original.path, {"classes_path": names}, "2 lines, 2 different names; expected 1000"),
        (
            timm.path,
            {"arch": "inception_resnet_v2"},
            "holds weights of inception_resnet_v2_slim; expected inception_resnet_v2;",
        ),
    ]:
        with pytest.raises((InputError, UsageError)) as caught:
            import_weights(str(path), tmp_path / "a.pt", **options)
        assert expected in str(caught.value)
    assert list(tmp_path.iterdir()) == [names]


def test_classes_bear_imagenets_names_or_those_of_a_file(tmp_path):
    names, path = tmp_path / "names.txt", Path("weights.pth")
    assert classes_of(1000, None, path) == class_names()
    assert classes_of(1001, None, path) == ["background", *class_names()]
    with pytest.raises(InputError, match=r"2 classes, .* pass --classes FILE, 2 lines"):
        classes_of(2, None, path)
    names.write_text("cat\nçdog\n", "utf-8")
    assert classes_of(2, names, path) == ["cat", "çdog"]
    for content in (b"cat\ncat\n", b"cat\n\n", b"cat\n\xff\n"):
        names.write_bytes(content)
        with pytest.raises(InputError, match=r"names\.txt: "):
            classes_of(2, names, path)
    names.write_text("\n".join(map(str, range(1001))))
    with pytest.raises(InputError, match=r"1001 lines, .* or pass --keep-background$"):
        classes_of(1000, names, path, background_dropped=True)
