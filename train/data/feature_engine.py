"""What computes the features of a frozen network: the fastest that this machine has, if right.

Batch norm is folded into the convolutions first. On a CPU OpenVINO takes over from torch where it
is installed, there are images enough to make up for its start, and it is as close to the network
in float32 as torch is.
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from irv2.errors import EngineError
from irv2.images.crops import BATCH_SIZE
from irv2.model.build import Network
from irv2.model.fold import fold
from irv2.runners import openvino
from irv2.system.machine import num_cores

logger = logging.getLogger(__name__)

Precision: TypeAlias = Literal["fp32", "bf16"]
# Maps normalised images, float (N, 3, S, S) on the device, to float32 features (N, F) on the CPU.
Engine: TypeAlias = Callable[[Tensor], Tensor]

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
# OpenVINO starts in the time that torch takes for up to 200 images (full network, 2 cores), and is
# twice as fast then.
WORTH_OPENVINO = 500
CHECKED = 8  # of the first images
# How far an engine may be from the network in float32, as a share of the features: this, or twice
# as far as torch is in the same precision.
TOLERANCE = 1e-4
FACTOR = 2.0


class FeatureEngine:
    """Computes the features of `num_images`; what does it is chosen with the first of them.

    `network` is in evaluation mode, on the device of the images.
    """

    def __init__(self, network: Network, precision: Precision, num_images: int) -> None:
        self._network, self._precision, self._num_images = network, precision, num_images
        self._chosen: Engine | None = None

    def __call__(self, images_nchw: Tensor) -> Tensor:
        """Map normalised float (N, 3, S, S), N <= BATCH_SIZE, to float32 (N, F) on the CPU."""
        if self._chosen is None:
            self._chosen, name = self._choose(images_nchw)
            logger.info("features: in %s on %s", self._precision, name)
        return self._chosen(images_nchw)

    def _choose(self, images_nchw: Tensor) -> tuple[Engine, str]:
        device = images_nchw.device.type
        on_torch = _TorchEngine(self._network, self._precision), f"torch-{device}"
        is_worthwhile = device == "cpu" and self._num_images >= WORTH_OPENVINO
        if not (is_worthwhile and openvino.is_installed()):
            return on_torch
        try:
            found = _OpenVinoEngine(self._network, self._precision, images_nchw.shape[-1])
            require_right(found, on_torch[0], self._network, images_nchw[:CHECKED])
        except EngineError as error:
            logger.warning("features: %s; torch computes them instead, more slowly", error)
            return on_torch
        return found, openvino.BACKEND


@torch.inference_mode()
def require_right(engine: Engine, on_torch: Engine, network: Network, images_nchw: Tensor) -> None:
    """Raise EngineError if `engine` is too far from `network` in float32.

    That is further than TOLERANCE and than FACTOR times as far as torch in the same precision.
    """
    exact = network.features(images_nchw).float().cpu()
    limit = max(TOLERANCE, FACTOR * _error(on_torch(images_nchw), exact))
    error = _error(engine(images_nchw), exact)
    if not error <= limit:  # it may be NaN
        raise EngineError(
            "OpenVINO",
            f"the features of {len(images_nchw)} images are {error:.2g} of their size off",
            f"at most {limit:.2g}",
        )


def _error(features: Tensor, exact: Tensor) -> float:
    return float((features - exact).norm() / exact.norm())


class _TorchEngine:
    """The folded network in torch, its weights and activations in the precision."""

    def __init__(self, network: Network, precision: Precision) -> None:
        self._dtype = DTYPES[precision]
        self._network = fold(network).to(self._dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def __call__(self, images_nchw: Tensor) -> Tensor:
        features: Tensor = self._network.features(images_nchw.to(self._dtype))
        return features.float().cpu()


class _OpenVinoEngine:
    """The folded network in OpenVINO, traced by torch and compiled for batches of BATCH_SIZE.

    Raises EngineError if that fails.
    """

    def __init__(self, network: Network, precision: Precision, image_size: int) -> None:
        ov = openvino.import_openvino()
        shape = [BATCH_SIZE, image_size, image_size, 3]
        with (
            openvino.translated("the network", "OpenVINO can't load it"),
            _logging_kept(),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # torch's, of a tracer that OpenVINO asks for
            # OpenVINO uses the weights where they lie: this keeps them.
            self._traced = torch.jit.trace(  # type: ignore[no-untyped-call]
                _FeaturesOfNhwc(fold(network)), torch.zeros(1, *shape[1:]), check_trace=False
            )
            model = ov.convert_model(self._traced, example_input=torch.zeros(1, *shape[1:]))
            model.reshape(shape)
            compiled = openvino.the_core().compile_model(
                model, "CPU", openvino.properties(precision, num_cores(), num_streams=1)
            )
        openvino.require_precision(compiled, precision, "the network")
        self._request = compiled.create_infer_request()

    def __call__(self, images_nchw: Tensor) -> Tensor:
        images = images_nchw.permute(0, 2, 3, 1)
        missing = BATCH_SIZE - len(images)
        padded = F.pad(images, (0, 0, 0, 0, 0, 0, 0, missing)).contiguous()
        with openvino.translated("the network", "OpenVINO can't run it"):
            features = self._request.infer({0: padded.numpy()})[0]
        return torch.from_numpy(features[: len(images)].copy())


@contextmanager
def _logging_kept() -> Iterator[None]:
    """Undo what OpenVINO's conversion does to the root logger: errors alone would be logged."""
    root = logging.getLogger()
    level, filters = root.level, list(root.filters)
    try:
        yield
    finally:
        root.setLevel(level)
        root.filters[:] = filters


class _FeaturesOfNhwc(nn.Module):
    """The order in which images lie in memory, so that none is copied into another."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self._network = network

    def forward(self, images_nhwc: Tensor) -> Tensor:
        """Map normalised float (N, S, S, 3) to features (N, F)."""
        return self._network.features(images_nhwc.permute(0, 3, 1, 2))
