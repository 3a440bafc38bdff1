"""A checkpoint that knows its images after no training, and the folder it knows.

A narrow network of random weights; only its last layer is solved for, in closed form.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from irv2.checkpoint import Checkpoint
from irv2.data.dataset import ImageFolder, open_split
from irv2.images.preprocess import Preprocess, preprocess
from irv2.model.paper import InceptionResNetV2, Normalized, inception_resnet_v2

CLASSES = ["blue", "cyan", "green", "magenta", "red", "yellow"]
COLOURS = [(0, 0, 1), (0, 1, 1), (0, 1, 0), (1, 0, 1), (1, 0, 0), (1, 1, 0)]
NUM_PER_CLASS = 8
PREPROCESS = Preprocess(resize=80, crop=75)


def write_images(root: Path, seed: int = 0) -> Path:
    """`root`/val: 48 noisy PNG files, each class a colour."""
    rng = np.random.default_rng(seed)
    for name, colour in zip(CLASSES, COLOURS, strict=True):
        (root / "val" / name).mkdir(parents=True)
        for i in range(NUM_PER_CLASS):
            pixels = rng.integers(0, 120, (90, 100, 3)) + 120 * np.array(colour)
            Image.fromarray(pixels.astype(np.uint8)).save(root / "val" / name / f"{i}.png")
    return root


def make_checkpoint(root: Path, seed: int = 0) -> Checkpoint:
    """A checkpoint that classifies `root`/val well; another `seed` gives other weights."""
    torch.manual_seed(seed)
    model = inception_resnet_v2(len(CLASSES), blocks=(1, 1, 1), width=0.125).eval()
    fit_classifier(model, open_split(root, "val", CLASSES))
    return Checkpoint(
        model=model.config,
        state_dict=model.state_dict(),
        classes=CLASSES,
        setting="2",
        epoch=3,
        preprocess=PREPROCESS,
        step=100,
    )


@torch.no_grad()
def fit_classifier(model: InceptionResNetV2, images: ImageFolder) -> None:
    """Least squares from features to one-hot labels."""
    pixels = [preprocess(images.path(i).read_bytes(), PREPROCESS) for i in range(len(images))]
    normalized = Normalized(model, PREPROCESS.mean, PREPROCESS.std)
    features = model.features(normalized.normalize(torch.tensor(np.stack(pixels))))
    classifier = model.classifier
    inputs = torch.cat([features, torch.ones(len(images), 1)], dim=1).double()
    targets = 10 * torch.eye(len(CLASSES), dtype=torch.float64)[torch.tensor(images.labels)]
    # A ridge keeps the weights small, so that logits are as smooth as a trained network's.
    ridge = 1e-2 * torch.eye(inputs.shape[1], dtype=torch.float64)
    solution = torch.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ targets)
    classifier.weight.copy_(solution[:-1].T)
    classifier.bias.copy_(solution[-1])
