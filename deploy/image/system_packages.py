"""Add the base's Debian packages, as dpkg lists them, to a CycloneDX file of Python packages.

python system_packages.py SBOM, with cyclonedx-python-lib, whose copy of the schema
checks the result. dpkg-query reads another system's list where DPKG_ADMINDIR names it.
"""

import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

_FIELDS = ("db:Status-Status", "Package", "Version", "Architecture", "source:Package",
           "source:Version")  # fmt: skip
_FORMAT = "\t".join(f"${{{field}}}" for field in _FIELDS) + "\n"


def main(sbom: Path) -> None:
    """Rewrite the file; ends with a line on stderr if it would not meet the schema."""
    bill = json.loads(sbom.read_text(encoding="utf-8"))
    system = platform.freedesktop_os_release()
    bill["components"] += [_system(system), *_packages(system)]
    text = json.dumps(bill, indent=2) + "\n"
    if error := JsonStrictValidator(SchemaVersion.from_version(bill["specVersion"])).validate_str(
        text
    ):
        sys.exit(f"error: {sbom} with the packages of {system['ID']}: {error}")
    sbom.write_text(text, encoding="utf-8")


def _system(system: dict[str, str]) -> dict[str, Any]:
    """The distribution itself, by which scanners choose whose security notices apply."""
    return {
        "type": "operating-system",
        "bom-ref": f"{system['ID']}-{system['VERSION_ID']}",
        "name": system["ID"],
        "version": system["VERSION_ID"],
        "description": system["PRETTY_NAME"],
    }


def _packages(system: dict[str, str]) -> Iterator[dict[str, Any]]:
    """What is installed, by name; security notices name the source package, so `upstream` does."""
    command = ["dpkg-query", "--show", f"--showformat={_FORMAT}"]
    listed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    for line in listed.splitlines():
        status, name, version, architecture, source, source_version = line.split("\t")
        if status != "installed":  # removed, and some of its settings left
            continue
        qualifiers = {"arch": architecture, "distro": f"{system['ID']}-{system['VERSION_ID']}"}
        if (source, source_version) != (name, version):
            same = source_version == version
            qualifiers["upstream"] = source if same else f"{source}@{source_version}"
        purl = PackageURL("deb", system["ID"], name, version, qualifiers).to_string()
        component = {"type": "library", "name": name, "version": version, "purl": purl}
        yield {"bom-ref": purl} | component


if __name__ == "__main__":
    main(Path(sys.argv[1]))
