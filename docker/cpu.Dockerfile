# docker build -f docker/cpu.Dockerfile -t segpipe:cpu .
# docker run --rm segpipe:cpu                      (make demo)
# docker run --rm segpipe:cpu make test
# docker run --rm --user "$(id -u)" -v "$PWD:/data" segpipe:cpu segpipe check /data/DATASET
FROM python:3.12-slim-bookworm

# Not pinned: the archive keeps no old versions, so a pinned image could not be built next month.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends make \
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
