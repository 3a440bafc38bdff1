"""Options of a training run of a tiny network, which takes seconds."""

SMALL = (
    *("--setting", "2", "--width", "0.1", "--blocks", "1", "1", "1", "--image-size", "75"),
    *("--batch-size", "8", "--bn-group", "4", "--device", "cpu"),
)
