"""One process of several that evaluate a folder together: CHECKPOINT DATA RANK WORLD_SIZE OUT.

They meet in the file OUT.rendezvous; rank 0 writes what the merged ledger holds to OUT.
"""

import sys
from pathlib import Path

import numpy as np
from torch import distributed

from irv2.checkpoint import Checkpoint
from irv2.dataset import open_split
from irv2.evaluate import Ledger, classify_part, merge, share
from irv2.runners.torch import TorchRunner


def main(checkpoint_path: Path, data: Path, rank: int, world_size: int, out: Path) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{out}.rendezvous", rank=rank, world_size=world_size
    )
    checkpoint = Checkpoint.load(checkpoint_path)
    folder = open_split(data, "val", checkpoint.classes)
    part = share(folder, rank, world_size)
    with TorchRunner(checkpoint) as runner:
        [mine] = classify_part([runner], part, checkpoint.preprocess)
    parts: list[Ledger] = [mine] * world_size
    distributed.all_gather_object(parts, mine)
    ledger = merge(folder, parts)
    if rank == 0:
        sizes = [len(part) for part in parts]
        np.savez(out, files=ledger.files, logits=ledger.logits, labels=ledger.labels, sizes=sizes)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(
        Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5])
    )
