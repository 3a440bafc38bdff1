"""fp16, bf16 and int8 of a real, small network: made, calibrated, judged, chosen, built."""

import json
import re
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from in_process import irv2
from onnx import TensorProto, numpy_helper
from PIL import Image
from tiny_checkpoint import CLASSES, PREPROCESS, make_checkpoint, write_images

from irv2.bundle import Bundle
from irv2.checkpoint import Checkpoint
from irv2.convert.candidate import ExportOptions
from irv2.convert.engine.build import build_engine, choose_flavour
from irv2.convert.engine.options import EngineOptions
from irv2.convert.export import export
from irv2.convert.onnx.calibrate import CalibrationOptions, calibrate, choose_images
from irv2.convert.onnx.half import to_half
from irv2.convert.onnx.int8 import quantize
from irv2.convert.onnx.ranges import METHODS
from irv2.convert.onnx.sensitivity import sensitive_blocks
from irv2.convert.onnx.trial import load_images
from irv2.data.dataset import find_images, open_split
from irv2.data.shard_writer import write_shards
from irv2.errors import BundleError, EngineError, UsageError
from irv2.images.preprocess import preprocess
from irv2.runners.choose import open_best
from irv2.runners.onnx import OnnxRunner
from irv2.runners.tensorrt import create, header_problems, shared_logger
from irv2.system.machine import cpu_has_bfloat16, describe_machine, instruction_set
from irv2.trust.inspection import inspect_bundle

