"""Published weights, in the files in which others ship them, become checkpoints that work.

The files are made here, in the published layouts and at full size, with random weights and with
logits from references that share no code with irv2 (slim_network.py, original_network.py).
"""

import json
import os
import pickle
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from measured_import import run_import
from original_network import Tree, interpret, modules_of
from PIL import Image
from safetensors.torch import save_file
from slim_network import (
    SlimNetwork,
    keras_layers,
    write_keras_2,
    write_keras_3,
    write_keras_archive,
)
from torch7_writer import Object, Storage, Tensor, save, sequence

from convert.export import ExportOptions, export
from convert.importing.recognise import named_tensors, read_source
from convert.importing.run import classes_of, import_weights
from convert.importing.slim import read_slim
from convert.importing.source import SLIM_PREPROCESS, Source, state_dict_of
from irv2.checkpoint import Checkpoint
from irv2.client import Client
from irv2.errors import CheckpointError, InputError, UsageError
from irv2.evaluate import Reading, evaluate_model
from irv2.imagenet import class_names
from irv2.networks import build
from irv2.preprocess import Preprocess

TOLERANCE = 1e-5  # of the largest logit: float32 sums in another order, through 60 to 100 layers
State = dict[str, torch.Tensor]


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
    write_keras_archive(folder / "model.keras", layers)
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


def imported(path: Path) -> tuple[Source, State]:
    source = read_source(path)
    return source, state_dict_of(source, path)


def logits_of(source: Source, state: State, images: torch.Tensor) -> torch.Tensor:
    with torch.device("meta"):
        network = build(source.config)
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
    source, state = imported(cadene.path)
    assert source.kind == "Cadene weights"
    assert (source.config.arch, source.preprocess) == ("inception_resnet_v2_slim", SLIM_PREPROCESS)
    assert_close(logits_of(source, state, images), cadene.logits)


def test_timm_weights_give_the_references_logits_from_either_file(timm, images):
    source, state = imported(timm.path)
    assert source.kind == "timm weights"
    assert_close(logits_of(source, state, images), timm.logits)
    assert_same(imported(timm.path.with_suffix(".safetensors"))[1], state)


@pytest.mark.slow
def test_keras_weights_give_the_references_logits_from_each_kind_of_file(keras, images):
    source, state = imported(keras.path)
    assert source.kind == "Keras weights"
    assert_close(logits_of(source, state, images), keras.logits)
    for other in ("keras.weights.h5", "model.keras"):
        assert_same(imported(keras.path.with_name(other))[1], state)


def test_the_originals_weights_give_the_interpreted_trees_logits(original, original_state, images):
    source = read_source(original.path)
    assert (source.config.arch, source.preprocess) == ("inception_resnet_v2", Preprocess())
    assert_close(logits_of(source, original_state, images), original.logits)


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


def refused(read: Callable[[], object]) -> str:
    with pytest.raises(CheckpointError) as caught:
        read()
    line = str(caught.value)
    assert "\n" not in line
    return line


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
        ({"last_linear__weight": None, "last_linear__bias": None}, "2 missing: classif.bias, "),
        ({"aux__weight": torch.ones(1)}, "1 left over: aux.weight"),
        ({"conv2d_1a__conv__weight": torch.ones(32, 3, 5, 5)},
         "1 of another shape: conv2d_1a.conv.weight 32x3x5x5 instead of 32x3x3x3"),
        ({"conv2d_1a__bn__bias": torch.ones(32, dtype=torch.int64)}, "torch.int64 32 instead of"),
        ({"conv2d_1a__bn__bias": torch.full((32,), torch.nan)}, "bn.bias holds values that"),
    ],
)  # fmt: skip
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


def test_weights_inside_a_training_state_or_data_parallel_are_found(slim):
    wrapped = {f"module.{name}": tensor for name, tensor in slim[0].tensors.items()}
    tensors = named_tensors({"epoch": 3, "state_dict": wrapped}, Path("a"))
    assert read_slim(tensors, Path("a")).tensors.keys() == slim[0].tensors.keys()


