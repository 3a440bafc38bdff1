"""Who we are to a registry, as `docker login` and its like have left it."""

import base64
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from irv2.errors import InputError


def credentials(host: str) -> tuple[str, str] | None:
    """Return user and password for a registry; None where nobody has logged in.

    From config.json in $DOCKER_CONFIG or ~/.docker, or the program that it names. Raises
    InputError for a file or a program that fails.
    """
    path = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
    try:
        config = json.loads(path.read_text())
        helper = config.get("credHelpers", {}).get(host) or config.get("credsStore")
        entry = config.get("auths", {}).get(host, {})
        if "auth" in entry:
            user, _, password = (
                base64.b64decode(entry["auth"], validate=True).decode().partition(":")
            )
            return user, password
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(path, f"can't be read ({error})", "docker's configuration") from error
    return _ask(f"docker-credential-{helper}", host) if helper else None


def _ask(program: str, host: str) -> tuple[str, str] | None:
    try:
        done = subprocess.run(
            [program, "get"], input=host, capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode:
            if "credentials not found" in done.stdout:
                return None
            raise InputError(program, f"failed: {done.stdout or done.stderr}", way_out="log in")
        answer: dict[str, Any] = json.loads(done.stdout)
        return str(answer["Username"]), str(answer["Secret"])
    except (OSError, ValueError, KeyError, subprocess.TimeoutExpired) as error:
        got = f"gives no credentials for {host} ({error!r})"
        raise InputError(program, got, way_out="log in") from error
