"""The original's settings, and the recipe that a run derives from them.

Source: the release notes of lim0606's torch-inception-resnet-v2. A `Recipe` holds every value that
changes the weights; it is stored with the run and must be the same to resume it.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from irv2.block_names import Stage
from irv2.errors import UsageError
from irv2.images.orientation import Orientation
from irv2.images.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from irv2.network_config import FULL_SIZE, ModelConfig, NetworkConfig, config_from_json

Augmentation = Literal["area-crop", "shift"]
AutoAugment = Literal["none", "trivial"]
Precision = Literal["fp32", "bf16", "fp16"]
BatchNorm = Literal["group", "held"]
Decay = Literal["all", "weights"]
ClassWeights = Literal["none", "balanced"]
Sampling = Literal["uniform", "balanced"]

MIN_AREA = 0.08  # of a random crop, as a fraction of the image: the original's
REFERENCE_BATCH = 64  # images per step in the settings' schedules
REFERENCE_STEPS_PER_EPOCH = 20_019  # for ImageNet's 1,281,167 images; the last step has 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides the weights, except the images; raises UsageError if inconsistent.

    Step counts are optimiser steps of 64 images: between two decays, of the linear warm-up from 0,
    and of the cosine to 0 that replaces the decays if it is set. `bn_group` is the number of images
    that share batch-norm statistics, `bn_momentum` the weight of a step's in the running ones.
    `max_shift` is a fraction of the image's side. `mean` and `std` are per RGB channel, for pixels
    scaled to 0..1. `residual_scale` is None for a network that has one for each grid. `init_sha256`
    is the hash of the checkpoint that the run began from.

    `trained` names the first trained stage; what lies before it is frozen. `batch_norm` is group
    (statistics of each group) or held (those of the beginning). Weight decay acts on `all`
    parameters or on `weights` alone: neither batch norm nor biases. The stem's rate is
    `backbone_lr_factor` of the classifier's, those of the stages between in equal ratios. A head
    alone is trained on the features of `feature_crops` augmentations of each image, computed once.
    The run ends after `patience` epochs without a better one; 0: never. Against imbalance, classes
    get weights in the loss, or are drawn equally often (`sampling`), `balanced`.

    `mixup` and `cutmix` are the parameter of the beta distribution of an image's share in a mixed
    one; 0: none is mixed. `erase` is the probability that a part of an image is erased.
    """

    setting: str
    epochs: int
    decay_steps: int
    gamma: float
    arch: str = ModelConfig.arch
    learning_rate: float = 0.045
    momentum: float = 0.4737
    weight_decay: float = 1e-4
    batch_size: int = 64
    bn_group: int = 32
    blocks: tuple[int, int, int] = (5, 10, 5)
    width: float = 1.0
    resize: int = 328
    image_size: int = 299
    resampling: str = "torch7-bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    orientation: Orientation = "stored"
    augmentation: Augmentation = "area-crop"
    max_shift: float = 0.0
    flip: bool = True
    seed: int = 0
    precision: Precision = "fp32"
    deterministic: bool = False
    residual_scale: float | None = 0.1
    dropout: float = 0.2
    bn_momentum: float = ModelConfig.bn_momentum
    label_smoothing: float = 0.0
    warmup_steps: int = 0
    cosine_steps: int = 0
    ema_decay: float = 0.0
    init_sha256: str = ""
    trained: Stage = "all"
    batch_norm: BatchNorm = "group"
    decay: Decay = "all"
    backbone_lr_factor: float = 1.0
    feature_crops: int = 0
    patience: int = 0
    min_area: float = MIN_AREA
    auto_augment: AutoAugment = "none"
    mixup: float = 0.0
    cutmix: float = 0.0
    erase: float = 0.0
    class_weights: ClassWeights = "none"
    sampling: Sampling = "uniform"

    def __post_init__(self) -> None:
        if self.image_size < 75:
            raise UsageError("--image-size", f"{self.image_size} pixels", "75 or more")
        if self.resize < self.image_size:
            raise UsageError(
                "--resize",
                f"{self.resize} pixels",
                f"{self.image_size} or more, the side of the crop",
                "change it or --image-size",
            )
        if self.batch_size % self.bn_group:
            raise UsageError(
                "--batch-size",
                f"{self.batch_size} images",
                f"a multiple of {self.bn_group}",
                "change it or --bn-group",
            )
        if (self.augmentation == "shift") != (self.max_shift > 0):
            raise UsageError(
                "--max-shift",
                f"{self.max_shift:g} with --augmentation {self.augmentation}",
                "above 0 with shift, 0 with area-crop",
            )
        if self.augmentation == "shift" and self.min_area != MIN_AREA:
            raise UsageError(
                "--min-area",
                f"{self.min_area:g} with --augmentation shift",
                "area-crop, which alone cuts areas",
                "leave it out",
            )
        if self.trained == "head" and (self.mixup or self.cutmix):
            raise UsageError(
                "--mixup" if self.mixup else "--cutmix",
                "given with --train head",
                "a stage that sees images; a head sees their features",
                "leave it out",
            )
        if (self.trained == "head") != (self.feature_crops > 0):
            raise UsageError(
                "--feature-crops",
                f"{self.feature_crops} with --train {self.trained}",
                "above 0 with head, 0 with the others",
            )
        if self.class_weights == self.sampling == "balanced":
            raise UsageError(
                "--class-weights balanced",
                "given with --sampling balanced",
                "one of the two: each alone makes classes count alike",
                "leave out one",
            )

    @property
    def bn_groups(self) -> int:
        """Number of batch-norm groups in a full batch."""
        return self.batch_size // self.bn_group

    def num_batches(self, num_images: int) -> int:
        """Count an epoch's steps, without a last batch of one image (batch norm can't take it)."""
        full, rest = divmod(num_images, self.batch_size)
        return full + (rest > 1)

    @property
    def preprocess(self) -> Preprocess:
        """The evaluation preprocessing that belongs to this recipe."""
        return Preprocess(
            resize=self.resize,
            crop=self.image_size,
            resampling=self.resampling,
            mean=self.mean,
            std=self.std,
            orientation=self.orientation,
        )

    def model_config(self, num_classes: int) -> NetworkConfig:
        """Return the configuration of the network to train."""
        fields = {
            "num_classes": num_classes,
            "blocks": self.blocks,
            "width": self.width,
            "dropout": self.dropout,
        }
        if self.arch == ModelConfig.arch:
            fields["residual_scale"] = self.residual_scale
        return config_from_json(self.arch, fields)

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of optimiser step `step`, counted from 1 over the whole run.

        As in the original (fork, train.lua, learningRateStep), step 12800 already has the lower
        rate. For other batch sizes rate and decay follow the images seen: 2 x 64 images per step
        give twice the rate and decays after half as many steps.
        """
        scale = self.batch_size / REFERENCE_BATCH
        rate = float(self.learning_rate * scale)
        if self.warmup_steps:
            rate *= min(1.0, step * scale / self.warmup_steps)
        if self.cosine_steps:
            done = min(1.0, (step - 1) * scale / self.cosine_steps)
            return rate * (1 + math.cos(math.pi * done)) / 2
        decays = step * self.batch_size // (REFERENCE_BATCH * self.decay_steps)
        return float(rate * self.gamma**decays)

    def ema_decay_at(self, step: int) -> float:
        """Return the decay of the weights' average at `step`, smaller in the first steps."""
        return min(self.ema_decay, (1 + step) / (10 + step))

    def is_over(self, rows: list[dict[str, float]]) -> bool:
        """Whether a run with these finished epochs has ended.

        The last epoch is done, the time was up, or the last `patience` epochs were no better, by
        the weights or by their average.
        """
        if not rows:
            return False
        names = ("val_top1_error", "ema_val_top1_error")
        errors = [min(row[name] for name in names if name in row) for row in rows]
        num_since_best = len(rows) - 1 - errors.index(min(errors))
        is_last = rows[-1]["epoch"] >= self.epochs or bool(rows[-1].get("out_of_time"))
        return is_last or 0 < self.patience <= num_since_best

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as in config.json and checkpoints."""
        return {name: _plain(value) for name, value in dataclasses.asdict(self).items()}

    def __str__(self) -> str:
        """List every value under the name of its option."""
        values = self.to_json().items()
        return ", ".join(f"{name} {shown(value)}" for name, value in values if value or value == 0)

    def differences(self, other: "Recipe") -> list[str]:
        """List `name own (other's)` for each value that differs."""
        mine, theirs = self.to_json(), other.to_json()
        return [
            f"{name} {shown(mine[name])} ({shown(theirs[name])})"
            for name in mine
            if mine[name] != theirs[name]
        ]


def _plain(value: Any) -> Any:  # noqa: ANN401 (any field's)
    return list(value) if isinstance(value, tuple) else value


def from_json(fields: dict[str, Any]) -> dict[str, Any]:
    """Return fields of a recipe as Recipe takes them, from those of `Recipe.to_json`."""
    return {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}


def shown(value: Any) -> str:  # noqa: ANN401 (any value of a recipe)
    """Write a recipe's value as an option takes it, `5 10 5` for a list."""
    if value is None:
        return "of its own"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


