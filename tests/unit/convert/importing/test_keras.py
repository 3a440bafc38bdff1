"""Keras' HDF5 files: what is not as Keras writes it ends in one line, and in no memory."""

import json
import struct
import zipfile
from pathlib import Path

import h5py
import keras_models
import ml_dtypes
import numpy as np
import pytest
import torch
from imported import imported, refused
from slim_network import write_keras_2, write_keras_3, write_keras_archive

from irv2.convert.importing.keras import CONFIG, MAX_BYTES, WEIGHTS, keras_names, read_hdf5
from irv2.convert.importing.weights import (
    SLIM_PREPROCESS,
    PublishedWeights,
    expected_state,
    state_dict_of,
)
from irv2.network_config import SlimConfig

KERNEL = np.ones((3, 3, 3, 32), np.float32)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.weights.h5"


def with_kernel(path, make) -> None:
    """A file whose only layer has the kernel that `make(group)` puts there as `0`."""
    with h5py.File(path, "w") as file:
        group = file.create_group("layers/conv2d/vars")
        group.attrs["name"] = "conv2d"
        make(group)


def test_a_plain_kernel_is_read(path):
    with_kernel(path, lambda group: group.create_dataset("0", data=KERNEL))
    assert "layers of another network (conv2d, ...)" in refused(lambda: imported(path))


@pytest.mark.parametrize("kernel", [np.ones((3, 3, 3, 32), np.int64), np.array([b"text"])])
def test_variables_that_are_no_floats_are_refused(path, kernel):
    write_keras_3(path, {"conv2d": {"kernel": kernel}}, named=True)
    assert f"/layers/conv2d/vars/0 holds {kernel.dtype}, no floats" in refused(
        lambda: imported(path)
    )


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_read(path, dtype):
    kernel = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2).astype(dtype)
    write_keras_3(path, {"conv_7b": {"kernel": kernel}}, named=True)
    found = read_hdf5(path).tensors["conv_7b/kernel"]
    assert torch.equal(found, torch.arange(24.0).reshape(2, 3, 2, 2).permute(3, 2, 0, 1))


def models_in_models(path, *, keras_2: bool) -> None:
    """A model whose first layer is the network: each format nests its layers in its own way."""
    beta, kernel = np.ones(3, np.float32), np.ones((1, 1, 2, 3), np.float32)
    with h5py.File(path, "w") as file:
        if keras_2:
            file.attrs["layer_names"] = ["network", "mine"]
            network, mine = file.create_group("network"), file.create_group("mine")
            # The variables that are trained come first, in Keras 2.
            network.attrs["weight_names"] = names = [
                *("conv_7b/kernel:0", "conv_7b_bn/beta:0"),
                *("conv_7b_bn/moving_mean:0", "conv_7b_bn/moving_variance:0"),
            ]
            mine.attrs["weight_names"] = ["model/mine/kernel:0", "model/mine/bias:0"]
            for name in names:
                network[name] = kernel if "kernel" in name else beta
            mine["model/mine/kernel:0"], mine["model/mine/bias:0"] = np.ones((3, 5)), np.ones(5)
            return
        for group, name, arrays in [
            ("layers/functional/layers/conv2d", "conv_7b", [kernel]),
            ("layers/functional/layers/batch_normalization", "conv_7b_bn", [beta] * 3),
            ("layers/dense", "mine", [np.ones((3, 5)), np.ones(5)]),
        ]:
            variables = file.create_group(f"{group}/vars")
            variables.attrs["name"] = name
            for i, array in enumerate(arrays):
                variables[str(i)] = array


@pytest.mark.parametrize("keras_2", [True, False])
def test_a_model_in_a_model_is_read_with_a_head_of_any_name(path, keras_2):
    models_in_models(path, keras_2=keras_2)
    weights = read_hdf5(path)
    assert weights.config.num_classes == 5
    assert set(weights.tensors) == {
        "conv_7b/kernel",
        *(f"conv_7b_bn/{variable}" for variable in ("beta", "moving_mean", "moving_variance")),
        *("predictions/kernel", "predictions/bias"),
    }
    assert weights.notes == ("no graph in the file: an average pool and a softmax are assumed",)


def test_the_graph_in_an_h5_file_is_read(path):
    models_in_models(path, keras_2=True)
    head = [keras_models.layer("GlobalMaxPooling2D", "pool"), keras_models.dense("mine")]
    graph = keras_models.model(keras_models.base(), *head, kind="Sequential")
    with h5py.File(path, "a") as file:
        file.attrs["model_config"] = json.dumps(graph)
    assert "layer pool (GlobalMaxPooling2D) in the head" in refused(lambda: read_hdf5(path))


@pytest.mark.parametrize("graph", ["{", "3", '{"config": {}}', '{"config": {"layers": [3]}}'])
def test_a_graph_that_is_none_is_one_line(path, graph):
    models_in_models(path, keras_2=True)
    with h5py.File(path, "a") as file:
        file.attrs["model_config"] = graph
    assert "unreadable Keras file (" in refused(lambda: read_hdf5(path))


