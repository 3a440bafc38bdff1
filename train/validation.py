"""Errors on the validation images, counted jointly by all processes of a run."""

from collections.abc import Sequence

from irv2.data.dataset import BadImages, ImageFolder
from irv2.errors import DataError
from irv2.evaluate import EvaluationOptions, classify_part, folder_for_rank
from irv2.images.preprocess import Preprocess
from irv2.runners.base import Runner
from irv2.train.processes import Processes


def count_wrong(
    processes: Processes,
    runners: Sequence[Runner],
    folder: ImageFolder,
    config: Preprocess,
    *,
    bad_images: BadImages,
    title: str,
    options: EvaluationOptions,
) -> list[list[int]]:
    """Count per runner: images, wrong in top 1, wrong in top 5; each image once, by one process.

    Every process returns the sums. An ImageError in any, unless `bad_images` is skip, ends all, as
    does a DataError if no image is left.
    """
    mine = folder_for_rank(folder, processes.rank, processes.size)
    predictions = processes.together(
        lambda: classify_part(
            runners, mine, config, bad_images=bad_images, title=title, options=options
        )
    )
    counts = [processes.totals(*each.counts) for each in predictions]
    if not counts[0][0]:
        processes.fail(DataError(folder.place, "no image could be read", "at least one"))
    return counts
