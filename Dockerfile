# carvana-batch with the versions of constraints.txt; see docs/how-to/docker.md.
#
#   docker build -t carvana-batch .                                               # for CPUs
#   docker build -t carvana-batch:cuda --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu24.04 \
#       --build-arg TORCH_INDEX=https://pypi.org/simple .                         # for NVIDIA GPUs
ARG BASE=python:3.12-slim
FROM ${BASE}

# Images without Python get that of their distribution. wget is what KubeRay's probes call.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget \
    && if ! command -v python3 >/dev/null; then \
        apt-get install --yes --no-install-recommends python3 python3-venv; \
    fi \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/carvana-batch
ENV PATH=/opt/carvana-batch/bin:${PATH}

WORKDIR /src
COPY . .
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=heic,ray
RUN pip install --no-cache-dir --constraint constraints.txt --index-url "${TORCH_INDEX}" \
        --extra-index-url https://pypi.org/simple torch \
    && pip install --no-cache-dir --constraint constraints.txt ".[${EXTRAS}]"

RUN useradd --create-home --uid 10001 carvana
USER 10001
WORKDIR /data
ENTRYPOINT ["carvana-batch"]
CMD ["--help"]
