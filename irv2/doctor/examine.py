"""The whole examination: nothing is written, and nothing asked of a network."""

from collections.abc import Iterator
from pathlib import Path

from irv2.doctor.bundle import check_bundle
from irv2.doctor.children import Command, run_children
from irv2.doctor.finding import Finding, Report, late, problem
from irv2.doctor.loading import (
    check_backends,
    check_gpus,
    check_kernel,
    check_libraries,
    installed_backends,
    libraries_to_load,
)
from irv2.doctor.machine import (
    check_cores,
    check_folder,
    check_memory,
    check_port,
    check_processor,
    check_working_folder,
)
from irv2.doctor.packages import check_packages, read_packages
from irv2.doctor.probe import Answer

_KERNEL, _CACHE, _GPU = ("kernel", "torch7-bicubic"), ("cache", "irv2"), ("gpu", "NVIDIA")


def examine(bundle: Path | None, listen: str, http: str | None, timeout_s: float) -> Report:
    """Look at this machine and, if given, at a bundle. Raises UsageError for an address.

    Libraries are loaded in processes of their own, which get `timeout_s` together.
    """
    ports = [check_port("--listen", listen)] + ([check_port("--http", http)] if http else [])
    packages = read_packages()
    groups: list[Command] = [("load", *modules) for modules in libraries_to_load(packages).values()]
    engines: list[Command] = [("run", name) for name in installed_backends(packages)]
    judged: list[Command] = [("bundle", str(bundle.absolute()))] if bundle else []
    found = run_children([*engines, *groups, *judged, _KERNEL, _CACHE, _GPU], timeout_s)

    backends = _merged(found, engines)
    libraries = [*check_libraries(packages, _merged(found, groups))]
    is_broken = any(each.level == "problem" for each in libraries)
    first = "mend the libraries above first" if is_broken else ""
    findings = [
        *check_packages(packages),
        *libraries,
        check_kernel(found[_KERNEL][_KERNEL[1]], first),
        check_processor(),
        check_cores(),
        check_memory(),
        *_check_folders(found[_CACHE][_CACHE[1]]),
        *check_working_folder({each.module.partition(".")[0] for each in packages}),
        *ports,
        check_gpus(found[_GPU][_GPU[1]]),
        *check_backends(backends, first),
    ]
    if bundle:
        findings += check_bundle(bundle, _merged(found, judged)[str(bundle.absolute())], backends)
    return Report(findings)


def _merged(found: dict[Command, dict[str, Answer]], commands: list[Command]) -> dict[str, Answer]:
    return {name: answer for command in commands for name, answer in found[command].items()}


def _check_folders(cache: Answer) -> Iterator[Finding]:
    if cache.get("is_late"):
        yield late("cache", str(cache["error"]))
    elif "folder" in cache:
        yield check_folder("cache", Path(cache["folder"]), "name another place in XDG_CACHE_HOME")
    else:
        yield problem("cache", str(cache["error"]), "set HOME or XDG_CACHE_HOME")
    yield check_folder("run folder", Path("runs").absolute(), "name another with --out")
