"""What came of trying libraries, backends, the kernel and the GPU's driver."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from irv2.doctor.finding import Finding, late, note, ok, problem
from irv2.doctor.packages import Package, folder_of, version_of
from irv2.doctor.probe import Answer

# Backends by the packages of which one is needed: those that serve, then the reference.
_BACKENDS = {
    "onnxruntime-cpu": ("onnxruntime", "onnxruntime-gpu"),
    "openvino-cpu": ("openvino",),
    "onnxruntime-cuda": ("onnxruntime-gpu",),
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("tensorrt-rtx",),
    "torch": ("torch",),
}
_ENGINES = {name for names in _BACKENDS.values() for name in names}
# Generated for a range of protobuf's versions, which it checks when it is imported.
WIRE = "irv2.v1.classifier_pb2"
# Libraries of CUDA's; a driver runs those of its own major version and of earlier ones.
_CUDA = ("nvidia-cuda-runtime", "cuda-bindings")


def installed_backends(packages: list[Package]) -> list[str]:
    """List the backends of which a package is installed that irv2 asks for.

    Where irv2 is not installed, nobody knows what it asks for: then all count.
    """
    asked_for = {each.name for each in packages} or _ENGINES
    return [
        name
        for name, choices in _BACKENDS.items()
        if any(version_of(each) for each in choices if each in asked_for)
    ]


def libraries_to_load(packages: list[Package]) -> dict[str, list[str]]:
    """List the modules of installed packages by extra, each once; engines are run instead."""
    groups: dict[str, list[str]] = {"": []}
    listed = set(_ENGINES)
    for package in packages:
        if package.version and package.name not in listed:
            listed.add(package.name)
            groups.setdefault(package.extra, []).append(package.module)
    groups[""].append(WIRE)
    return {extra: modules for extra, modules in groups.items() if modules}


def check_libraries(packages: list[Package], answers: Mapping[str, Answer]) -> Iterator[Finding]:
    """Report each library that does not load, or is not the one that is installed."""
    by_module = {each.module: each for each in packages if each.version}
    wrong: list[Finding] = []
    for module, answer in answers.items():
        package = by_module.get(module)
        name = package.name if package else module
        if package and (place := _elsewhere(package.name, answer.get("place"))):
            found = f"{name} is taken from {place}, not from {folder_of(name)}"
            way_out = "rename or remove that, or take its folder off PYTHONPATH"
            wrong.append(problem("libraries", found, way_out))
        elif answer.get("is_late"):
            wrong.append(late("libraries", f"{name}: {answer['error']}"))
        elif "error" in answer:
            reinstall = f'pip install --force-reinstall "{name}{package.range}"' if package else ""
            way_out = reinstall or "install the protobuf that irv2 asks for"
            wrong.append(problem("libraries", f"{name} does not load ({answer['error']})", way_out))
    yield from wrong
    yield ok("libraries", f"{'the other' if wrong else 'all'} {len(answers) - len(wrong)} load")


def check_backends(answers: Mapping[str, Answer], first: str = "") -> Iterator[Finding]:
    """Report what each installed backend made of the tiny model.

    `first` is the way out of what else is wrong, and the likely reason of what is wrong here.
    """
    for name, answer in answers.items():
        subject = f"backend {name}"
        packages = [each for each in _BACKENDS[name] if version_of(each)]
        versions = ", ".join(f"{each} {version_of(each)}" for each in packages)
        if answer.get("is_late"):
            yield late(subject, f"{versions}: {answer['error']}")
        elif "error" in answer:
            reinstall = f"pip install --force-reinstall {packages[0]}"
            way_out = answer.get("way_out") or first or reinstall
            yield problem(subject, f"{versions}: {answer['error']}", way_out)
        elif answer.get("lacks_gpu"):
            yield note(subject, f"{versions} loads; there is no GPU to run it on")
        else:
            does = "starts" if name.startswith("tensorrt") else "gives the right answers"
            yield ok(subject, f"{answer['version']} {does}")
    if not is_servable(answers):
        found = "no backend that serves runs here"
        install = 'pip install "irv2[cpu]", or "irv2[gpu]" for a GPU'
        yield problem("backends", found, first or install)


def runs(answers: Mapping[str, Answer], backend: str) -> bool:
    """Whether a backend ran here."""
    answer = answers.get(backend, {"error": "not installed"})
    return "error" not in answer and not answer.get("lacks_gpu")


def is_servable(answers: Mapping[str, Answer]) -> bool:
    """Whether any backend that runs here serves; torch does not."""
    return any(runs(answers, name) for name in answers if name != "torch")


def check_kernel(answer: Answer, first: str = "") -> Finding:
    """Say which kernel resamples, the compiled one or NumPy's; `first` as for backends."""
    if answer.get("is_late"):
        return late("kernel", f"torch7-bicubic: {answer['error']}")
    if "error" in answer:
        return problem("kernel", f"torch7-bicubic: {answer['error']}", first or "reinstall irv2")
    if answer["kernel"] == "NumPy":
        found = "torch7-bicubic is computed by NumPy, thirty times slower: it was not compiled"
        return note("kernel", found, "install a C compiler and reinstall irv2")
    return ok("kernel", "torch7-bicubic is compiled, and gives NumPy's pixels")


def check_gpus(answer: Answer) -> Finding:
    """Compare the driver with the installed libraries of CUDA's, and name the GPUs."""
    if answer.get("is_late"):
        return late("GPU", f"NVIDIA driver: {answer['error']}")
    if not answer.keys() - {"name"}:
        return note("GPU", "no NVIDIA driver (libcuda.so.1): what runs here runs on the CPU")
    if "cuda" not in answer:
        return problem("GPU", f"NVIDIA driver: {answer['error']}", "reinstall the driver")
    major, minor = answer["cuda"]
    driver = f"driver for CUDA {major}.{minor}{_release()}"
    for name in _CUDA:
        if (needed := version_of(name)) and int(needed.partition(".")[0]) > major:
            found = f"{driver} is too old for {name} {needed}"
            return problem("GPU", found, f"install a driver for CUDA {needed.partition('.')[0]}")
    if "error" in answer:
        way_out = "check nvidia-smi, and whether the container was given GPUs (docker --gpus all)"
        return problem("GPU", f"{driver}: {answer['error']}", way_out)
    return ok("GPU", f"{'; '.join(answer['gpus']) or 'none'}; {driver}")


def _release() -> str:
    """The release of the driver, as NVIDIA counts them, in front of a comma."""
    file = Path("/proc/driver/nvidia/version")
    words = file.read_text().split() if file.is_file() else []
    return next((f", {word}" for word in words if word.count(".") and word[0].isdigit()), "")


def _elsewhere(package: str, place: str | None) -> str:
    """Return where a module was taken from if that is not where its package is installed."""
    folder = folder_of(package)
    is_there = not folder or not place or Path(place).is_relative_to(folder)
    return "" if is_there else str(place)
