# docker build -f docker/cuda.Dockerfile -t segpipe:cuda .
# docker run --rm --gpus all segpipe:cuda          (make demo)
# docker run --rm --gpus all segpipe:cuda make test
# Data loading uses threads, not processes: no --shm-size or --ipc=host is needed.
# PyTorch's wheels bring CUDA's libraries, so the base image need only carry what the driver expects.
FROM nvidia/cuda:13.0.1-base-ubuntu24.04

# Not pinned: the archive keeps no old versions, so a pinned image could not be built next month.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends make python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

# Readable by everybody, so that `docker run --user` may name the owner of the data.
RUN useradd --uid 10001 --create-home segpipe && install -d -o 10001 /opt/segpipe
USER 10001
WORKDIR /opt/segpipe

COPY --chown=10001 . .
RUN make install PIP_CACHE=--no-cache-dir

# Caches of matplotlib and numba go where any user may write.
ENV HOME=/tmp PATH="/opt/segpipe/.venv/bin:${PATH}"
CMD ["make", "demo"]
