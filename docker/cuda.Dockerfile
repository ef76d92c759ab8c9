# docker build -f docker/cuda.Dockerfile -t segpipe:cuda .
# docker run --rm --gpus all segpipe:cuda          (make demo)
# docker run --rm --gpus all segpipe:cuda make test
# Data loading uses threads, not processes: no --shm-size or --ipc=host is needed.
# PyTorch's wheels bring CUDA's libraries, so the base image need only carry what the driver expects.
FROM nvidia/cuda:13.0.1-base-ubuntu24.04

RUN apt-get update \
    && apt-get install -y --no-install-recommends make python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home segpipe
USER segpipe
WORKDIR /home/segpipe/segpipe

COPY --chown=segpipe:segpipe . .
RUN make install PIP_CACHE=--no-cache-dir

ENV PATH="/home/segpipe/segpipe/.venv/bin:${PATH}"
CMD ["make", "demo"]