INHERITED = (  # fields of Recipe that the checkpoint of --init-from decides
    *("init_sha256", "arch", "blocks", "width", "residual_scale"),
    *("resize", "image_size", "resampling", "mean", "std", "orientation"),
)
# Values that runs of older versions lack, because they were not options yet.
RECIPE_DEFAULTS = {
    field.name: _plain(field.default)
    for field in dataclasses.fields(Recipe)
    if field.default is not dataclasses.MISSING
}
SETTINGS = {
    "1": Recipe(setting="1", epochs=90, decay_steps=12_800, gamma=0.96),
    "2": Recipe(setting="2", epochs=90, decay_steps=25_600, gamma=0.96),
    "paper": Recipe(setting="paper", epochs=300, decay_steps=80_076, gamma=0.94),
}
# Usual values of the field; docs/own-pictures.md says what has been measured. A cosine over the
# whole run takes the decays' place.
FINETUNE = Recipe(
    setting="finetune",
    epochs=30,
    decay_steps=1,
    gamma=1.0,
    learning_rate=0.02,
    momentum=0.9,
    batch_size=32,
    label_smoothing=0.1,
    orientation="exif",
    batch_norm="held",
    decay="weights",
    backbone_lr_factor=0.1,
)
FEATURE_CROPS = 4
WARMUP_PARTS = 20  # into which a cosine divides a run: the first is the warm-up
RECIPES = {**SETTINGS, "finetune": FINETUNE}
PUBLISHED = {
    "1": "setting 1 reached 24.407 / 7.407 % top-1 / top-5 error on ImageNet",
    "2": "setting 2 has no published result",
    "paper": "the paper's schedule, which the original's author estimated, has no published result",
    "finetune": "fine-tuning has no published result",
}
# What a run's result calls its best weights -> the prefix of their errors in it.
BEST = {"best": "", "best_ema": "ema_"}
SAMPLE_EPOCHS = 16
SAMPLE_WIDTH = 0.25
SAMPLE_BN_MOMENTUM = 0.1


