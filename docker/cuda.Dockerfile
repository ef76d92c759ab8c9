# docker build -f docker/cuda.Dockerfile -t segpipe:cuda .
# docker run --rm --gpus all segpipe:cuda          (make demo)
# docker run --rm --gpus all segpipe:cuda make test
# As your own user, without a network, writing to the data folder only:
# docker run --rm --gpus all --user "$(id -u):$(id -g)" --network none --read-only --tmpfs /tmp \
#     -v "$PWD:/data" segpipe:cuda segpipe run /data/DATASET -o /data/work
# Threads load the cases, so one GPU needs no --shm-size or --ipc=host.
FROM python:3.12-slim-bookworm

# PyTorch's wheels bring CUDA's libraries; these variables ask the container toolkit for the driver.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

COPY docker/install.sh /usr/local/bin/segpipe-install
RUN segpipe-install system
USER 10001
WORKDIR /opt/segpipe
COPY --chown=10001 . .
RUN segpipe-install package

# For any user: caches of matplotlib and numba, and the demo, go to a folder that everyone may write to.
ENV HOME=/tmp DEMO=/tmp/segpipe-demo PATH="/opt/segpipe/.venv/bin:${PATH}"
CMD ["make", "demo"]
