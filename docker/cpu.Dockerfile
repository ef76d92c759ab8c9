# docker build -f docker/cpu.Dockerfile -t segpipe:cpu .
# docker run --rm segpipe:cpu                      (make demo)
# docker run --rm segpipe:cpu make test
# docker run --rm --user "$(id -u)" -v "$PWD:/data" segpipe:cpu .venv/bin/segpipe check /data/DATASET
FROM python:3.12-slim-bookworm

RUN apt-get update \
    && apt-get install -y --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home segpipe
USER segpipe
WORKDIR /home/segpipe/segpipe

COPY --chown=segpipe:segpipe . .
RUN make install PIP_CACHE=--no-cache-dir

ENV PATH="/home/segpipe/segpipe/.venv/bin:${PATH}"
CMD ["make", "demo"]
