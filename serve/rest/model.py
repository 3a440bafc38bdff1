"""GET /v1/model: what GetModel says, and what the bundle says of all its artefacts."""

from typing import Any

import msgspec

from irv2.manifest import Artifact
from irv2.serve.rest.messages import Message, json_from_message


class GetModel(Message):
    """The served model, the server's limits, the verdicts, and whether the bundle is signed."""

    def get(self) -> None:
        """Describe them."""
        if not self.is_let_in():
            return
        engine, limits = self.desk.current_engine(), self.desk.current_model().pipeline.limits
        self.send(
            {
                "model": json_from_message(engine.description),
                "limits": json_from_message(limits),
                "artifact": engine.artifact.file,
                "artifacts": [_judged(each) for each in engine.artifacts],
                "signature": engine.signature,
            }
        )


def _judged(artifact: Artifact) -> dict[str, Any]:
    """The part of bundle.json that tells what the gate found."""
    evidence = msgspec.to_builtins(artifact.known)
    return {"file": artifact.file, "precision": artifact.precision, "evidence": evidence}
