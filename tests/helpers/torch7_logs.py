"""Lines as the original wrote them."""

STEP = " | Epoch: [{}][{}/2]    Time 0.901  Data 0.004  Err 6.9078  top1 {:7.3f}  top5 {:7.3f}\n"
TEST = " | Test: [{}][1/1]    Time 0.2  Data 0.0  top1  80.000 ( 80.000)  top5  60.000 ( 60.000)\n"
DONE = " * Finished epoch # {}     top1: {:7.3f}  top5: {:7.3f}\n\n"


def epoch(number, train, val):
    """An epoch's lines: top-1 errors of its steps, and of its end; top-5 is half of each."""
    steps = [STEP.format(number, n, top1, top1 / 2) for n, top1 in enumerate(train, 1)]
    return "".join([*steps, TEST.format(number), DONE.format(number, val, val / 2)])
