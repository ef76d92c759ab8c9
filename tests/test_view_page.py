"""The page of segpipe view in a headless browser: it draws, obeys buttons and keys, and asks nobody else."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from browser import complaints_of, launched
from datasets import tiny_labels, write_nnunet, write_tiny
from matplotlib.image import imread
from playwright.sync_api import Browser, Page, expect

from segpipe.core.volume import read_labels, write_image, write_mask
from segpipe.data.load import load_dataset
from segpipe.evaluate.evaluation_case import ScoreSettings
from segpipe.evaluate.scores import Origin
from segpipe.evaluate.scoring import MaskPair, score_folder
from segpipe.view.gallery import Gallery, GalleryCase, from_predictions
from segpipe.view.server import ViewServer

ORANGE, SKY_BLUE = (230, 159, 0), (86, 180, 233)  # of the first labels
PALE_ORANGE = (245, 217, 153)  # the first label of the prediction


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as running:
        yield running


@contextmanager
def opened(browser: Browser, gallery: Gallery) -> Iterator[tuple[Page, list[str]]]:
    """The page of a gallery once its first case is drawn, and the list of its complaints."""
    with ViewServer(gallery) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        page = browser.new_page(viewport={"width": 1000, "height": 700})
        try:
            complaints = complaints_of(page)
            page.goto(server.site.url)
            page.wait_for_selector("body[data-shown]", timeout=120_000)  # nothing polled: the page forbids eval
            yield page, complaints
        finally:
            page.close()
            server.shutdown()


@pytest.fixture
def tiny(browser: Browser, tmp_path: Path) -> Iterator[tuple[Page, list[str]]]:
    """An oblique case of two channels: of label 1 the lower half is missed. And a case whose image is damaged."""
    data = write_nnunet(tmp_path / "data", ("c1", "c2"), n_channels=2)
    prediction = tiny_labels()
    prediction[2:4, 2:4, 1:4] = 0
    for case_id in ("c1", "c2"):
        write_tiny(tmp_path / "masks" / f"{case_id}.nii.gz", prediction)
    (data / "imagesTr" / "c2_0000.nii.gz").write_bytes(b"no image")
    with opened(browser, from_predictions(tmp_path / "masks", data, None, None)) as found:
        yield found


def picture(page: Page) -> np.ndarray:
    """What is drawn, lines included, as numbers from 0 to 255 (rows, columns, RGB)."""
    return np.rint(imread(io.BytesIO(page.locator("#stage").screenshot()), format="png")[..., :3] * 255).astype(int)


def n_pixels(page: Page, colour: tuple[int, int, int]) -> int:
    """Pixels that have a colour but for rounding."""
    return int((np.abs(picture(page) - colour).max(axis=-1) < 25).sum())


def press(page: Page, key: str) -> None:
    """Press a key and wait until the page has drawn what it asks for."""
    page.keyboard.press(key)
    page.wait_for_timeout(300)


def test_the_page_begins_at_the_largest_error_of_an_oblique_case(tiny: tuple[Page, list[str]]) -> None:
    page, complaints = tiny
    assert page.title() == "masks"
    place = page.inner_text("#place")  # what the browser finds at the point that Python computed
    assert "reference a" in place and "prediction none" in place
    # the missed block is 3 × 2 × 2 voxels of 1 × 1.5 × 2.5 mm
    assert page.inner_text("#error") == "largest error (0.045 mL)"
    assert page.inner_text("#legend").split("\n") == ["reference", "prediction", "a", "b"]
    assert complaints == []


def test_the_patients_right_is_on_the_left_as_in_the_report(browser: Browser, tmp_path: Path) -> None:
    values = np.zeros((12, 10, 8), np.int16)  # Z, Y, X
    values[:, :, 5:] = 1  # x grows to the patient's right
    for name in ("image", "label"):
        write_image(tmp_path / f"{name}.nii.gz", values[None], np.eye(4))
    case = GalleryCase("c", (tmp_path / "image.nii.gz",), tmp_path / "label.nii.gz")
    with opened(browser, Gallery("t", (case,))) as (page, _):
        press(page, "2")  # axial
        press(page, "o")
        page.locator("#opacity").fill("1")
        page.wait_for_timeout(300)
        is_orange = (np.abs(picture(page) - ORANGE).max(axis=-1) < 25).any(axis=0)
        columns = np.flatnonzero(is_orange)
        assert columns.mean() < len(is_orange) / 2


def test_keys_turn_layers_on_and_off(tiny: tuple[Page, list[str]]) -> None:
    page, complaints = tiny
    both = n_pixels(page, ORANGE)
    press(page, "r")
    assert both > n_pixels(page, ORANGE) == 0 and n_pixels(page, PALE_ORANGE) > 0
    press(page, "p")
    assert page.get_attribute("#prediction", "aria-pressed") == "false"
    assert n_pixels(page, ORANGE) == n_pixels(page, PALE_ORANGE) == 0
    press(page, "d")
    expect(page.locator("#legend")).to_contain_text("missed")  # its map is fetched first
    for key in "dor":  # no differences, no lines, the reference
        press(page, key)
    page.locator("#opacity").fill("1")
    press(page, "2")
    assert n_pixels(page, ORANGE) > 3 * both  # filled
    assert complaints == []


def test_channel_and_window_are_chosen(tiny: tuple[Page, list[str]]) -> None:
    page, complaints = tiny
    first = page.input_value("#low")
    press(page, "c")
    expect(page.locator("#place")).to_contain_text("MR1")
    assert page.input_value("#channel") == "MR1" and page.input_value("#low") != first
    page.select_option("#preset", "lung")
    assert (page.input_value("#low"), page.input_value("#high")) == ("-1350", "150")
    assert complaints == []


def test_a_damaged_case_is_told_and_the_next_one_is_shown(tiny: tuple[Page, list[str]]) -> None:
    page, _ = tiny
    press(page, "j")
    page.wait_for_selector("body[data-shown=c2]")
    assert "c2_0000.nii.gz: cannot be read" in page.inner_text("#message")
    page.get_by_role("button", name="c1").click()
    page.wait_for_selector("body[data-shown=c1]")
    assert page.inner_text("#message") == "" and n_pixels(page, ORANGE) > 0


def test_a_real_case_is_drawn_and_the_worst_comes_first(browser: Browser, shared_data: Path, tmp_path: Path) -> None:
    data, pairs = shared_data / "hippocampus", []
    for shift, file in enumerate(sorted((data / "labelsTr").glob("*.nii.gz"))[:3]):
        reference, _ = read_labels(file)
        write_mask(tmp_path / file.name, np.roll(reference, shift, axis=1).astype(np.uint8), like=file)
        case_id = file.name.removesuffix(".nii.gz")
        pairs.append(MaskPair(file, tmp_path / file.name, Origin(case_id, case_id)))
    score_folder(pairs, load_dataset(data).labels, 1, ScoreSettings(("dice",))).save(tmp_path / "scores.csv")
    with opened(browser, from_predictions(tmp_path, data, None, None)) as (page, complaints):
        assert page.inner_text("#cases button >> nth=0").split()[0] == pairs[2].origin.case_id  # moved farthest
        assert n_pixels(page, ORANGE) > 100
        greys = {tuple(pixel) for pixel in picture(page).reshape(-1, 3)[::7] if np.ptp(pixel) == 0}
        assert len(greys) > 100  # an image, not an empty canvas
        assert complaints == []
