"""Where the project lies."""

from pathlib import Path

ROOT = Path(__file__).parents[2]

# Schemas that others publish, as README.md there says; beside the project, not part of it.
SCHEMAS = ROOT.parent / "shared" / "schemas"
