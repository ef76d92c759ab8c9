"""`segpipe view`: cases in the browser, the worst first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from segpipe.cli.printing import echo
from segpipe.core.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from segpipe.view.gallery import Gallery


@click.command("view")
@click.argument("folder", metavar="WORK|FOLDER", type=click.Path(path_type=Path))
@click.option("-i", "--images", type=click.Path(path_type=Path), help="Folder of the images, if FOLDER holds masks.")
@click.option("-r", "--references", type=click.Path(path_type=Path), help="Label maps to compare the masks with.")
@click.option("--scores", type=click.Path(path_type=Path), help="Scores of the masks; default: FOLDER/scores.csv.")
@click.option("-c", "--configuration", help="Configuration of WORK to show. Default: 3d_fullres if trained.")
@click.option("--case", "case_id", help="Start with this case; default: the worst.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, show_default="any free one")
@click.option("--no-browser", is_flag=True, help="Only print the address.")
@click.option("--json", "as_json", is_flag=True, help="Print the address as JSON on stdout.")
def command(
    folder: Path,
    images: Path | None,
    references: Path | None,
    scores: Path | None,
    configuration: str | None,
    case_id: str | None,
    port: int,
    no_browser: bool,
    as_json: bool,
) -> None:
    """Show image, reference and prediction of each case in the browser, the worst first, until Ctrl-C.

    WORK is a work folder; its cases are shown with the masks of the fold that did not train on them. FOLDER is a folder
    of masks with -i IMAGES, a dataset, or a folder of images. The page is served to this machine only, and only under
    the printed address; nothing is written and nothing is loaded from the network.
    """
    import webbrowser
    from urllib.parse import quote

    from segpipe.cli.printing import print_json
    from segpipe.core.progress import say
    from segpipe.core.records import did_you_mean
    from segpipe.core.text import count
    from segpipe.view.server import ViewServer

    gallery = _gallery(folder, images, references, scores, configuration)
    if case_id is not None and gallery.case(case_id) is None:
        known = [case.case_id for case in gallery.cases]
        raise UsageError(f"--case {case_id}: no such case in {folder}.{did_you_mean(case_id, known[:100])}")
    with ViewServer(gallery, port) as server:
        url = server.site.url + (f"#{quote(case_id, safe='')}" if case_id else "")
        try:
            if as_json:
                print_json({"url": url, "n_cases": len(gallery.cases)})
            else:
                echo(url)
            say(f"{count(len(gallery.cases), 'case')}; press Ctrl-C to stop.")
            if not no_browser:
                webbrowser.open(url)
            server.serve_forever()
        except (KeyboardInterrupt, Interrupted):  # the usual ends of a page
            say("Stopped.")


def _gallery(
    folder: Path, images: Path | None, references: Path | None, scores: Path | None, configuration: str | None
) -> Gallery:
    """The cases that the options choose.

    Raises:
        UsageError: If options of two kinds of folder are mixed.
    """
    from segpipe.view.gallery import from_images, from_predictions, from_work, is_work_folder

    if images is not None:
        if configuration is not None:
            raise UsageError("-c is for a work folder, -i for a folder of masks. Leave one out.")
        return from_predictions(folder, images, references, scores)
    if references is not None or scores is not None:
        raise UsageError(f"{folder}: -r and --scores are for a folder of masks. Give the images of the masks with -i.")
    if is_work_folder(folder):
        return from_work(folder, configuration)
    if configuration is not None:
        raise UsageError(f"{folder}: is not a work folder, so it has no configuration {configuration}. Leave out -c.")
    return from_images(folder)
