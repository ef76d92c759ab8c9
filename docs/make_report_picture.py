"""Make docs/pictures/report.png, the top of a report: python docs/make_report_picture.py segpipe-demo/work.

The work folder is what `segpipe demo` left: its scans are made up. Needs Chromium and the extra `test`.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from segpipe.core.figures import with_palette
from segpipe.report.work_report import build_report

WIDTH, HEIGHT = 1200, 1752  # the verdict, the scores and the first row of a case
PICTURE = Path(__file__).resolve().parent / "pictures" / "report.png"


def main(work: Path) -> None:
    """Write the picture."""
    page_file = build_report(work).resolve()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(page_file.as_uri())
        shot = page.screenshot()
        browser.close()
    PICTURE.write_bytes(with_palette(shot))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
