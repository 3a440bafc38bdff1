"""One process of several that count a folder's errors together: CHECKPOINT DATA OUT.

Started by torchrun. The first writes the counts to OUT, as JSON.
"""

import json
import sys
from pathlib import Path

from irv2.checkpoint import Checkpoint
from irv2.data.dataset import open_split
from irv2.evaluate import EvaluationOptions
from irv2.runners.torch import TorchRunner
from irv2.train.processes import joined
from irv2.train.validation import count_wrong


def main(checkpoint_path: Path, data: Path, out: Path) -> None:
    checkpoint = Checkpoint.load(checkpoint_path)
    folder = open_split(data, "val", checkpoint.classes)
    with joined("cpu") as processes, TorchRunner(checkpoint) as runner:
        [counts] = count_wrong(
            processes,
            [runner],
            folder,
            checkpoint.preprocess,
            bad_images="error",
            title="evaluate",
            options=EvaluationOptions(),
        )
        if processes.is_first:
            out.write_text(json.dumps(counts))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
