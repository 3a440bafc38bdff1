"""`irv2-train` for torchrun, which fails where a network outlives the group it was trained in.

Such a DistributedDataParallel would end gloo with the interpreter's lock held, and now and then
never return: gloo's threads may wait for that lock.
"""

import gc

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from irv2.train.cli import main

destroy_process_group = dist.destroy_process_group


def destroy_alone() -> None:
    """End the group, which nothing may use any more."""
    assert not any(type(item) is DistributedDataParallel for item in gc.get_objects())
    destroy_process_group()


if __name__ == "__main__":
    gc.disable()  # or what it happens to free would pass
    dist.destroy_process_group = destroy_alone
    main()