def test_two_layers_of_one_name_are_refused(path):
    models_in_models(path, keras_2=False)
    with h5py.File(path, "a") as file:
        file["layers/dense/vars"].attrs["name"] = "conv_7b"
    assert "two layers are named conv_7b" in refused(lambda: read_hdf5(path))


def test_a_layer_of_other_variables_is_named_and_the_list_is_short(path):
    write_keras_3(path, {"conv2d": {"kernel": np.ones((3, 3))}}, named=True)
    assert "layer conv2d has variables of (3, 3); expected" in refused(lambda: imported(path))
    many = {"conv2d": {str(i): np.ones(3) for i in range(1000)}}
    line = refused(lambda: imported(write_keras_2(path, many)))
    assert "(3,), (3,) and 994 more; expected" in line


def test_layers_without_names_are_refused_with_a_way_out(path):
    """As Keras 3 wrote `.weights.h5` at first: their order is not that of the layers."""
    write_keras_3(path, {"conv2d": {"kernel": KERNEL}}, named=False)
    assert "numbered only; save the model as .keras instead" in refused(lambda: imported(path))


def test_a_few_bytes_that_claim_gigabytes_are_refused(path):
    for options in ({"chunks": (1, 1, 1, 1)}, {}):  # neither writes a value
        with_kernel(path, lambda group, o=options: group.create_dataset("0", (100,) * 4, "f4", **o))
        assert path.stat().st_size < 10_000
        line = refused(lambda: imported(path))
        expected = "is chunked, " if options else "claims more bytes than the file has"
        assert f"/layers/conv2d/vars/0 {expected}" in line


def test_one_array_under_many_names_is_not_copied_for_each(path):
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = names = [f"dense_{i}" for i in range(20)]
        for name in names:
            group = file.create_group(name)
            group.attrs["weight_names"] = ["kernel"]
            group["kernel"] = file["dense_0/kernel"] if name != "dense_0" else np.ones((100, 100))
    assert "/kernel claims more bytes than the file has" in refused(lambda: imported(path))


def external_storage(group, secret) -> None:
    group.create_dataset("0", (3, 3, 3, 32), "f4", external=[(secret, 0, h5py.h5f.UNLIMITED)])


def virtual(group, secret) -> None:
    layout = h5py.VirtualLayout(KERNEL.shape, "f4")
    layout[:] = h5py.VirtualSource(secret, "0", KERNEL.shape)
    group.create_virtual_dataset("0", layout)


def external_link(group, secret) -> None:
    group["0"] = h5py.ExternalLink(secret, "0")


@pytest.mark.parametrize(
    ("lead", "expected"),
    [
        (external_storage, "kept in other files"),
        (virtual, "kept in other files"),
        (external_link, "layers/conv2d/vars/0 leads to another file"),
    ],
)
def test_bytes_of_other_files_are_never_read(path, tmp_path, lead, expected):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["0"] = KERNEL
    with_kernel(path, lambda group: lead(group, secret))
    assert expected in refused(lambda: imported(path))


def test_a_group_in_place_of_a_variable_is_named(path):
    with_kernel(path, lambda group: group.create_group("0"))
    assert "/layers/conv2d/vars/0 is no data set" in refused(lambda: imported(path))


@pytest.mark.parametrize(("before", "after"), [(3984, 3952), (3984, 2**40), (18, 2**64 - 16)])
def test_a_damaged_heap_of_names_is_refused_before_hdf5_loops_over_it(path, before, after):
    content = bytearray(write_keras_2(path, {"conv2d": {"kernel": KERNEL}}).read_bytes())
    heap = content.index(b"GCOL")
    at = content.index(struct.pack("<Q", before), heap)
    content[at : at + 8] = struct.pack("<Q", after)
    path.write_bytes(content)
    assert f"damaged heap of strings at byte {heap}" in refused(lambda: imported(path))


def test_an_archive_with_an_overwritten_byte_is_refused(tmp_path):
    path = write_keras_archive(tmp_path / "a.keras", {"conv2d": {"kernel": KERNEL}})
    content = bytearray(path.read_bytes())
    content[content.rindex(np.ones(1, np.float32).tobytes())] ^= 1
    path.write_bytes(content)
    assert "a.keras: " in refused(lambda: imported(path))


def test_the_claimed_sizes_in_an_archive_are_checked_first(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(CONFIG, b" " * MAX_BYTES[CONFIG] + json.dumps({}).encode())
        archive.writestr(WEIGHTS, b"")
    assert "config.json of over 8 MiB" in refused(lambda: imported(tmp_path / "a.keras"))


def test_weights_without_the_classifier_are_refused_with_a_way_out():
    config = SlimConfig()
    names, ones = keras_names(config)
    shapes = {name: tensor.shape for name, tensor in expected_state(config).items()}
    weights = PublishedWeights(
        kind="Keras weights",
        config=config,
        preprocess=SLIM_PREPROCESS,
        names=names,
        ones=ones,
        tensors={
            theirs: torch.empty(shapes[ours], device="meta")
            for ours, theirs in names.items()
            if not theirs.startswith("predictions/")
        },
    )
    line = refused(lambda: state_dict_of(weights, Path("notop.h5")))
    assert "2 missing: predictions/bias, predictions/kernel; " in line
    assert line.endswith("use the file with the classifier (of Keras: include_top=True)")
