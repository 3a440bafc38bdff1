#!/bin/sh
# Fill /opt/irv2, all that an image gets: the packages of the named locks and our wheel, compiled,
# and sbom.cdx.json, the list of them and of the base's packages. Run by the Dockerfile in a stage
# that is left behind.
set -eu

install() { # PYTHON ARGUMENT...: with the pip of this stage, so that an image has none
    python=$1; shift
    python3 -m pip --python "$python" install --quiet --no-cache-dir --no-compile "$@"
}

PIP_CERT=${CA_FILE:+/ca/$(basename "$CA_FILE")}
export PIP_CERT

python3 -m venv --without-pip /opt/irv2
for lock in "$@"; do
    install /opt/irv2/bin/python --require-hashes --no-build-isolation -r "/requirements/$lock.lock"
done
install /opt/irv2/bin/python --no-deps --no-index --find-links /wheel irv2

# What no program of ours reads: ONNX Runtime for programs in C (Python's module holds its own
# copy, 35 MB), its converters, the packages' own tests, and their types for checkers.
cd /opt/irv2/lib/python3*/site-packages
rm -rf onnxruntime/capi/libonnxruntime.so.* onnxruntime/transformers onnxruntime/tools numpy/f2py
find . -depth \( -type d \( -name test -o -name tests \) -o -name '*.pyi' \) -exec rm -r {} +

python3 -m venv --without-pip /sbom
install /sbom/bin/python --require-hashes -r /requirements/sbom.lock
/sbom/bin/cyclonedx-py environment --output-reproducible --mc-type application \
    --pyproject /requirements/pyproject.toml --output-file /opt/irv2/sbom.cdx.json /opt/irv2/bin/python
/sbom/bin/python "$(dirname "$0")/system_packages.py" /opt/irv2/sbom.cdx.json

# By hash and not by time, so that two builds give the same bytes; nothing here changes any more,
# so the hashes need no check.
/opt/irv2/bin/python -m compileall -q --invalidation-mode unchecked-hash .
