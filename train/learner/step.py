"""One optimiser step: forward, backward, update, over micro-batches and processes.

The loss is the mean over the images of all processes, weighted by class if the recipe says so.
Batch norm sees groups of the recipe's size, whether they go through in one pass, in micro-batches
or in several processes. With one group per micro-batch or process the weights are the same bit for
bit.
"""

import dataclasses
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from irv2.checkpoint import Checkpoint
from irv2.errors import EngineError, UsageError
from irv2.model.build import Network
from irv2.network_config import SlimConfig
from irv2.runners.torch import use_full_float32
from irv2.system.stop import raise_if_stopped
from irv2.train.data.augment import apply_color
from irv2.train.data.loader import Batch
from irv2.train.learner.batch_norm import frozen_statistics, group_batch_norm
from irv2.train.learner.ema import Ema
from irv2.train.learner.memory import checkpoint_activations
from irv2.train.learner.mixing import Mix, draw_mix, partners
from irv2.train.learner.stages import Stages
from irv2.train.processes import Processes
from irv2.train.settings import Recipe, split_groups
from irv2.types import IntArray

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Computation:
    """The way a step is computed, which changes its results by rounding at most.

    `micro_batch` images go through the network at a time; None: all images of this process.
    """

    device: str = "cpu"
    micro_batch: int | None = None
    compile: bool = False
    checkpoint_activations: bool = False

    def check(self, recipe: Recipe, processes: Processes) -> None:
        """Raise UsageError if batch-norm groups would be split or options exclude each other."""
        if self.compile and self.checkpoint_activations:
            # torch.compile can't leave the running statistics unchanged in a second pass.
            raise UsageError(
                "--checkpoint-activations",
                "given with --compile",
                "one of the two",
                "leave out --compile, or pass --micro-batch to save memory",
            )
        if self.compile and self.device == "cpu" and recipe.arch == SlimConfig.arch:
            # Seen with torch 2.13: values that are not finite in the first step.
            raise UsageError(
                "--compile",
                f"given for {SlimConfig.arch} on a CPU",
                "a GPU or the paper's network: torch compiles this one wrongly",
                "leave it out; on a CPU it gains little",
            )
        if recipe.bn_groups % processes.size:
            raise UsageError(
                "--batch-size",
                f"{recipe.batch_size} images on {processes.size} processes",
                f"a multiple of {recipe.bn_group * processes.size}",
                "change it or --bn-group",
            )
        if self.micro_batch is None:
            return
        if self.micro_batch % recipe.bn_group:
            raise UsageError(
                "--micro-batch",
                f"{self.micro_batch} images",
                f"a multiple of {recipe.bn_group}",
                "change it or --bn-group",
            )
        num_groups = recipe.bn_groups // processes.size
        if num_groups % self.groups_at_once(num_groups, recipe):
            raise UsageError(
                "--micro-batch",
                f"{self.micro_batch} images of {num_groups * recipe.bn_group}",
                "a size that divides these into equal parts",
                "change it or --batch-size",
            )

    def groups_at_once(self, num_groups: int, recipe: Recipe) -> int:
        """Return how many of this process's `num_groups` batch-norm groups go through in a pass."""
        if self.micro_batch is None:
            return num_groups
        return min(num_groups, self.micro_batch // recipe.bn_group)


class Learner:
    """A network, its optimiser, and the average of its weights if the recipe has one."""

    def __init__(
        self,
        model: Network,
        recipe: Recipe,
        computation: Computation,
        processes: Processes,
        class_weights: Tensor | None = None,
    ) -> None:
        """Weigh images in the loss by their class, float32 (K,), or alike (None)."""
        self.model, self._recipe, self._processes = model, recipe, processes
        self._device = torch.device(computation.device)
        self._class_weights = None if class_weights is None else class_weights.to(self._device)
        self._num_groups = recipe.bn_groups // processes.size  # of a full batch, here
        self._groups_at_once = computation.groups_at_once(self._num_groups, recipe)
        _configure_torch(recipe)
        group_batch_norm(model, self._groups_at_once)
        model.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        # A head alone sees features, computed before by the frozen rest.
        self._on_features = recipe.trained == "head"
        if computation.checkpoint_activations and not self._on_features:
            checkpoint_activations(model)
        self._stages = Stages(model, recipe)
        network = nn.Sequential(model.dropout, model.classifier) if self._on_features else model
        self.ema = Ema(model) if recipe.ema_decay else None
        self._scaler = torch.GradScaler(self._device.type, enabled=recipe.precision == "fp16")
        # Fused SGD leaves momentum uninitialised if the scaler skips the first step.
        self._optimizer = torch.optim.SGD(
            self._stages.parameter_groups(),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            dampening=0,
            nesterov=True,
            fused=not self._scaler.is_enabled(),
        )
        self._rates = [group["rate"] for group in self._optimizer.param_groups]
        self._parallel = self._in_parallel(network) if processes.size > 1 else None
        self._forward: Any = self._parallel or network
        if computation.compile:
            self._forward = torch.compile(self._forward)

    def train(self) -> None:
        """Put the network into training mode, except for what is frozen."""
        self._stages.train()

    def _in_parallel(self, network: nn.Module) -> DistributedDataParallel:
        # Batch-norm buffers are not exchanged: only the first process's are saved, and the others
        # have no influence.
        ids = [self._device.index] if self._device.type == "cuda" else None
        return DistributedDataParallel(
            network, device_ids=ids, forward_sync_buffers=False, gradient_as_bucket_view=True
        )

    def step(self, number: int, batch: Batch, num_images: int) -> Tensor:
        """Do step `number` of the run on this process's share of a batch of `num_images`.

        Returns float64 (4,), over all processes: summed loss, images wrong in top 1 and in top 5,
        images. Raises EngineError if memory or, with `compile`, a compiler is missing.
        """
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * self._recipe.learning_rate_at(number)
        with _translated_failures():
            return self._step(number, batch, num_images)

    def _step(self, number: int, batch: Batch, num_images: int) -> Tensor:
        self._optimizer.zero_grad(set_to_none=True)
        totals = torch.zeros(4, dtype=torch.float64, device=self._device)
        batch = Batch(*(part.to(self._device, non_blocking=True) for part in batch))
        first_group = self._processes.rank * self._num_groups
        mix = draw_mix(self._recipe, number)
        with ExitStack() as later:
            for i, (part, is_last) in enumerate(self._micro_batches(batch)):
                if i == 1:  # running statistics are those of the first group
                    later.enter_context(frozen_statistics(self.model))
                self._seed_dropout(number, first_group + i * self._groups_at_once)
                with self._gradients_summed(now=is_last):
                    totals += self._accumulate(part, num_images, mix)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self.ema is not None:
            self.ema.update(self.model, self._recipe.ema_decay_at(number))
        return self._processes.sum(totals)

    def _micro_batches(self, batch: Batch) -> Iterator[tuple[Batch, bool]]:
        """Split a batch into micro-batches of whole batch-norm groups; the last is marked True."""
        num = len(batch.labels)
        groups = np.array_split(np.arange(num), split_groups(num, self._num_groups))
        starts = [int(g[0]) if len(g) else 0 for g in groups[:: self._groups_at_once]]
        for start, end in zip(starts, [*starts[1:], num], strict=True):
            yield Batch(*(part[start:end] for part in batch)), end == num

    def _accumulate(self, part: Batch, num_images: int, mix: Mix | None) -> Tensor:
        """Add the gradients of one micro-batch and return its totals, as in `step`.

        The errors of mixed images are counted against the label with the larger share.
        """
        images, labels = self._inputs(part)
        shares = [(labels, 1.0)]
        if mix is not None and len(labels):
            others = partners(len(labels), self._groups_at_once, self._device)
            images = mix.images(images, others)
            shares = [(labels, mix.own_share), (labels[others], 1 - mix.own_share)]
        precision = DTYPES[self._recipe.precision]
        with torch.autocast(self._device.type, precision, enabled=precision != torch.float32):
            logits: Tensor = self._forward(images)
        loss = self._loss(logits if precision == torch.float32 else logits.float(), shares)
        # DistributedDataParallel divides by the number of processes.
        mean = loss * (self._processes.size / num_images)
        self._scaler.scale(mean).backward()  # type: ignore[no-untyped-call]
        larger, _ = max(shares, key=itemgetter(1))
        return _count(logits.detach(), larger, loss.detach())

    def _loss(self, logits: Tensor, shares: list[tuple[Tensor, float]]) -> Tensor:
        """Sum the losses of images, whose labels may be several with a share each.

        Each is weighted by its class, smoothing included, unlike `cross_entropy(weight=...)`, whose
        smoothing weighs the other classes' terms by their own weights.
        """
        first, *others = (share * self._loss_for(logits, labels) for labels, share in shares)
        return sum(others, first)

    def _loss_for(self, logits: Tensor, labels: Tensor) -> Tensor:
        smoothing = self._recipe.label_smoothing
        if self._class_weights is None:
            return F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
        each = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
        return (each * self._class_weights[labels]).sum()

    def _inputs(self, part: Batch) -> tuple[Tensor, Tensor]:
        if self._on_features:
            return part.images, part.labels
        if not len(part.labels):  # the last processes have no group of a short batch
            side = self._recipe.image_size
            return part.matrices.new_empty(0, 3, side, side), part.labels.long()
        return apply_color(part.images, part.matrices, part.flips), part.labels

    def _gradients_summed(self, now: bool) -> AbstractContextManager[None]:
        return nullcontext() if self._parallel is None or now else self._parallel.no_sync()

    def _seed_dropout(self, number: int, group: int) -> None:
        """Make dropout a function of (seed, step, group), so that no random state need be saved."""
        entropy = np.random.SeedSequence([self._recipe.seed, number, group])
        seed = int(entropy.generate_state(1, np.uint64)[0])
        if self._device.type == "cuda":
            torch.cuda.manual_seed(seed)
        else:  # `torch.manual_seed` takes a head's step again for the devices that are missing
            torch.default_generator.manual_seed(seed)

    @property
    def is_finite(self) -> bool:
        """Whether every weight and running statistic is a finite number, averages included."""
        average = self.ema.state_dict if self.ema is not None else {}
        values = [*self.model.state_dict().values(), *average.values()]
        # A sum is finite if all its terms are, and takes a third of the time of a look at each.
        return bool(torch.stack([value.sum().double() for value in values]).isfinite().all())

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs besides the weights."""
        state: dict[str, Any] = {"optimizer": self._optimizer.state_dict()}
        if self._scaler.is_enabled():
            state["scaler"] = self._scaler.state_dict()
        if self.ema is not None:
            state["ema"] = self.ema.state_dict
        return state

    def load(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of the same recipe."""
        self.model.load_state_dict(checkpoint.state_dict)
        self._optimizer.load_state_dict(checkpoint.training["optimizer"])
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(checkpoint.training["scaler"])
        if self.ema is not None:
            self.ema.load_state_dict(checkpoint.training["ema"])


def balanced_weights(labels: IntArray, num_classes: int) -> Tensor:
    """Return n / (k n_c) for each class c of n images in k classes; 0 for a class without any.

    Every class then has the same sum, and the mean over the images is 1.
    """
    counts = np.bincount(labels, minlength=num_classes)
    weights = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1)) * (counts > 0)
    return torch.from_numpy(weights.astype(np.float32))


