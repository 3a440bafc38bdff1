"""What a server here would take of a bundle, how fast that is, and why nothing faster."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from irv2.doctor.finding import Finding, late, note, ok, problem
from irv2.doctor.loading import runs
from irv2.doctor.probe import Answer
from irv2.system.machine import num_cores

_SUBJECT = "bundle"


def check_bundle(path: Path, answer: Answer, backends: Mapping[str, Answer]) -> Iterator[Finding]:
    """Report on a bundle by what `probe.read_bundle` found and which backends run."""
    if answer.get("is_late"):
        yield late(_SUBJECT, f"{path}: {answer['error']}")
        return
    if "error" in answer:
        way_out = answer.get("way_out") or "mend what is said above, then ask again"
        yield problem(_SUBJECT, str(answer["error"]), way_out)
        return
    for file, reason, way_out in answer["wrong"]:
        yield problem(_SUBJECT, f"{file}: {reason}", way_out)
    if answer["wrong"]:
        return  # no program opens it
    yield ok(_SUBJECT, f"{path}, id {answer['id'][:12]}: all hashes hold")
    yield from _check_choice(path, answer, backends)


def _check_choice(path: Path, answer: Answer, backends: Mapping[str, Answer]) -> Iterator[Finding]:
    """Take the first candidate whose backend runs, as `irv2.runners.choose.open_best` does."""
    candidates: list[dict[str, Any]] = answer["candidates"]
    running = [each for each in candidates if runs(backends, each["backend"])]
    idle = [each for each in candidates if each not in running]
    verify = f"run `irv2 verify {path}` on this machine"
    if running:
        yield ok("served", f"{_named(running[0])} would be: {_speed(running[0])}")
    else:
        expected = "nothing in it can be served here: expected an artefact that passed on a backend"
        yield problem("served", f"{expected} and a kind of processor that are here", verify)
    for each in idle:
        how = "does not run here, see above" if each["backend"] in backends else "not installed"
        extra = {"openvino-cpu": "openvino", "onnxruntime-cpu": "cpu"}.get(each["backend"], "gpu")
        way_out = "" if each["backend"] in backends else f'pip install "irv2[{extra}]"'
        found = f"{_named(each)}, {_speed(each)}: {each['backend']} {how}"
        yield note("not served", found, way_out)
    for each in answer["rejected"]:
        is_idle = each["backend"] in backends and not runs(backends, each["backend"])
        found = f"{each['what']}: {each['reason']}"
        found += ", and its backend does not run here" if is_idle else ""
        yield note("not served", found, verify if each["is_unjudged"] and not is_idle else "")
    for each in running[1:]:
        yield ok("not served", f"{_named(each)}: comes after it, {_speed(each)}")


def _named(candidate: dict[str, Any]) -> str:
    return f"{candidate['file']} ({candidate['backend']})"


def _speed(candidate: dict[str, Any]) -> str:
    rate, threads = candidate["images_per_s"], candidate["threads"]
    if rate is None:
        return "its speed was not recorded"
    if not threads:
        return f"{rate:g} images/s on record"
    elsewhere = f"; here it gets {num_cores()}" if threads != num_cores() else ""
    return f"{rate:g} images/s on record, with {threads} threads{elsewhere}"
