# docker build -f docker/cpu.Dockerfile -t segpipe:cpu .
# docker run --rm segpipe:cpu                      (make demo)
# docker run --rm segpipe:cpu make test
# As your own user, without a network, writing to the data folder only:
# docker run --rm --user "$(id -u):$(id -g)" --network none --read-only --tmpfs /tmp \
#     -v "$PWD:/data" segpipe:cpu segpipe run /data/DATASET -o /data/work
FROM python:3.12-slim-bookworm

COPY docker/install.sh /usr/local/bin/segpipe-install
RUN segpipe-install system
USER 10001
WORKDIR /opt/segpipe
COPY --chown=10001 . .
RUN segpipe-install package

# For any user: caches of matplotlib and numba, and the demo, go to a folder that everyone may write to.
ENV HOME=/tmp DEMO=/tmp/segpipe-demo PATH="/opt/segpipe/.venv/bin:${PATH}"
CMD ["make", "demo"]
