# syntax=docker/dockerfile:1
# Serving images, without torch:
#   docker build --target cpu -t irv2:cpu .     docker build --target gpu -t irv2:gpu .
#   docker run -v $PWD/model.bundle:/bundle:ro -p 8500:8500 -p 8501:8501 irv2:cpu
FROM python:3.11-slim AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY irv2 irv2
COPY train train
COPY convert convert
COPY serve serve
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM python:3.11-slim AS base
RUN useradd --create-home --uid 1000 irv2
ENV PYTHONUNBUFFERED=1
EXPOSE 8500 8501
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8501/readyz', timeout=2)"]
# Inside a container every address is behind the network that was chosen for it.
ENTRYPOINT ["irv2-serve"]
CMD ["/bundle", "--listen", "0.0.0.0:8500", "--http", "0.0.0.0:8501", "--insecure"]

FROM base AS gpu
# The wheels bring CUDA, cuDNN and TensorRT; the driver comes with the NVIDIA container runtime.
RUN --mount=from=wheel,source=/wheel,target=/wheel \
    pip install --no-cache-dir "$(ls /wheel/irv2-*.whl)[gpu]"
USER irv2

FROM base AS cpu
RUN --mount=from=wheel,source=/wheel,target=/wheel \
    pip install --no-cache-dir "$(ls /wheel/irv2-*.whl)[cpu]"
USER irv2
