"""`irv2-classify` on 10,000 files: in order, in bounded memory, and batches stay full."""

import asyncio
import json
import os
import re
import sys
from pathlib import Path

import pytest
from fuzzing import memory_mb
from serving_process import get
from serving_site import jpeg, scenario_with
from tiny_bundle import write_tiny_bundle

from irv2.bundle import Bundle
from irv2.serve.access.address import Address

NUM_FILES, NUM_PICTURES = 10_000, 100
FILE_BYTES = 40_000  # of a photograph; 400 MB in all
MAX_BATCH, BATCH_S = 16, 0.02
MAX_CLIENT_MB = 200.0  # Python and gRPC, the requests under way, 10,000 results


def photograph(number: int) -> bytes:
    """A small picture in a file as large as a photograph's: the rest is a comment."""
    start, rest = jpeg(number)[:2], jpeg(number)[2:]
    size = FILE_BYTES - len(rest) - 4
    return start + b"\xff\xfe" + (size + 2).to_bytes(2, "big") + bytes(size) + rest


@pytest.fixture
def folder(tmp_path) -> Path:
    """100 pictures under 10,000 names, whose order is that of their numbers."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(NUM_FILES):
        file = folder / f"{number:05}.jpg"
        if number < NUM_PICTURES:
            file.write_bytes(photograph(number))
        else:
            os.link(folder / f"{number % NUM_PICTURES:05}.jpg", file)
    return folder


@pytest.mark.alone
@pytest.mark.slow
def test_10_000_files_keep_the_server_full(folder, tmp_path, capsys):
    bundle = Bundle.open(write_tiny_bundle(tmp_path / "tiny.bundle", max_batch=MAX_BATCH))
    pictures = [folder / f"{number:05}.jpg" for number in range(NUM_PICTURES)]
    expected = [[score.index for score in result.scores] for result in bundle.classify(pictures)]
    assert len(set(map(tuple, expected))) > 30, "or answers in another order could look right"
    stdout_path, stderr_path = tmp_path / "stdout", tmp_path / "stderr"

    async def scenario(site):
        _, address, *_, http = site.server.ready_line.split()
        command = [sys.executable, "-m", "irv2", "classify", str(folder), "--server", address]
        with stdout_path.open("w") as stdout, stderr_path.open("w") as stderr:
            client = await asyncio.create_subprocess_exec(
                *command, "--json", stdout=stdout, stderr=stderr
            )
            ended, most_mb = asyncio.create_task(client.wait()), 0.0
            while not ended.done():
                most_mb = max(most_mb, memory_mb(client.pid))
                await asyncio.wait({ended}, timeout=0.1)
        assert await ended == 0, stderr_path.read_text()
        _, metrics = await asyncio.to_thread(get, http.removeprefix("http="), "/metrics")
        values = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if line[0] != "#")
        images, batches = (float(values[f"irv2_batch_images_{of}"]) for of in ("sum", "count"))
        seen.update(mean_batch=images / batches, client_mb=most_mb)

    seen = {}
    scenario_with(
        bundle,
        scenario,
        seconds=BATCH_S,
        max_batch=MAX_BATCH,
        max_images=64,
        max_message_bytes=4_000_000,
        http=Address("127.0.0.1", 0),
    )
    results = json.loads(stdout_path.read_text())["results"]
    assert [Path(each["file"]) for each in results] == sorted(folder.iterdir())
    answers = [[score["index"] for score in each["scores"]] for each in results]
    assert answers == expected * (NUM_FILES // NUM_PICTURES)
    lines = re.findall(r"classify: \d+/10000 images, ([\d.]+) images/s", stderr_path.read_text())
    with capsys.disabled():
        print(
            f"\n{lines[-1]} images/s of {MAX_BATCH / BATCH_S:g}, batches of "
            f"{seen['mean_batch']:.1f} of {MAX_BATCH}, client {seen['client_mb']:.0f} MB"
        )
    assert seen["mean_batch"] >= 0.85 * MAX_BATCH
    assert seen["client_mb"] < MAX_CLIENT_MB