ALL = ("fp32", "fp16", "bf16", "int8")
ONNX_FILES = [
    "model.onnx",
    "model.fp16.onnx",
    "model.bf16.onnx",
    "model.int8-cpu.onnx",
    "model.int8-trt.onnx",
]
# 48 images can't show less than 6.05 points.
LENIENT = {"tolerance_top1": 7.0, "tolerance_top5": 7.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_images(tmp_path_factory.mktemp("precision") / "data")
    other = write_images(tmp_path_factory.mktemp("other"), seed=1)
    (other / "val").rename(root / "train")
    return root


@pytest.fixture(scope="module")
def checkpoint_path(data: Path) -> Path:
    path = data.parent / "best.pt"
    make_checkpoint(data).save(path)
    return path


@pytest.fixture(scope="module")
def bundle(data: Path, checkpoint_path: Path) -> Bundle:
    options = ExportOptions(precisions=ALL, **LENIENT, max_batch=16)
    report = export(checkpoint_path, data, None, options)
    assert not report.failed, report.to_table()
    return Bundle.open(report.bundle)


def test_inspect_shows_evidence_batches_calibration_and_every_file(bundle):
    text = inspect_bundle(bundle.path).to_text()
    facts, artifacts, files = text.split("\n\n")
    method = bundle.manifest.artifacts[3].built_with["calibration_method"]
    assert f"calibration  48 images, {method}, seed 0; blocks in float32: none" in facts
    rows = [" ".join(line.split()) for line in artifacts.splitlines()[3:]]
    assert list(dict.fromkeys(row.split()[0] for row in rows)) == ONNX_FILES
    for evidence in bundle.manifest.artifacts[3].evidence:
        change = evidence.parity.top1
        counts = (
            f"int8 passed 48 {change.lost}, {change.gained} 0, 0 7, 7 1 to 16 {evidence.ran_on}"
        )
        expected = f"model.int8-cpu.onnx {counts} {evidence.images_per_s:g} onnx "
        assert any(row.startswith(expected) for row in rows)
    float32, isa = bundle.manifest.artifacts[0].evidence, instruction_set("onnxruntime-cpu")
    assert {row.kind for row in float32} == {("onnxruntime-cpu", isa), ("openvino-cpu", isa)}
    for evidence in float32:
        counts = f"fp32 passed (identical) 48 0, 0 0, 0 7, 7 1 to 16 {evidence.ran_on}"
        assert any(row.startswith(f"model.onnx {counts} ") for row in rows)
    if not cpu_has_bfloat16():
        expected = "model.bf16.onnx bf16 not verified to 16, not tried onnx "
        assert any(row.startswith(expected) for row in rows)
    names = {line.split()[0] for line in files.splitlines()[2:]}
    assert names == {path.name for path in bundle.path.iterdir()}
    assert all(line.endswith(" ok") for line in files.splitlines()[2:])


def initializers(path: Path) -> dict[str, np.ndarray]:
    return {w.name: numpy_helper.to_array(w) for w in onnx.load(path).graph.initializer}


def test_shards_give_the_files_and_answers_of_their_folder(data, checkpoint_path, bundle, tmp_path):
    write_shards(data, tmp_path / "shards", 100_000)
    options = ExportOptions(precisions=("fp32", "int8"), **LENIENT, max_batch=16)
    report = export(checkpoint_path, tmp_path / "shards", tmp_path / "sharded.bundle", options)
    of_folder = {artifact.file: artifact for artifact in bundle.manifest.artifacts}
    for artifact in Bundle.open(report.bundle).manifest.artifacts:
        other = of_folder[artifact.file]
        assert (artifact.sha256, artifact.parity) == (other.sha256, other.parity)


def test_every_precision_is_a_file_of_its_own_made_from_float32(bundle):
    artifacts = bundle.manifest.artifacts
    assert [artifact.file for artifact in artifacts] == ONNX_FILES
    fp32, *others = artifacts
    assert {artifact.built_from for artifact in others} == {fp32.sha256}
    for artifact in others:
        model = onnx.load(bundle.path / artifact.file)
        onnx.checker.check_model(model, full_check=True)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        assert (metadata["precision"], metadata["built_from"]) == (artifact.precision, fp32.sha256)
        assert json.loads(metadata["classes"]) == CLASSES
        assert metadata["preprocess_sha256"] == PREPROCESS.sha256
        assert artifact.built_with["machine"] == describe_machine()
        assert "machine" not in metadata, "the same file comes of it on another"


@pytest.mark.parametrize(
    ("file", "limit"),
    # Relative to the largest logit. Each of some twenty layers rounds fp16 to 5e-4 and int8 to
    # 2e-3 of a tensor's range.
    [("model.fp16.onnx", 5e-3), ("model.int8-cpu.onnx", 0.2), ("model.int8-trt.onnx", 0.2)],
)
def test_logits_stay_close_to_float32(bundle, data, file, limit):
    paths = sorted(data.glob("val/*/*.png"))[::3]
    images = np.stack([preprocess(path.read_bytes(), PREPROCESS) for path in paths])
    expected = OnnxRunner(bundle.path / "model.onnx").run(images)
    logits = OnnxRunner(bundle.path / file).run(images)
    assert logits.dtype == np.float32
    difference = np.abs(logits - expected).max() / np.abs(expected).max()
    assert 0 < difference < limit


@pytest.mark.parametrize(("precision", "type_"), [("fp16", "FLOAT16"), ("bf16", "BFLOAT16")])
def test_a_half_keeps_only_the_normalisation_in_float32(bundle, precision, type_):
    model = onnx.load(bundle.path / f"model.{precision}.onnx")
    half, full = TensorProto.DataType.Value(type_), TensorProto.FLOAT
    types = {w.name: w.data_type for w in model.graph.initializer}
    assert {name for name, data_type in types.items() if data_type == full} == {
        "pixel_mean",
        "pixel_scale",
    }
    assert half in types.values()
    casts = [node.attribute[0].i for node in model.graph.node if node.op_type == "Cast"]
    assert casts == [full, half, full]  # pixels, normalised pixels, logits
    assert model.opset_import[0].version == (22 if precision == "bf16" else 18)


def test_a_weight_too_large_for_fp16_is_refused_and_fits_bf16(bundle):
    model = onnx.load(bundle.path / "model.onnx")
    weight = next(w for w in model.graph.initializer if w.name.endswith("classifier.weight"))
    weight.CopyFrom(numpy_helper.from_array(np.full(weight.dims, 1e5, np.float32), weight.name))
    with pytest.raises(EngineError, match=r"classifier\.weight: 1e\+05 is beyond the range"):
        to_half(model, "fp16")
    to_half(model, "bf16")


def test_activations_that_come_near_the_end_of_fp16_are_refused(checkpoint_path, data, tmp_path):
    """Weights that fp16 holds can still compute what it can't; float32 answers as before."""
    checkpoint = Checkpoint.load(checkpoint_path)
    weights = {name: value.clone() for name, value in checkpoint.state_dict.items()}
    for name in ("stem.0.1.weight", "stem.0.1.bias"):
        weights[name] *= 3e4
    weights["stem.1.0.weight"] /= 3e4
    replace(checkpoint, state_dict=weights).save(tmp_path / "large.pt")
    options = ExportOptions(precisions=("fp16",), **LENIENT)
    with pytest.raises(EngineError, match=r"fp16: activations reach .* after stem\.0; "):
        export(tmp_path / "large.pt", data, None, options)
    assert not (tmp_path / "large.bundle").exists()


def test_int8_for_the_cpu_has_uint8_activations_and_quantised_additions(bundle):
    path = bundle.path / "model.int8-cpu.onnx"
    model = onnx.load(path)
    producers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Add", "Concat", "MaxPool"):
            assert {producers[name].op_type for name in node.input} == {"DequantizeLinear"}
    points = initializers(path)
    kinds = {str(v.dtype) for name, v in points.items() if name.endswith("zero_point")}
    assert kinds == {"uint8", "int8", "int32"}  # activations, weights, biases


def test_int8_for_tensorrt_is_symmetric_and_leaves_outputs_and_biases_alone(bundle):
    path = bundle.path / "model.int8-trt.onnx"
    model, points = onnx.load(path), initializers(path)
    zero_points = [v for name, v in points.items() if name.endswith("zero_point")]
    assert {str(point.dtype) for point in zero_points} == {"int8"}
    assert not any(point.any() for point in zero_points)
    producers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        sources = [producers[name].op_type for name in node.input if name in producers]
        if node.op_type == "Conv":
            assert sources[:2] == ["DequantizeLinear"] * 2  # images and weight; the bias is float
        if node.op_type == "Add":  # so that TensorRT fuses the convolution with the addition
            assert sorted(sources) == ["Conv", "DequantizeLinear"]


def test_calibration_is_recorded_and_never_sees_an_evaluation_image(bundle, data):
    record = bundle.manifest.artifacts[3].built_with
    assert record["calibration_method"] in METHODS
    assert record["calibration_images"] == "48"
    assert record["float32_blocks"] == "none"
    val = open_split(data, "val", CLASSES)
    images = choose_images(val, CalibrationOptions(num_images=10, seed=1))
    assert len(images) == 10
    assert images.root == data / "train"
    again = choose_images(val, CalibrationOptions(num_images=10, seed=1))
    other = choose_images(val, CalibrationOptions(num_images=10, seed=2))
    assert images.files == again.files != other.files


@pytest.mark.parametrize("sharded", [False, True])
def test_calibration_leaves_out_copies_of_evaluation_images(data, tmp_path, caplog, sharded):
    leaky = shutil.copytree(data, tmp_path / "leaky")
    shutil.copy(data / "val" / "red" / "3.png", leaky / "train" / "blue" / "photo.png")
    if sharded:
        write_shards(leaky, tmp_path / "shards", 100_000)
    root = tmp_path / "shards" if sharded else leaky
    val = open_split(root, "val", CLASSES)
    images = choose_images(val, CalibrationOptions())
    assert len(images) == 48
    assert not any(file.endswith("photo.png") for file in images.files)
    assert "1 of 49 calibration images are left out" in caplog.text


def test_calibration_takes_nothing_of_val_from_a_folder_around_or_inside_it(data, caplog):
    val = open_split(data, "val", CLASSES)
    around = choose_images(val, CalibrationOptions(folder=data))
    assert len(around) == 48
    assert all(file.startswith("train/") for file in around.files)
    assert "48 of 96 calibration images are left out" in caplog.text
    with pytest.raises(UsageError, match=r"all 8 calibration images are in .*val too") as caught:
        choose_images(val, CalibrationOptions(folder=data / "val" / "red"))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_calibration_is_made_once_per_model_preprocessing_and_images(bundle, data, caplog):
    path = bundle.path / "model.onnx"
    images = choose_images(open_split(data, "val", CLASSES), CalibrationOptions(num_images=6))
    first = calibrate(path, images, PREPROCESS, seed=0)
    caplog.set_level("INFO")
    second = calibrate(path, images, PREPROCESS, seed=0)
    assert "from " in caplog.text
    assert first.ranges == second.ranges
    np.testing.assert_array_equal(first.logits, second.logits)
    caplog.clear()
    calibrate(path, images, replace(PREPROCESS, resize=90), seed=0)
    calibrate(path, images.subset([0, 1]), PREPROCESS, seed=0)
    assert "from " not in caplog.text


def test_the_same_calibration_images_under_other_names_get_their_own_labels_and_logits(
    bundle, data, tmp_path
):
    """Names decide the order, and with it which row is which image's."""
    path, names = bundle.path / "model.onnx", ("first", "second")
    red, blue = data / "train" / "red" / "0.png", data / "train" / "blue" / "0.png"
    found = []
    for order in ((red, blue), (blue, red)):
        folder = tmp_path / order[0].parent.name
        folder.mkdir()
        for name, source in zip(names, order, strict=True):
            shutil.copy(source, folder / f"{name}.png")
        images = find_images(folder)
        images = replace(images, labels=np.array([CLASSES.index(p.parent.name) for p in order]))
        found.append(calibrate(path, images, PREPROCESS, seed=0))
    one, other = found
    assert one.labels.tolist() == other.labels[::-1].tolist() == [4, 0]
    # Both were in one batch, in either order.
    np.testing.assert_allclose(one.logits, other.logits[::-1], rtol=0, atol=1e-4)


def test_calibration_counts_only_the_images_that_could_be_read(bundle, data, tmp_path):
    folder = shutil.copytree(data / "train", tmp_path / "train")
    broken = folder / "red" / "0.png"
    broken.write_bytes(broken.read_bytes()[:100])
    for _ in range(2):  # anew, then from the cache
        calibration = calibrate(
            bundle.path / "model.onnx", find_images(folder), PREPROCESS, 0, "skip"
        )
        assert calibration.record["calibration_images"] == "47"


@pytest.mark.parametrize(
    "more", [("--tolerance-top1", 7, "--tolerance-top5", 7), ("--precision", "fp32,int8")]
)
def test_without_training_images_int8_is_refused_and_the_ways_out_are_named(
    checkpoint_path, data, tmp_path, more
):
    shutil.copytree(data / "val", tmp_path / "data" / "val")
    result = irv2(
        "export", checkpoint_path, "--data", tmp_path / "data", "--out", tmp_path / "b", *more
    )
    assert result.returncode == 2, result.stderr
    [line] = result.stderr.splitlines()
    assert line.startswith("error: int8: no folder train/ in ")
    assert line.endswith("pass --calibration DIR, or --precision fp32")
    assert not (tmp_path / "b").exists()


def test_any_folder_of_images_calibrates(checkpoint_path, data, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in data.glob("train/*/0.png"):
        shutil.copy(path, flat / f"{path.parent.name}.png")
    options = ExportOptions(
        precisions=("int8",), **LENIENT, calibration=CalibrationOptions(folder=flat)
    )
    report = export(checkpoint_path, data, tmp_path / "b", options)
    assert not report.failed
    assert report.manifest.artifacts[1].built_with["calibration_images"] == "6"


def test_too_few_images_fail_what_was_named_and_leave_out_what_was_not(
    checkpoint_path, data, tmp_path, caplog
):
    named = export(checkpoint_path, data, tmp_path / "named", ExportOptions(precisions=("int8",)))
    assert named.failed == ["model.int8-cpu.onnx", "model.int8-trt.onnx"]
    assert "int8 too few images" in named.failure
    assert not (tmp_path / "named").exists()
    default = export(checkpoint_path, data, tmp_path / "default")
    assert not default.failed
    num = default.manifest.artifacts[0].parity.n
    assert f"int8 is left out: {num} images can't pass it, even with every answer" in caplog.text
    assert "299 can" in caplog.text
    assert "calibrate" not in caplog.text  # nor was it made
    published = Bundle.open(tmp_path / "default")
    assert [artifact.file for artifact in published.manifest.artifacts] == ["model.onnx"]
    assert not list((tmp_path / "default").glob("*int8*"))


@pytest.mark.slow
def test_what_too_few_images_turn_out_to_judge_is_left_out(
    checkpoint_path, data, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(ExportOptions, "worth_making", lambda options, _: options.wanted)
    assert not export(checkpoint_path, data, tmp_path / "b").failed
    assert "model.int8-cpu.onnx is left out: int8 too few images" in caplog.text
    assert not list((tmp_path / "b").glob("*int8*"))


def test_blocks_that_int8_would_spoil_stay_float32(checkpoint_path, data, tmp_path, caplog):
    """One channel with a range a thousand times the others' leaves those a single level."""
    checkpoint = Checkpoint.load(checkpoint_path)
    weights = {name: value.clone() for name, value in checkpoint.state_dict.items()}
    weights["stem.0.1.weight"][0] *= 1000
    weights["stem.0.1.bias"][0] *= 1000
    weights["stem.1.0.weight"][:, 0] /= 1000  # float32 computes the same as before
    replace(checkpoint, state_dict=weights).save(tmp_path / "wide.pt")
    options = ExportOptions(precisions=("int8",), **LENIENT)
    caplog.set_level("INFO")
    report = export(tmp_path / "wide.pt", data, None, options)
    assert not report.failed, report.to_table()
    kept = report.manifest.artifacts[1].built_with["float32_blocks"].split(", ")
    assert set(kept) == {"stem.0", "stem.1"}
    assert "looking for the blocks at fault" in caplog.text
    model = onnx.load(report.bundle / "model.int8-cpu.onnx")
    read = {name for node in model.graph.node for name in node.input}
    assert {"model.stem.0.0.weight", "model.stem.1.0.weight"} <= read


@pytest.fixture(scope="module")
def with_outlier(checkpoint_path: Path, data: Path, tmp_path_factory) -> tuple[Path, Path]:
    """A checkpoint one channel of which answers hugely, to white alone, and data with one spot."""
    root = tmp_path_factory.mktemp("outlier")
    shutil.copytree(data, root / "data")
    path = root / "data" / "train" / "red" / "3.png"
    with Image.open(path) as image:
        image.paste((255, 255, 255), (40, 40, 46, 46))
        image.save(path)
    checkpoint = Checkpoint.load(checkpoint_path)
    weights = {name: value.clone() for name, value in checkpoint.state_dict.items()}
    weights["stem.0.0.weight"][0] = 1 / 27
    weights["stem.0.1.running_mean"][0], weights["stem.0.1.running_var"][0] = 1.5, 1
    weights["stem.0.1.weight"][0], weights["stem.0.1.bias"][0] = 1000, 0
    weights["stem.1.0.weight"][:, 0] = 0  # nothing reads it
    replace(checkpoint, state_dict=weights).save(root / "outlier.pt")
    return root / "outlier.pt", root / "data"


@pytest.fixture
def tried(monkeypatch) -> list[tuple[object, ...]]:
    """Each quantised model that the calibration images were tried with: ranges, target, blocks."""
    models: list[tuple[object, ...]] = []

    def quantize_it(model, ranges, target, in_float32=()):
        models.append((*sorted(ranges.items()), target, *in_float32))
        return quantize(model, ranges, target, in_float32)

    for module in ("choose_method", "sensitivity"):
        monkeypatch.setattr(f"irv2.convert.onnx.{module}.quantize", quantize_it)
    return models


def test_ranges_are_chosen_by_the_answers_to_the_calibration_images(with_outlier, caplog, tried):
    checkpoint_path, data = with_outlier
    caplog.set_level("INFO")
    options = ExportOptions(
        precisions=("int8",), **LENIENT, accept_chance=True, max_disagreement=20
    )
    report = export(checkpoint_path, data, None, options)
    assert not report.failed, report.to_table()
    [line] = [text for text in caplog.messages if text.startswith("int8: ranges by")]
    found = re.fullmatch(
        r"int8: ranges by (\w+); other answers than float32's on 48 calibration images: "
        r"minmax (\d+), percentile (\d+), mse (\d+|not tried)",
        line,
    )
    assert found, line
    assert int(found[2]) > int(found[3]) + 5
    for artifact in report.manifest.artifacts[1:]:
        assert artifact.built_with["calibration_method"] == found[1] != "minmax"
        assert artifact.built_with["float32_blocks"] == "none"
    assert len(tried) >= 3
    assert len(tried) == len(set(tried)), "one pass serves ranges and blocks"


def test_ranges_of_a_named_method_are_taken_as_they_are(with_outlier, tmp_path, caplog):
    checkpoint_path, data = with_outlier
    caplog.set_level("INFO")
    options = ExportOptions(
        precisions=("int8",),
        **LENIENT,
        accept_chance=True,
        calibration=CalibrationOptions(method="minmax"),
    )
    report = export(checkpoint_path, data, tmp_path / "minmax", options)
    assert report.manifest.artifacts[1].built_with["calibration_method"] == "minmax"
    assert "int8: ranges by" not in caplog.text
    assert "looking for the blocks at fault" in caplog.text


def test_blocks_that_only_tensorrts_placement_would_spoil_stay_float32(bundle, data, caplog):
    """The CPU's reads the pixels themselves, whatever range their normalised values have."""
    path = bundle.path / "model.onnx"
    model = onnx.load(path)
    images = choose_images(open_split(data, "val", CLASSES), CalibrationOptions())
    calibration = calibrate(path, images, PREPROCESS, seed=0)
    normalised = next(node.input[0] for node in model.graph.node if node.op_type == "Conv")
    absurd = replace(
        calibration, ranges_by={"minmax": calibration.ranges | {normalised: (-1e4, 1e4)}}
    )
    pixels = load_images(calibration, PREPROCESS)
    assert sensitive_blocks(model, calibration, pixels, 7.0) == {}
    assert list(sensitive_blocks(model, absurd, pixels, 7.0)) == ["stem.0"]
    assert "int8-trt: " in caplog.text


def test_a_cpu_serves_the_fastest_on_record_or_the_precision_that_is_asked_for(bundle):
    recorded = [row.images_per_s for each in bundle.artifacts for row in each.evidence]
    best = open_best(bundle.path, bundle.artifacts)
    best.runner.close()
    assert best.evidence.images_per_s == max(recorded)
    for precision in ("fp32", "fp16"):
        asked = open_best(bundle.path, bundle.artifacts, precision=precision)
        asked.runner.close()
        assert asked.artifact.precision == precision
    if not cpu_has_bfloat16():
        with pytest.raises(BundleError, match=r"model\.bf16\.onnx \(openvino-cpu\): not verified"):
            open_best(bundle.path, bundle.artifacts, precision="bf16")


needs_rtx = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
)


@needs_rtx
@pytest.mark.parametrize("file", [file for file in ONNX_FILES if file != "model.int8-cpu.onnx"])
def test_tensorrt_reads_and_builds_every_precision(bundle, tmp_path, file):
    options = EngineOptions(profiles=((1, 1, 1), (2, 4, 8)), workspace_mb=256)
    flavour = choose_flavour()
    build_engine(bundle.path / file, tmp_path / "a.plan", 8, flavour, options)
    runtime = create(flavour.trt.Runtime, shared_logger(flavour.trt))
    plan = (tmp_path / "a.plan").read_bytes()
    assert "malformed" not in header_problems(flavour.trt, runtime, plan)
    smallest = {"model.int8-trt.onnx": 200_000}.get(file, 300_000)  # the weights are in it
    assert len(plan) > smallest


@needs_rtx
def test_a_graph_with_other_shapes_is_one_line(bundle, tmp_path):
    model = onnx.load(bundle.path / "model.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 4
    onnx.save(model, tmp_path / "four.onnx")
    with pytest.raises(EngineError, match=r"four\.onnx: ") as caught:
        build_engine(tmp_path / "four.onnx", tmp_path / "a.plan", 8, choose_flavour())
    assert "\n" not in str(caught.value)


@needs_rtx
@pytest.mark.parametrize(
    ("options", "named"),
    [
        (EngineOptions(timing_cache=Path("cache")), "--timing-cache"),
        (EngineOptions(version_compatible=True), "--version-compatible"),
        (EngineOptions(hardware_compatibility="ampere+"), "--hardware-compatibility"),
    ],
)
def test_what_tensorrt_rtx_lacks_is_refused(options, named):
    with pytest.raises(UsageError, match=f"{named}: tensorrt_rtx does not support it"):
        options.require_support("tensorrt_rtx")
    options.require_support("tensorrt")


@pytest.mark.parametrize(
    ("profiles", "problem"),
    [
        (((2, 4, 8),), "none holds a batch of 1"),
        (((1, 1, 1), (3, 4, 8)), "none holds a batch of 2"),
        (((1, 9, 8),), "1 <= MIN <= OPT <= MAX"),
        (((1, 1, 4),), "they reach 4; expected 8"),
    ],
)
def test_profiles_hold_every_batch_without_a_gap(profiles, problem):
    with pytest.raises(UsageError, match=problem):
        ExportOptions(trt=True, max_batch=8, engine=EngineOptions(profiles=profiles))
    with pytest.raises(UsageError, match="no engine is built; pass --trt"):
        ExportOptions(max_batch=8, engine=EngineOptions(profiles=profiles))