@contextmanager
def _translated_failures() -> Iterator[None]:
    """Around a step: raise failures that are the machine's fault as EngineError."""
    try:
        yield
    except RuntimeError as error:
        raise_if_stopped()
        lines = [line for line in str(error).splitlines() if line and not line.endswith("raised:")]
        reason = lines[0] if lines else type(error).__name__
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise EngineError(
                "--compile", reason, "a working compiler (g++, Triton)", "leave out --compile"
            ) from error
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise EngineError(
                "memory",
                reason,
                "room for the images of a step",
                "pass --micro-batch or --checkpoint-activations",
            ) from error
        raise


def _configure_torch(recipe: Recipe) -> None:
    use_full_float32()
    if recipe.deterministic:  # cuBLAS reads this when it starts
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(recipe.deterministic)
    torch.backends.cudnn.benchmark = not recipe.deterministic


def _count(logits: Tensor, labels: Tensor, loss: Tensor) -> Tensor:
    """Return float64 (4,): summed loss, images wrong in top 1 and in top 5, images."""
    top5 = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    return torch.stack(
        [
            loss.double(),
            (~top5[:, 0]).sum().double(),
            (~top5.any(dim=1)).sum().double(),
            torch.tensor(float(len(labels)), dtype=torch.float64, device=logits.device),
        ]
    )
