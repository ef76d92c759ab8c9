"""Serves one gallery to a browser on this machine, and nothing else.

Who may read: requests whose path begins with the secret of this run, sent to 127.0.0.1 by that name, since a page of
somebody else's could otherwise have its own name resolve to this address. What may be read: the page's own files and
the cases of the gallery by their ids. No path of a request is ever joined to a path on the disk.
"""

from __future__ import annotations

import json
import re
import secrets
import sys
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from threading import Lock
from typing import Any
from urllib.parse import unquote, urlsplit

from segpipe.core.errors import SegpipeError, SetupError
from segpipe.core.progress import say
from segpipe.view.case_content import describe, image_nifti, mask_nifti, read_masks
from segpipe.view.gallery import Gallery, GalleryCase

HOST = "127.0.0.1"
_OWN_FILES = {  # name in the address: file beside this one, type
    "": ("page.html", "text/html; charset=utf-8"),
    "style.css": ("style.css", "text/css; charset=utf-8"),
    "contours.js": ("contours.js", "text/javascript; charset=utf-8"),
    "viewer.js": ("viewer.js", "text/javascript; charset=utf-8"),
    "niivue.js": ("niivue.umd.js", "text/javascript; charset=utf-8"),
}
_MASKS = {f"{name}.nii": name for name in ("reference", "prediction", "difference")}
_IMAGE = re.compile(r"image_([0-9]{1,4})\.nii")
_JSON, _NIFTI = "application/json", "application/octet-stream"
_HEADERS = {
    # NiiVue holds its fonts as data: addresses; nothing is ever asked of another machine
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self' data: blob:; font-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cache-Control": "no-store",  # scans of patients stay out of the browser's folder
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",  # the address holds the secret
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class HttpAnswer:
    """An HTTP answer."""

    status: HTTPStatus
    kind: str
    body: bytes


@dataclass(frozen=True)
class Site:
    """The gallery that is served, and its address: requests for `/<token>/…` on `port`."""

    gallery: Gallery
    token: str
    port: int

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{HOST}:{self.port}/{self.token}/"


def answer(site: Site, host: str, target: str) -> HttpAnswer:
    """The answer to a request.

    Args:
        site: What is served.
        host: The request's Host header.
        target: Its path, as it stands in the request.

    Returns:
        400 for what is no address, 403 for another host or without the secret, 404 for what there is not, 422 for a
        case whose files are faulty, 507 for one that memory does not hold.
    """
    if host not in {f"{HOST}:{site.port}", f"localhost:{site.port}"}:
        return _refusal(HTTPStatus.FORBIDDEN, "this address is served under another name")
    try:
        path = urlsplit(target).path
    except ValueError:  # http://[ is no address
        return _refusal(HTTPStatus.BAD_REQUEST, "this is no address")
    token, *rest = [unquote(part) for part in path.removeprefix("/").split("/")]
    if not secrets.compare_digest(token.encode(), site.token.encode()):
        return _refusal(HTTPStatus.FORBIDDEN, "the address lacks the secret that `segpipe view` printed")
    try:
        return _answer_for(site, rest) or _refusal(HTTPStatus.NOT_FOUND, "there is no such thing here")
    except SegpipeError as fault:
        return _refusal(HTTPStatus.UNPROCESSABLE_ENTITY, str(fault))
    except MemoryError:
        return _refusal(HTTPStatus.INSUFFICIENT_STORAGE, "not enough memory for this case")


def _answer_for(site: Site, steps: list[str]) -> HttpAnswer | None:
    if steps == [""]:
        read_masks.cache_clear()  # whoever loads the page again wants to see files as they are now
    if len(steps) == 1 and steps[0] in _OWN_FILES:
        name, kind = _OWN_FILES[steps[0]]
        return HttpAnswer(HTTPStatus.OK, kind, (files("segpipe.view") / name).read_bytes())
    if steps == ["cases.json"]:
        cases = [{"case_id": case.case_id, "dice": case.dice} for case in site.gallery.cases]
        return _json(HTTPStatus.OK, {"title": site.gallery.title, "cases": cases})
    if len(steps) != 3 or steps[0] != "case":
        return None
    case = site.gallery.case(steps[1])
    return None if case is None else _of_case(case, site.gallery, steps[2])


def _of_case(case: GalleryCase, gallery: Gallery, name: str) -> HttpAnswer | None:
    if name == "info.json":
        return _json(HTTPStatus.OK, describe(case, gallery))
    channel = _IMAGE.fullmatch(name)
    if channel is not None:
        body = image_nifti(case, int(channel[1]))
    else:
        body = mask_nifti(case, gallery, _MASKS[name]) if name in _MASKS else None
    return None if body is None else HttpAnswer(HTTPStatus.OK, _NIFTI, body)


def _json(status: HTTPStatus, value: Any) -> HttpAnswer:
    return HttpAnswer(status, _JSON, json.dumps(value, ensure_ascii=False).encode())


def _refusal(status: HTTPStatus, why: str) -> HttpAnswer:
    return _json(status, {"message": why})


class ViewServer(ThreadingHTTPServer):
    """Listens on this machine alone until it is closed; requests are answered one at a time.

    Args:
        gallery: What to show.
        port: 0 for any free one.

    Raises:
        SetupError: If the port cannot be had.
    """

    daemon_threads = True  # Ctrl-C does not wait for a browser that still reads

    def __init__(self, gallery: Gallery, port: int = 0) -> None:
        self.turn = Lock()  # a case is read once though the page asks for three of its files at a time
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as fault:
            raise SetupError(
                f"port {port} of {HOST}: cannot be used ({fault}). Leave out --port for a free one."
            ) from None
        self.site = Site(gallery, secrets.token_urlsafe(24), self.server_address[1])

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002 (socketserver's signature)
        """Say in a line what went wrong with a request, where the base class prints a traceback."""
        fault = sys.exc_info()[1]
        if not isinstance(fault, ConnectionError | TimeoutError):  # the browser went away
            say(f"The viewer could not answer a request ({type(fault).__name__}: {fault}).")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ViewServer

    def do_GET(self) -> None:
        with self.server.turn:
            found = answer(self.server.site, self.headers.get("Host", ""), self.path)
        try:
            self.send_response(found.status)
            for name, value in (
                {"Content-Type": found.kind, "Content-Length": str(len(found.body))} | _HEADERS
            ).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(found.body)
        except ConnectionError:
            self.close_connection = True  # the browser went on to another case

    do_HEAD = do_GET

    def version_string(self) -> str:
        return "segpipe"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: addresses hold the secret."""