def test_a_torch7_network_with_a_block_less_says_how_much_is_missing(tree, tmp_path):
    modules = {i: module for i, module in tree.fields["modules"].items() if i != 7}
    path = save(tmp_path / "a.t7", Object("nn.Sequential", {"modules": modules}))
    line = refused(lambda: imported(path))
    path.unlink()
    assert "are 35 missing: blocks_a." in line  # 7 convolutions, each with 4 tensors of batch norm
    assert "left over" not in line


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"modelFile": "model_90.t7"}, "import model_90.t7"),
        ({"learningRate": 0.045}, "without a network"),
        (Object("nn.LookupTable"), "is a nn.LookupTable, which the network does not have"),
        (Object("nn.MulConstant", {"constant_scalar": 0.2}), "constant_scalar 0.2; expected 0.1"),
        (Object("nn.SpatialMaxPooling", {"kH": 2, "kW": 2}), "has kH 2.0; expected 3"),
        (Object("cudnn.SpatialConvolution"), "does not say what it computes"),
        (Object("nn.SpatialBatchNormalization"), "has no running_mean"),
        (Object("nn.Linear"), "has no weight"),
        (Object("nn.Sequential"), "662 missing"),
    ],
)
def test_other_torch7_files_are_named(tmp_path, value, expected):
    path = save(tmp_path / "a.t7", value)
    assert expected in refused(lambda: imported(path))


def test_a_tree_that_contains_itself_is_refused(tmp_path):
    cycle = Object("nn.Sequential")
    cycle.fields["modules"] = sequence(cycle, cycle)
    path = save(tmp_path / "a.t7", cycle)
    assert "modules without end" in refused(lambda: imported(path))


@pytest.mark.parametrize("size", [9, 40, 1000, 1_000_000])
def test_truncated_files_of_each_kind_are_refused(cadene, timm, keras, original, tmp_path, size):
    paths = [cadene.path, timm.path, timm.path.with_suffix(".safetensors"), original.path,
             keras.path, keras.path.with_name("model.keras")]  # fmt: skip
    for path in paths:
        with path.open("rb") as whole:
            (tmp_path / path.name).write_bytes(whole.read(size))
        assert path.name in refused(lambda path=path: imported(tmp_path / path.name))


def test_a_keras_archive_with_an_overwritten_byte_is_refused(tmp_path):
    path = write_keras_archive(tmp_path / "a.keras", {"conv2d": {"kernel": np.ones((3, 3, 3, 32))}})
    content = bytearray(path.read_bytes())
    content[content.rindex(np.ones(1).tobytes())] ^= 1
    path.write_bytes(content)
    assert "Bad CRC" in refused(lambda: imported(path))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "an unknown format (0 bytes)"),
        (b"plain text, no weights", "an unknown format"),
        (b"4\n1\n3\nV 1\n13\nnn.Sequential\n", "Torch7 file in text format"),
        (b"PK\x03\x04 but no zip", "half a file"),
        (b"\x89HDF\r\n\x1a\n and no more", "unreadable Keras file"),
        (b"\x10\0\0\0\0\0\0\0{ no header }   ", "damaged safetensors file"),
    ],
)
def test_foreign_files_are_refused(tmp_path, content, expected):
    (tmp_path / "file").write_bytes(content)
    assert expected in refused(lambda: imported(tmp_path / "file"))


def test_weights_of_another_network_are_named(tmp_path):
    torch.save({"layer1.0.conv1.weight": torch.ones(2)}, tmp_path / "resnet.pth")
    assert "another network (layer1.0.conv1.weight" in refused(
        lambda: imported(tmp_path / "resnet.pth")
    )
    torch.save(torch.ones(2), tmp_path / "tensor.pth")
    assert "holds a Tensor" in refused(lambda: imported(tmp_path / "tensor.pth"))
    assert "is a folder" in refused(lambda: imported(tmp_path))
    assert "no such file" in refused(lambda: imported(tmp_path / "gone.pth"))


