"""LitServe with the work of `PillowModel`.

    python -m irv2.serve.bench.litserve BUNDLE FILE BACKEND

A module of its own because LitServe's worker process imports it.
"""

import socket
import sys
import threading
import time
import urllib.request
from pathlib import Path

import litserve

from irv2.bundle import Bundle
from irv2.serve.bench.peers import BATCH, PillowModel, say_ready
from irv2.types import FloatArray, UInt8Array

BATCH_WAIT_S = 0.005  # as in most of its examples


class Api(litserve.LitAPI):  # type: ignore[misc]
    """Take a JPEG from a form and return the best class."""

    def setup(self, device: object) -> None:
        """Open the model, in the worker."""
        self.model = PillowModel(Bundle.open(Path(sys.argv[1])), *sys.argv[2:])

    # Not annotated: LitServe would take an annotation for the schema of a JSON body.
    def decode_request(self, request):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        """Decode the form's file into uint8 RGB (S, S, 3)."""
        return self.model.decode(request["image"].file.read())

    def predict(self, images: list[UInt8Array]) -> FloatArray:
        """Return probabilities, float32 (N, classes)."""
        return self.model.run(images)

    def batch(self, inputs: list[UInt8Array]) -> list[UInt8Array]:
        """Leave the stacking to `predict`."""
        return inputs

    def unbatch(self, output: FloatArray) -> list[FloatArray]:
        """Split the answers into one row per image."""
        return list(output)

    def encode_response(self, output: FloatArray) -> dict[str, int]:
        """Return the best class as JSON."""
        return {"index": int(output.argmax())}


def main() -> None:
    """Serve until killed."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    api = Api(max_batch_size=BATCH, batch_timeout=BATCH_WAIT_S)
    server = litserve.LitServer(api, accelerator="cpu")
    threading.Thread(target=_say_ready_when_healthy, args=(port,), daemon=True).start()
    server.run(host="127.0.0.1", port=port, log_level="error", generate_client_file=False)


def _say_ready_when_healthy(port: int) -> None:
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                break
        except OSError:  # not listening yet, or its worker has not loaded the model: 503
            time.sleep(0.05)
    say_ready(f"127.0.0.1:{port}")


if __name__ == "__main__":
    main()
