#!/bin/sh
# The steps of both images: run `install.sh system` as root on a Debian with Python, then `install.sh package` in the source
# tree as the user of the image. The second step needs no Docker; a test runs its result read-only, as another user.
set -eu
case "${1:-}" in
system)
    apt-get update
    apt-get install -y --no-install-recommends make chromium # the tests open pages
    rm -rf /var/lib/apt/lists/*
    useradd --uid 10001 --create-home segpipe
    install -d -o segpipe /opt/segpipe
    ;;
package)
    make install PIP_CACHE=--no-cache-dir
    .venv/bin/python -m compileall -q segpipe # whoever runs the image may not write here
    chmod -R a+rX .
    ;;
*)
    echo "install.sh: found '${1:-}', expected system or package" >&2
    exit 2
    ;;
esac
