"""What a served model sees is what the evaluation sees, bit for bit: every format, many sizes."""

import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from serving_site import scenario_with
from tiny_bundle import SIDE, write_tiny_bundle

from irv2.bundle import Bundle
from irv2.client.wire import result_from
from irv2.images.preprocess import Preprocess, preprocess
from irv2.images.resample import RESAMPLERS
from irv2.runners.base import Runner
from irv2.v1.classifier_pb2 import ClassifyRequest, Pixels
from irv2.v1.classifier_pb2 import Image as WireImage

SHAPES = (  # (height, width) around a crop of 75 from a resize of 82
    (75, 75), (82, 82), (82, 131), (131, 82), (83, 81), (40, 31), (1, 9), (375, 500), (333, 221),
)  # fmt: skip
ORIENTATION = Image.Exif()
ORIENTATION[0x0112] = 6
FORMATS = {  # mode, format, options
    "jpeg": ("RGB", "JPEG", {}),
    "jpeg 4:4:4": ("RGB", "JPEG", {"subsampling": 0, "quality": 98}),
    "jpeg 4:2:2": ("RGB", "JPEG", {"subsampling": 1}),
    "jpeg progressive": ("RGB", "JPEG", {"progressive": True}),
    "jpeg turned": ("RGB", "JPEG", {"exif": ORIENTATION}),
    "jpeg grey": ("L", "JPEG", {}),
    "jpeg cmyk": ("CMYK", "JPEG", {}),
    "png": ("RGB", "PNG", {}),
    "png alpha": ("RGBA", "PNG", {}),
    "png grey alpha": ("LA", "PNG", {}),
    "png palette": ("P", "PNG", {}),
    "png 16 bit": ("I;16", "PNG", {}),
    "png 1 bit": ("1", "PNG", {}),
    "webp": ("RGB", "WEBP", {}),
    "webp alpha": ("RGBA", "WEBP", {"lossless": True}),
    "gif": ("P", "GIF", {}),
    "bmp": ("RGB", "BMP", {}),
    "tiff": ("RGB", "TIFF", {"compression": "tiff_lzw"}),
    "tiff jpeg": ("RGB", "TIFF", {"compression": "jpeg"}),
    "ppm": ("RGB", "PPM", {}),
}


class Seeing(Runner):
    """An engine that keeps what it was given."""

    def __init__(self, inner: Runner) -> None:
        self.inner, self.seen = inner, Counter()

    def run(self, images):
        self.seen.update(image.tobytes() for image in images)
        return self.inner.run(images)


def photo(height: int, width: int) -> Image.Image:
    """Soft shapes with grain, partly transparent."""
    rng = np.random.default_rng((height, width))
    shapes = Image.fromarray(rng.integers(0, 256, (5, 6, 4), np.uint8), "RGBA")
    soft = np.asarray(shapes.resize((width, height), Image.Resampling.BICUBIC))
    grain = rng.integers(-20, 20, soft.shape)
    return Image.fromarray(np.clip(soft + grain, 0, 255).astype(np.uint8), "RGBA")


def encoded(image: Image.Image, mode: str, kind: str, options: dict) -> bytes:
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    file = io.BytesIO()
    (image if mode == "I;16" else image.convert(mode)).save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module", params=sorted(RESAMPLERS))
def bundle(request, tmp_path_factory) -> Bundle:
    config = Preprocess(resize=82, crop=SIDE, resampling=request.param)
    folder = tmp_path_factory.mktemp("pixels") / "tiny.bundle"
    return Bundle.open(write_tiny_bundle(folder, preprocess=config))


def pixels_given_to_the_engine(bundle: Bundle, images: list[WireImage]) -> Counter:
    """Of a server that is sent all of them in one request."""
    seen = Counter()

    async def scenario(site):
        site.runner.inner = Seeing(site.runner.inner)
        reply = await site.stub.Classify(ClassifyRequest(images=images))
        assert [result.error.message for result in reply.results if result.HasField("error")] == []
        seen.update(site.runner.inner.seen)

    limits = {"max_message_bytes": 10_000_000, "max_image_bytes": 10_000_000, "max_images": 64}
    scenario_with(bundle, scenario, **limits)
    return seen


@pytest.mark.parametrize("name", FORMATS)
def test_files_become_the_pixels_of_the_evaluation(bundle, name):
    files = [encoded(photo(*shape), *FORMATS[name]) for shape in SHAPES]
    expected = Counter(preprocess(file, bundle.preprocess).tobytes() for file in files)
    assert len(expected) == len(SHAPES), "or a mix-up could go unseen"
    seen = pixels_given_to_the_engine(bundle, [WireImage(encoded=file) for file in files])
    assert seen == expected


def test_raw_pixels_become_those_of_a_lossless_file(bundle):
    pictures = [photo(*shape).convert("RGB") for shape in SHAPES]
    files = [encoded(picture, "RGB", "PNG", {}) for picture in pictures]
    expected = Counter(preprocess(file, bundle.preprocess).tobytes() for file in files)
    images = [
        WireImage(pixels=Pixels(rgb=picture.tobytes(), height=picture.height, width=picture.width))
        for picture in pictures
    ]
    assert pixels_given_to_the_engine(bundle, images) == expected


@pytest.mark.parametrize(("kind", "told"), [("stored", 6), ("exif", 0)])
def test_an_orientation_is_applied_or_told(kind, told, tmp_path):
    config = Preprocess(resize=82, crop=SIDE, orientation=kind)
    bundle = Bundle.open(write_tiny_bundle(tmp_path / "tiny.bundle", preprocess=config))
    turned, upright = (
        encoded(photo(60, 90), "RGB", "JPEG", options) for options in ({"exif": ORIENTATION}, {})
    )
    seen, replies = Counter(), []

    async def scenario(site):
        site.runner.inner = Seeing(site.runner.inner)
        images = [WireImage(encoded=file) for file in (turned, upright)]
        replies.append(await site.stub.Classify(ClassifyRequest(images=images)))
        seen.update(site.runner.inner.seen)

    scenario_with(bundle, scenario)
    assert [result.orientation for result in replies[0].results] == [told, 0]
    assert seen == Counter(preprocess(file, config).tobytes() for file in (turned, upright))
    local = bundle.classify([turned, upright])
    assert [result.orientation for result in local] == [told, 0]
    for result, served in zip(local, replies[0].results, strict=True):
        assert result_from(served, turned, "").orientation == result.orientation
