"""Published weights as a reader found them in a file, and their match with one of our networks.

Every reader (original.py, slim.py, keras.py) returns `PublishedWeights`; nothing else knows file
formats.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from irv2.convert.importing.statements import Statement
from irv2.errors import CheckpointError
from irv2.images.preprocess import Preprocess
from irv2.model.build import build
from irv2.network_config import NetworkConfig
from irv2.system.progress import DELAY_S, progress
from irv2.system.text import shortened

logger = logging.getLogger(__name__)

# TF-slim's evaluation: 299 / 0.8975 = 333, pixels scaled to -1..1.
SLIM_PREPROCESS = Preprocess(
    resize=333, crop=299, resampling="pillow-bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
CLASSIFIER = ("classifier.bias", "classifier.weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedWeights:
    """Weights as a file holds them, and the network they were made for.

    `tensors` are under their published names, in torch's layout; `names` leads from each name in
    our network's state_dict to one of them. No file of this kind holds what is in `ones`.
    `preprocess` holds where no statement says otherwise; `classes` are named by `classes_from`.
    `notes` are for the user: what was assumed, or passed over.
    """

    kind: str
    config: NetworkConfig
    preprocess: Preprocess
    tensors: dict[str, Tensor]
    names: dict[str, str]
    ones: frozenset[str] = frozenset()
    statements: tuple[Statement, ...] = ()
    classes: tuple[str, ...] | None = None
    classes_from: str = ""
    notes: tuple[str, ...] = ()


def state_dict_of(weights: PublishedWeights, path: Path) -> dict[str, Tensor]:
    """Our network's state_dict, float32; empties `weights.tensors` on the way to save memory.

    Raises CheckpointError about `path`, with a list, if anything is missing, left over, of another
    shape or not finite.
    """
    expected = expected_state(weights.config)
    problems = _problems(weights, expected)
    if any(problems.values()):
        raise _mismatch(weights, problems, path)
    state: dict[str, Tensor] = {}
    title = f"convert {path.name}"  # which reads the file too, where it is mapped to memory
    for name, target in progress(expected.items(), title, len(expected), "tensors", DELAY_S):
        if name in weights.names:
            state[name] = _owned(weights.tensors.pop(weights.names[name]))
            if not state[name].isfinite().all():
                raise CheckpointError(
                    path,
                    f"{weights.names[name]} holds values that are not finite",
                    "trained weights",
                    "use an undamaged file",
                )
        else:  # torch's counter of batches is of no use where momentum is fixed
            fill = 1 if name in weights.ones else 0
            state[name] = torch.full(target.shape, fill, dtype=target.dtype)
    return state


def without_classifier(weights: PublishedWeights) -> PublishedWeights:
    """The weights as those of a network of no classes, if the classifier is all that is missing."""
    problems = _problems(weights, expected_state(weights.config))
    missing = {"missing": _classifier(weights), "left over": [], "of another shape": []}
    if problems != missing:
        return weights
    return replace(
        weights,
        config=replace(weights.config, num_classes=0),
        names={ours: name for ours, name in weights.names.items() if ours not in CLASSIFIER},
    )


def _classifier(weights: PublishedWeights) -> list[str]:
    return [_published(weights, name) for name in CLASSIFIER]


def expected_state(config: NetworkConfig) -> dict[str, Tensor]:
    """Names, shapes and types of a network's tensors, without memory.

    A network of no classes has no classifier.
    """
    with torch.device("meta"):
        state = dict(build(replace(config, num_classes=config.num_classes or 1)).state_dict())
    if config.num_classes:
        return state
    return {name: tensor for name, tensor in state.items() if name not in CLASSIFIER}


def is_counter(name: str) -> bool:
    """Whether a tensor only counts batches, or the terms of an average: some files lack it."""
    return name.endswith(("num_batches_tracked", "n_averaged"))


def _problems(weights: PublishedWeights, expected: dict[str, Tensor]) -> dict[str, list[str]]:
    wanted = {name for name in expected if not is_counter(name)} - weights.ones
    missing, other_shape = [], []
    for name in sorted(wanted):
        published = _published(weights, name)
        tensor = weights.tensors.get(published)
        if tensor is None:
            missing.append(published)
        elif tensor.shape != expected[name].shape or tensor.dtype not in FLOATS:
            shapes = f"{_shape(tensor)} instead of {_shape(expected[name])}"
            other_shape.append(f"{published} {shapes}")
    known = set(weights.names.values())
    left_over = sorted(
        name for name in weights.tensors if name not in known and not is_counter(name)
    )
    return {"missing": missing, "left over": left_over, "of another shape": other_shape}


def _published(weights: PublishedWeights, name: str) -> str:
    return weights.names.get(name, f"{name} (our name)")


def _mismatch(
    weights: PublishedWeights, problems: dict[str, list[str]], path: Path
) -> CheckpointError:
    for kind, entries in problems.items():
        for entry in entries:
            logger.debug("%s: %s", kind, entry)
    parts = [
        f"{len(entries)} {kind}: {shortened(entries)}"
        for kind, entries in problems.items()
        if entries
    ]
    way_out = "--debug lists all"
    if problems["missing"] == _classifier(weights) and len(parts) == 1:
        way_out = "use the file with the classifier (of Keras: include_top=True)"
    return CheckpointError(
        path,
        f"{weights.kind}, but of its tensors are {'; '.join(parts)}",
        f"exactly those of {weights.config.arch}",
        way_out,
    )


def _shape(tensor: Tensor) -> str:
    kind = "" if tensor.dtype in FLOATS else f"{tensor.dtype} "
    return kind + ("x".join(map(str, tensor.shape)) or "scalar")


def _owned(tensor: Tensor) -> Tensor:
    """Float32, contiguous, in a storage of its own: torch.save writes storages whole."""
    tensor = tensor.detach().float().contiguous()
    own = tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if own else tensor.clone()
