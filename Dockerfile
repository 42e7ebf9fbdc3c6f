# fleetnet in a container, for the CPU or for NVIDIA's GPUs. It runs as a user of its own, in /data.
#
#   docker build -t fleetnet .
#   docker build -t fleetnet --build-arg TORCH=cu128 .
#   docker run --rm --shm-size 2g -v photos:/data fleetnet train --model fasternet_t0 --data . --workers 4
#   docker run --rm --gpus all --shm-size 8g -v photos:/data fleetnet train --model fasternet_t0 --data .
#
# Worker processes hand over batches in shared memory: Docker's 64 MB are too little (--shm-size).
# benchmarks/container.py builds and runs the same where no daemon is at hand.
ARG BASE=debian:bookworm-slim
FROM ${BASE}

# What changes least comes first: a changed source file builds the last two layers alone.
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 fleetnet \
    && mkdir /data \
    && chown fleetnet /data \
    && python3 -m venv /opt/fleetnet
ENV PATH=/opt/fleetnet/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# cpu, or a version of CUDA as torch names it (cu128, cu130); empty takes what PyPI has.
ARG TORCH=cpu
WORKDIR /opt/source
COPY constraints.txt .
RUN pip install -c constraints.txt torch torchvision \
    ${TORCH:+--index-url https://download.pytorch.org/whl/${TORCH}}

# Extras of pyproject.toml, as [onnx,openvino]; empty for none.
ARG EXTRAS=[tensorboard]
COPY pyproject.toml README.md LICENSE ./
# An empty package brings what fleetnet needs; what was built of it would count as newer later.
RUN mkdir fleetnet \
    && touch fleetnet/__init__.py \
    && pip install -c constraints.txt ".${EXTRAS}" \
    && pip uninstall -y fleetnet \
    && rm -r fleetnet build *.egg-info
COPY fleetnet fleetnet
RUN pip install --no-deps . && fleetnet --version

USER fleetnet
WORKDIR /data
ENTRYPOINT ["fleetnet"]
CMD ["--help"]