def setting_for(setting: str, arch: str) -> Recipe:
    """Return a setting, with the blocks and batch norm that the network was published with.

    All else is the setting's for either network: TF-slim's own training (RMSProp, and so on) is
    none of the original's settings.
    """
    network = FULL_SIZE[arch]
    return dataclasses.replace(
        SETTINGS[setting],
        arch=arch,
        blocks=network.blocks,
        residual_scale=network.residual_scale if isinstance(network, ModelConfig) else None,
        bn_momentum=network.bn_momentum,
    )


def sample_recipe(
    setting: str, num_images: int, epochs: int = SAMPLE_EPOCHS, arch: str = ModelConfig.arch
) -> Recipe:
    """Adapt a setting to a small network of the same blocks on the built-in sample.

    A narrow network needs a learning rate reduced in proportion to its width: batch norm leaves the
    scale of weights free, and their initial scale shrinks with the fan-in. Momentum is 0.9: with
    the setting's 0.4737, so short a run ends at several times the error (DECISIONS.md). The number
    of decays is the setting's, up to the rounding of `decay_steps` to whole steps. TF-slim's
    statistics would need ten thousand steps to settle, so `bn_momentum` is the paper's.
    """
    full = setting_for(setting, arch)
    steps = epochs * math.ceil(num_images / full.batch_size)
    compression = steps / (full.epochs * REFERENCE_STEPS_PER_EPOCH)
    return dataclasses.replace(
        full,
        epochs=epochs,
        decay_steps=max(1, round(full.decay_steps * compression)),
        learning_rate=full.learning_rate * SAMPLE_WIDTH,
        momentum=0.9,
        blocks=(1, 2, 1),
        width=SAMPLE_WIDTH,
        bn_momentum=SAMPLE_BN_MOMENTUM,
        resize=75,
        image_size=75,
        augmentation="shift",
        max_shift=1 / 8,  # one pixel of the 8x8 scans
        flip=False,  # a mirrored digit is a different symbol
    )


def finetune_recipe(trained: Stage, on_sample: bool = False) -> Recipe:
    """Return fine-tuning's recipe for the stage to train, and for the built-in digits."""
    base = FINETUNE
    if trained == "head":
        base = dataclasses.replace(base, trained="head", feature_crops=FEATURE_CROPS)
    if on_sample:  # a mirrored digit is a different symbol
        base = dataclasses.replace(base, augmentation="shift", max_shift=1 / 8, flip=False)
    return base


def modern_recipe(base: Recipe, num_images: int) -> Recipe:
    """Add to `base` what later work introduced and the original lacks, over the same epochs.

    Label smoothing (arXiv:1512.00567), warm-up (arXiv:1706.02677), cosine (arXiv:1608.03983) and
    the average of the weights, which the paper evaluated too. Momentum is the usual 0.9.
    """
    recipe = dataclasses.replace(base, momentum=0.9, label_smoothing=0.1, ema_decay=0.9999)
    return with_cosine(recipe, num_images)


def with_cosine(base: Recipe, num_images: int) -> Recipe:
    """Replace the decays of `base` by a warm-up and one cosine over the whole run."""
    batches = base.epochs * base.num_batches(num_images)
    # Rounded up, so that the rate is above 0 to the last step.
    steps = math.ceil(batches * base.batch_size / REFERENCE_BATCH)
    return dataclasses.replace(base, warmup_steps=max(1, steps // WARMUP_PARTS), cosine_steps=steps)


def split_groups(num_images: int, num_groups: int) -> int:
    """Return how many batch-norm groups, each of at least two images, `num_images` make."""
    return 1 if num_images < 4 else min(num_groups, num_images // 2)