class Code:
    """What a pickle can do when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_with_code_in_it_is_refused_and_the_code_does_not_run(tmp_path, zipped):
    content = {"conv2d_1a.conv.weight": torch.ones(1), "x": Code(tmp_path / "owned")}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    line = refused(lambda: imported(tmp_path / "a.pth"))
    assert "holds Python objects or code, which are not loaded (posix.mkdir)" in line
    assert not (tmp_path / "owned").exists()
    pickle.loads(pickle.dumps(content["x"]))  # it would have
    assert (tmp_path / "owned").exists()


@pytest.fixture(scope="module")
def checkpoint_path(cadene, folder) -> Path:
    """What `irv2 import` makes of Cadene's file, in the memory that it may take."""
    done = run_import(cadene.path, "-o", folder / "imported.pt", "--json")
    summary = json.loads(done.stdout)
    assert (summary["kind"], summary["arch"]) == ("Cadene weights", "inception_resnet_v2_slim")
    assert (summary["num_classes"], summary["background_dropped"]) == (1000, True)
    assert (summary["num_matched"], summary["num_parameters"]) == (1102, 55_843_464)
    assert done.peak_bytes < 2.5 * cadene.path.stat().st_size
    return folder / "imported.pt"


def test_the_background_class_is_dropped_and_the_rest_bear_imagenets_names(
    checkpoint_path, cadene, images
):
    checkpoint = Checkpoint.load(checkpoint_path)
    assert checkpoint.classes == class_names()
    assert checkpoint.preprocess == SLIM_PREPROCESS
    assert checkpoint.recipe["imported"]["file"] == "cadene.pth"
    with torch.inference_mode():
        assert_close(checkpoint.build_model()(images), cadene.logits[:, 1:])


@pytest.mark.parametrize(
    "kernel", [np.ones((3, 3)), np.ones((3, 3, 3, 32), np.int64), np.array([b"text"])]
)
def test_keras_variables_of_another_kind_are_refused(tmp_path, kernel):
    write_keras_3(tmp_path / "a.h5", {"conv2d": {"kernel": kernel}}, named=True)
    assert "layer conv2d has the variables" in refused(lambda: imported(tmp_path / "a.h5"))


def test_keras_layers_without_names_are_refused_with_a_way_out(tmp_path):
    """As Keras 3 wrote `.weights.h5` at first: their order is not that of the layers."""
    layers = {"conv2d": {"kernel": np.ones((3, 3, 3, 32))}}
    write_keras_3(tmp_path / "a.weights.h5", layers, named=False)
    line = refused(lambda: imported(tmp_path / "a.weights.h5"))
    assert "numbered only; save the model as .keras instead" in line


def test_options_that_do_not_fit_the_file_are_refused_and_leave_no_checkpoint(
    timm, original, tmp_path
):
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\n")
    for path, options, expected in [
        (original.path, {"keep_background": True}, "--keep-background: "),
        (original.path, {"classes_path": names}, "2 lines, 2 different names; expected 1000"),
        (timm.path, {"arch": "inception_resnet_v2"},
         "holds weights of inception_resnet_v2_slim; expected inception_resnet_v2;"),
    ]:  # fmt: skip
        with pytest.raises((InputError, UsageError)) as caught:
            import_weights(path, tmp_path / "a.pt", **options)
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


@pytest.mark.slow
def test_an_imported_checkpoint_is_evaluated_exported_and_served(
    checkpoint_path, tmp_path, environment
):
    rng = np.random.default_rng(0)
    for synset in ("n01440764", "n02123045", "n07753592"):  # folders as ImageNet has them
        (tmp_path / "val" / synset).mkdir(parents=True)
        coarse = rng.integers(0, 256, (8, 10, 3)).repeat(45, 0).repeat(45, 1).astype(np.uint8)
        Image.fromarray(coarse).save(tmp_path / "val" / synset / "0.png")
    bundle = tmp_path / "out.bundle"
    assert evaluate_model(checkpoint_path, tmp_path, None, "cpu", "error", Reading())["n"] == 3
    options = ExportOptions(precisions=("fp32",), max_batch=4)
    assert not export(checkpoint_path, tmp_path, bundle, options).failed
    process = subprocess.Popen(
        ["irv2-serve", bundle, "--listen", "127.0.0.1:0", "--grace-s", "0", "--max-batch", "1"],
        env=environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        ready = process.stderr.readline()
        assert ready.startswith("ready "), ready + process.stderr.read()
        with Client(ready.split()[1]) as client:
            model = client.model()
            [result] = client.classify([tmp_path / "val" / "n01440764" / "0.png"], top_k=1)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert model.arch == "inception_resnet_v2_slim"
    assert json.loads(model.preprocess_json)["resampling"] == "pillow-bicubic"
    assert result.scores[0].label in class_names()
