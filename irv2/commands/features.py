"""`irv2 features`: the output of the last layer before the classifier, for each image.

Like the original's extract-features script (fb.resnet.torch, pretrained/), with file names.
"""

from collections.abc import Sequence
from pathlib import Path

import click

from irv2.cli.options import bad_images_option, device_option, json_option, print_json
from irv2.cli.program import Program
from irv2.commands.classify import image_files
from irv2.data.dataset import BadImages
from irv2.errors import DataError
from irv2.system.files import check_folder_of


@click.command(
    cls=Program,
    examples=("irv2 features pictures --model weights.pt -o features.npz",),
)
@click.argument("images", nargs=-1, required=True, metavar="IMAGE_or_DIR_or_CSV...",
                type=click.Path(exists=True, path_type=Path))  # fmt: skip
@click.option("--model", required=True, type=click.Path(path_type=Path), metavar="CHECKPOINT",
              help="Checkpoint whose features to take; a bundle has only logits.")  # fmt: skip
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path, dir_okay=False),
              metavar="NPZ", help="File to write.")  # fmt: skip
@device_option
@bad_images_option
@json_option
def main(
    images: tuple[Path, ...],
    model: Path,
    out: Path,
    device: str,
    bad_images: BadImages,
    as_json: bool,
) -> None:
    """Write NPZ with `files` (N,) and `features` float32 (N, 2048) of image files.

    For a folder or a list, every image file of it. TF-slim's network has 1536 features, narrow
    ones fewer.
    """
    check_folder_of(out)
    files = dict.fromkeys(file for path in images for file in image_files(path))  # each once
    shape = write_features(list(files), model, out, device, bad_images)
    if as_json:
        print_json({"out": str(out), "n": shape[0], "num_features": shape[1]})
    else:
        click.echo(f"{out}: {shape[0]} images, {shape[1]} features each")


def write_features(
    files: Sequence[Path], model: Path, out: Path, device: str, bad_images: BadImages
) -> tuple[int, int]:
    """Write the NPZ and return the shape of `features`. Raises Irv2Error, DataError if all fail."""
    import numpy as np
    import torch

    from irv2.checkpoint import Checkpoint
    from irv2.data.dataset import ImageFolder
    from irv2.evaluate import load_batches
    from irv2.images.crops import BATCH_SIZE
    from irv2.model.build import Network
    from irv2.runners.torch import normalized_network, resolve_device
    from irv2.system.files import write_atomically
    from irv2.system.progress import Progress

    checkpoint, device = Checkpoint.load(model), resolve_device(device)
    names = tuple(map(str, files))
    folder = ImageFolder(Path(), (), names, np.zeros(len(files), np.int64))  # labels unknown
    normalized = normalized_network(checkpoint, device)
    network = normalized.model
    assert isinstance(network, Network)
    read, rows = [], []
    with Progress("features", len(folder), "images") as bar, torch.inference_mode():
        for batch in load_batches(folder, checkpoint.preprocess, BATCH_SIZE, bad_images):
            images = normalized.normalize(torch.from_numpy(batch.images).to(device))
            rows.append(network.features(images).cpu().numpy())
            read += batch.files
            bar.advance(len(batch.files))
    if not rows:
        files_given = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
        raise DataError(files_given, "no image could be read", "at least one")
    features = np.concatenate(rows)

    def save(path: Path) -> None:
        with path.open("wb") as file:  # given a path, numpy would append .npz
            np.savez(file, files=np.array(read), features=features)

    write_atomically(out, save)
    return features.shape
