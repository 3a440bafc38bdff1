# Two images; `make image` builds one with docker, podman or buildah and fills in the labels:
#   docker build --target serve -t irv2:serve .    a server on a CPU: no torch, no compiler, no pip
#   docker build --target gpu -t irv2:gpu .        train, convert and serve on an NVIDIA GPU
#   docker run --read-only -v "$PWD/model.bundle:/bundle:ro" -p 8500:8500 -p 8501:8501 irv2:serve
# The server with OpenVINO as a second engine: --build-arg OPENVINO=1. Behind a proxy:
# --build-arg PIP_INDEX_URL=URL for a mirror, --build-arg CA_FILE=FILE for a certificate authority
# in the build context. What an image gets lies in /opt/irv2; all other stages are left behind.
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
    && python3 -m venv --without-pip /build \
    && pip="python3 -m pip --python /build/bin/python" \
    && $pip install --no-cache-dir --require-hashes -r requirements/build.lock \
    && $pip wheel --no-cache-dir --no-build-isolation --no-deps --wheel-dir /wheel .

FROM ${PYTHON_IMAGE} AS serve-packages
ARG PIP_INDEX_URL=
ARG CA_FILE=
ARG OPENVINO=
COPY LICENSE ${CA_FILE} /ca/
COPY --from=wheel /wheel /wheel
COPY pyproject.toml requirements /requirements/
COPY deploy/image /image/
RUN sh /image/install.sh "serve${OPENVINO:+-openvino}"

FROM ${NVIDIA_IMAGE} AS nvidia-python
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/*

FROM nvidia-python AS gpu-packages
ARG PIP_INDEX_URL=
ARG CA_FILE=
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends python3-pip python3-venv
COPY LICENSE ${CA_FILE} /ca/
COPY --from=wheel /wheel /wheel
COPY pyproject.toml requirements /requirements/
COPY deploy/image /image/
# The packages of the image, of which this stage has more.
COPY --from=nvidia-python /var/lib/dpkg/status /base/status
ENV DPKG_ADMINDIR=/base
# The wheels bring CUDA's libraries and TensorRT; the driver comes with the container runtime.
RUN sh /image/install.sh build gpu

FROM nvidia-python AS gpu
ARG NVIDIA_IMAGE
ARG VERSION=
ARG REVISION=
ARG CREATED=
COPY --from=gpu-packages /opt/irv2 /opt/irv2
ENV PATH=/opt/irv2/bin:$PATH PYTHONUNBUFFERED=1
RUN useradd --no-log-init --create-home --uid 10001 irv2
USER 10001
WORKDIR /home/irv2
ENTRYPOINT ["irv2"]
CMD ["--help"]
LABEL org.opencontainers.image.title="irv2 on an NVIDIA GPU" \
      org.opencontainers.image.description="Train, convert and serve Inception-ResNet-v2" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${NVIDIA_IMAGE}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"

FROM ${PYTHON_IMAGE} AS serve
ARG PYTHON_IMAGE
ARG VERSION=
ARG REVISION=
ARG CREATED=
COPY --from=serve-packages /opt/irv2 /opt/irv2
ENV PATH=/opt/irv2/bin:$PATH PYTHONUNBUFFERED=1
RUN useradd --no-log-init --create-home --uid 10001 irv2
USER 10001
EXPOSE 8500 8501
STOPSIGNAL SIGTERM
# An image in OCI's format has no health check; in Docker's it has this one. Kubernetes uses neither.
# With TLS: -e READYZ=https://127.0.0.1:8501/readyz; it asks itself, by no name of a certificate.
ENV READYZ=http://127.0.0.1:8501/readyz
HEALTHCHECK --interval=10s --start-period=60s \
    CMD ["python", "-c", "import os, ssl, urllib.request; urllib.request.urlopen(os.environ['READYZ'], timeout=2, context=ssl._create_unverified_context())"]
ENTRYPOINT ["irv2-serve"]
# Inside a container every address lies behind the network that was chosen for it.
CMD ["/bundle", "--listen", "0.0.0.0:8500", "--http", "0.0.0.0:8501", "--insecure"]
LABEL org.opencontainers.image.title="irv2-serve" \
      org.opencontainers.image.description="Serve Inception-ResNet-v2 over gRPC, on a CPU" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${PYTHON_IMAGE}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
