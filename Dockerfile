# Two images:
#   docker build --target serve -t irv2:serve .    a server on a CPU: no torch, no compiler, not root
#   docker build --target gpu -t irv2:gpu .        train, convert and serve on an NVIDIA GPU
#   docker run -v "$PWD/model.bundle:/bundle:ro" -p 8500:8500 -p 8501:8501 irv2:serve
# Behind a proxy: --build-arg PIP_INDEX_URL=URL for a mirror, --build-arg CA_FILE=FILE for a
# certificate authority in the build context. It needs no daemon: buildah takes the same arguments.
ARG PYTHON_IMAGE=python:3.11-slim
ARG NVIDIA_IMAGE=nvidia/cuda:13.0.2-base-ubuntu24.04

FROM ${PYTHON_IMAGE} AS wheel
ARG PIP_INDEX_URL=
ARG CA_FILE=
WORKDIR /src
COPY LICENSE ${CA_FILE} /ca/
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml setup.py README.md LICENSE ./
COPY requirements requirements
COPY irv2 irv2
COPY train train
COPY convert convert
COPY serve serve
RUN export PIP_CERT="${CA_FILE:+/ca/$(basename "$CA_FILE")}" \
    && pip install --no-cache-dir --require-hashes -r requirements/build.lock \
    && pip wheel --no-cache-dir --no-build-isolation --no-deps --wheel-dir /wheel .

FROM ${NVIDIA_IMAGE} AS gpu
ARG PIP_INDEX_URL=
ARG CA_FILE=
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/irv2
COPY --from=wheel /ca /ca
COPY --from=wheel /wheel /wheel
COPY --from=wheel /src/requirements /requirements
ENV PATH=/opt/irv2/bin:$PATH PYTHONUNBUFFERED=1
# The wheels bring CUDA's libraries and TensorRT; the driver comes with the container runtime.
RUN export PIP_CERT="${CA_FILE:+/ca/$(basename "$CA_FILE")}" \
    && pip install --no-cache-dir --require-hashes -r /requirements/build.lock \
    && pip install --no-cache-dir --require-hashes --no-build-isolation -r /requirements/gpu.lock \
    && pip install --no-cache-dir --no-deps /wheel/irv2-*.whl
RUN useradd --create-home --uid 10001 irv2
USER 10001
WORKDIR /home/irv2
ENTRYPOINT ["irv2"]
CMD ["--help"]

FROM ${PYTHON_IMAGE} AS serve
ARG PIP_INDEX_URL=
ARG CA_FILE=
COPY --from=wheel /ca /ca
COPY --from=wheel /wheel /wheel
COPY --from=wheel /src/requirements /requirements
ENV PYTHONUNBUFFERED=1
RUN export PIP_CERT="${CA_FILE:+/ca/$(basename "$CA_FILE")}" \
    && pip install --no-cache-dir --require-hashes -r /requirements/serve.lock \
    && pip install --no-cache-dir --no-deps /wheel/irv2-*.whl
RUN useradd --create-home --uid 10001 irv2
USER 10001
EXPOSE 8500 8501
STOPSIGNAL SIGTERM
# With TLS: -e READYZ=https://127.0.0.1:8501/readyz; it asks itself, by no name of a certificate.
ENV READYZ=http://127.0.0.1:8501/readyz
HEALTHCHECK --interval=10s --start-period=60s \
    CMD ["python", "-c", "import os, ssl, urllib.request; urllib.request.urlopen(os.environ['READYZ'], timeout=2, context=ssl._create_unverified_context())"]
ENTRYPOINT ["irv2-serve"]
# Inside a container every address lies behind the network that was chosen for it.
CMD ["/bundle", "--listen", "0.0.0.0:8500", "--http", "0.0.0.0:8501", "--insecure"]
