"""segpipe view: which cases in which order, who may ask for what, and where the largest error is."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import nibabel as nib
import numpy as np
import pytest
from datasets import SHAPE_ZYX, oblique_affine, tiny_image, tiny_labels, write_nnunet, write_tiny
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segpipe.core.errors import DataError, SetupError, UsageError
from segpipe.core.figures import label_colours
from segpipe.core.grid import Grid
from segpipe.core.labels import Label, LabelSet
from segpipe.core.volume import write_image
from segpipe.core.work import Work
from segpipe.data.load import load_dataset
from segpipe.evaluate.scores import Origin, Score, ScoreTable
from segpipe.view.case_content import describe, largest_error, read_masks
from segpipe.view.gallery import (
    Gallery,
    GalleryCase,
    from_images,
    from_predictions,
    from_work,
    is_work_folder,
    value_places,
)
from segpipe.view.server import Site, ViewServer, answer

CASES = ("c1", "c2", "c3")


def score(case_id: str, label: str, value: float, status: str = "ok") -> Score:
    origin = Origin(case_id, case_id, "3d_fullres", 0, 0)
    return Score(
        **vars(origin), label=label, metric="dice", value=value, unit="1", status=status,  # type: ignore[arg-type]
        n_reference_vox=int(status != "both_empty"), n_prediction_vox=int(status == "ok"),
    )  # fmt: skip


def write_scores(path: Path) -> None:
    """Mean Dice: c1 0.75, c2 0.5 (both empty counts 1, missed 0), c3 not scored."""
    rows = (score("c1", "a", 0.6), score("c1", "b", 0.9))
    rows += (score("c2", "a", float("nan"), "both_empty"), score("c2", "b", 0.0, "missed"))
    ScoreTable(rows).save(path)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_nnunet(tmp_path / "data", CASES)


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    """Of c1 and c2: the references moved by two voxels along x."""
    for case_id in CASES[:2]:
        write_tiny(tmp_path / "masks" / f"{case_id}.nii.gz", np.roll(tiny_labels(), 2, axis=2))
    return tmp_path / "masks"


def test_predictions_are_shown_with_references_the_worst_first(dataset: Path, masks: Path) -> None:
    write_scores(masks / "scores.csv")
    gallery = from_predictions(masks, dataset, None, None)
    assert [(case.case_id, case.dice) for case in gallery.cases] == [("c2", 0.5), ("c1", 0.75)]
    assert gallery.cases[0].reference == dataset / "labelsTr" / "c2.nii.gz"
    assert gallery.cases[0].prediction == masks / "c2.nii.gz"
    assert gallery.label_names == {1: "a", 2: "b"}


def test_a_work_folder_shows_out_of_fold_masks_and_cases_without_scores_last(dataset: Path, tmp_path: Path) -> None:
    work = Work(tmp_path / "work")
    load_dataset(dataset).save(work.dataset)
    assert not is_work_folder(work.path)  # so far it may be any folder with a dataset.json
    write_scores(work.scores("3d_fullres"))
    write_tiny(work.fold("3d_fullres", "0").validation / "c1.nii.gz", tiny_labels())
    write_tiny(work.fold("3d_fullres", "all").validation / "c2.nii.gz", tiny_labels())  # of a model that saw it
    assert is_work_folder(work.path)
    gallery = from_work(work.path, None)
    assert [case.case_id for case in gallery.cases] == ["c2", "c1", "c3"]
    assert [case.prediction is not None for case in gallery.cases] == [False, True, False]
    with pytest.raises(UsageError, match=r"2d: is not trained in .*; found 3d_fullres"):
        from_work(work.path, "2d")


def test_images_may_be_one_file_for_a_channel_or_a_folder_of_dicom_or_of_anything(dataset: Path) -> None:
    assert [case.reference is not None for case in from_images(dataset).cases] == [True] * 3
    loose = from_images(dataset / "imagesTr")
    assert [case.case_id for case in loose.cases] == ["c1_0000", "c2_0000", "c3_0000"]
    assert [case.case_id for case in from_images(dataset / "labelsTr" / "c1.nii.gz").cases] == ["c1"]


def test_masks_are_paired_with_loose_images_and_loose_references(dataset: Path, masks: Path) -> None:
    (masks / "dseg.tsv").write_text("index\tname\n0\tbackground\n1\tleft part\n")
    gallery = from_predictions(masks, dataset / "imagesTr", dataset / "labelsTr", None)
    assert [case.case_id for case in gallery.cases] == ["c1", "c2"]
    assert [case.reference for case in gallery.cases] == [dataset / "labelsTr" / f"c{i}.nii.gz" for i in (1, 2)]
    assert gallery.label_names[1] == "left part"
    with pytest.raises(DataError, match=r"holds no image of the masks in .* \(c1, c2\)"):
        from_predictions(masks, masks.parent / "data" / "imagesTr" / "c3_0000.nii.gz", None, None)


# The largest error.


def test_the_largest_error_by_hand() -> None:
    wrong = np.zeros(SHAPE_ZYX, bool)
    wrong[0, 0, 0] = True  # one voxel of 1 × 1.5 × 2.5 mm
    wrong[2:7, 3:8, 4:9] = True  # a block of 125 voxels around index (z, y, x) = (4, 5, 6)
    found = largest_error(wrong, Grid(SHAPE_ZYX, np.diag([1.0, 1.5, 2.5, 1.0])))
    assert found is not None
    assert found.point_ras_mm == (6.0, 7.5, 10.0)
    assert (found.volume_mm3, found.wrong_mm3, found.n_pieces) == (125 * 3.75, 126 * 3.75, 2)


def test_the_centre_of_a_ring_lies_in_its_thickest_part_not_in_its_hole() -> None:
    wrong = np.zeros((1, 12, 12), bool)
    wrong[0, 1:11, 1:11] = True
    wrong[0, 2:6, 2:10] = False  # a rim of one voxel, and five rows at one side
    found = largest_error(wrong, Grid((1, 12, 12), np.eye(4)))
    assert found is not None and found.point_ras_mm[1] == 8.0


def test_nothing_wrong_has_no_largest_error() -> None:
    assert largest_error(np.zeros(SHAPE_ZYX, bool), Grid(SHAPE_ZYX, np.eye(4))) is None


@given(arrays(bool, SHAPE_ZYX), st.floats(0, 3))
def test_the_largest_error_is_at_a_wrong_voxel_wherever_the_grid_lies(wrong: np.ndarray, angle: float) -> None:
    grid = Grid(SHAPE_ZYX, oblique_affine(angle))
    found = largest_error(wrong, grid)
    if found is None:
        assert not wrong.any()
        return
    x, y, z = np.rint(np.linalg.solve(grid.affine_ras_mm, [*found.point_ras_mm, 1.0])[:3]).astype(int)
    assert wrong[z, y, x]
    assert found.volume_mm3 <= found.wrong_mm3 == pytest.approx(wrong.sum() * 3.75)


def test_ignored_voxels_are_not_wrong_and_kinds_of_errors_are_told_apart(tmp_path: Path) -> None:
    reference, prediction = np.zeros((2, *SHAPE_ZYX), np.uint8)
    reference[0, 0, :4], prediction[0, 0, :4] = (1, 0, 2, 9), (0, 1, 1, 1)  # missed, spurious, other label, ignored
    paths = [write_tiny(tmp_path / f"{i}.nii.gz", array) for i, array in enumerate((reference, prediction))]
    masks = read_masks(GalleryCase("c", (paths[0],), *paths), 0, 9)
    assert masks.values == (1, 2, 9)
    assert masks.maps["difference"].indices_zyx[0, 0, :5].tolist() == [1, 2, 3, 0, 0]
    assert masks.error is not None and masks.error.wrong_mm3 == pytest.approx(3 * 3.75)


def test_a_faulty_label_map_is_a_note_and_the_other_one_is_shown(dataset: Path, masks: Path) -> None:
    (masks / "c1.nii.gz").write_bytes(b"no image")
    write_tiny(masks / "c2.nii.gz", tiny_labels()[:, :5])
    first, second = from_predictions(masks, dataset, None, None).cases
    damaged, smaller = read_masks(first, 0, None), read_masks(second, 0, None)
    assert list(damaged.maps) == ["reference"] and "c1.nii.gz: cannot be read" in damaged.notes[0]
    assert list(smaller.maps) == ["reference", "prediction"] and "expected 12 × 10 × 8" in smaller.notes[0]
    assert smaller.error is None


# The server.


@pytest.fixture
def server(dataset: Path, masks: Path) -> Iterator[ViewServer]:
    with ViewServer(from_predictions(masks, dataset, None, None)) as running:
        Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


def ask(server: ViewServer, target: str, host: str | None = None, method: str = "GET") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.site.port)
    connection.request(method, target, headers={"Host": host} if host else {})
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, body


def test_a_case_is_served_as_nifti_on_its_grid(server: ViewServer) -> None:
    home = f"/{server.site.token}"
    status, body = ask(server, f"{home}/case/c1/image_0.nii")
    image = nib.Nifti1Image.from_bytes(body)
    assert status == 200
    assert np.array_equal(np.asarray(image.dataobj).T, tiny_image(0))
    assert np.allclose(image.affine, oblique_affine(), atol=1e-5)
    prediction = nib.Nifti1Image.from_bytes(ask(server, f"{home}/case/c1/prediction.nii")[1])
    assert np.array_equal(np.asarray(prediction.dataobj).T, np.roll(tiny_labels(), 2, axis=2))
    info = json.loads(ask(server, f"{home}/case/c1/info.json")[1])
    assert info["channels"] == ["MR0"]
    assert info["maps"] == ["reference", "prediction", "difference"]
    assert info["labels"] == [
        {"value": 1, "name": "a", "colour": [230, 159, 0]},
        {"value": 2, "name": "b", "colour": [86, 180, 233]},
    ]
    assert [one["name"] for one in info["differences"]] == ["missed", "spurious", "other label"]


def test_the_cases_come_in_order(server: ViewServer) -> None:
    found = json.loads(ask(server, f"/{server.site.token}/cases.json")[1])
    assert [case["case_id"] for case in found["cases"]] == ["c1", "c2"]


@pytest.mark.parametrize("name", ["", "style.css", "contours.js", "viewer.js", "niivue.js"])
def test_the_pages_own_files_are_served_and_ask_nothing_of_other_machines(server: ViewServer, name: str) -> None:
    status, body = ask(server, f"/{server.site.token}/{name}")
    assert status == 200 and len(body) > 500
    assert name == "niivue.js" or b"https://" not in body


@pytest.mark.parametrize("target", ["/", "/wrong/", "/cases.json", "/viewer.js", "//", "/é/", "/%00/cases.json"])
def test_without_the_secret_nothing_is_served(server: ViewServer, target: str) -> None:
    assert answer(server.site, f"127.0.0.1:{server.site.port}", target).status == 403
    if target.isascii():
        status, body = ask(server, target)
        assert status == 403 and server.site.token.encode() not in body


@pytest.mark.parametrize("host", ["example.org", "127.0.0.1", "127.0.0.1.example.org", "localhost:1", "[::1]"])
def test_another_hosts_name_is_refused(server: ViewServer, host: str) -> None:
    assert ask(server, f"/{server.site.token}/", host)[0] == 403


@pytest.mark.parametrize(
    "target",
    [
        "case/c9/info.json",
        "case/c3/info.json",  # it is in the dataset, but has no mask
        "case/c1/image_1.nii",
        "case/c1/image_-1.nii",
        "case/c1/uncertainty.nii",
        "case/c1",
        "case/../masks/c1.nii.gz",
        "case/..%2Fmasks/info.json",
        "%2e%2e/server.py",
        "server.py",
        "nothing",
        "page.html",
    ],
)
def test_what_there_is_not_is_404(server: ViewServer, target: str) -> None:
    assert ask(server, f"/{server.site.token}/{target}")[0] == 404


def test_what_is_no_address_is_400(server: ViewServer) -> None:
    assert answer(server.site, f"127.0.0.1:{server.site.port}", "http://[/x").status == 400


def test_a_fault_of_the_viewer_is_a_line_and_no_traceback(
    server: ViewServer, capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        raise KeyError("x")
    except KeyError:
        server.handle_error(None, None)
    err = capfd.readouterr().err
    assert err == "The viewer could not answer a request (KeyError: 'x').\n"


def test_nothing_can_be_written_and_a_faulty_image_says_so(server: ViewServer, dataset: Path) -> None:
    assert ask(server, f"/{server.site.token}/", method="POST")[0] == 501
    status, body = ask(server, f"/{server.site.token}/", method="HEAD")
    assert (status, body) == (200, b"")
    (dataset / "imagesTr" / "c1_0000.nii.gz").write_bytes(b"no image")
    status, body = ask(server, f"/{server.site.token}/case/c1/image_0.nii")
    assert status == 422 and "cannot be read" in json.loads(body)["message"]


def test_channels_of_a_4d_file_are_served_one_by_one(tmp_path: Path) -> None:
    both = np.stack([tiny_image(1), tiny_image(2) * 0 + 0.5])
    write_image(tmp_path / "four.nii.gz", both, oblique_affine())
    site = Site(Gallery("t", (GalleryCase("four", (tmp_path / "four.nii.gz",)),)), "secret", 80)
    second = answer(site, "127.0.0.1:80", "/secret/case/four/image_1.nii")
    assert np.unique(np.asarray(nib.Nifti1Image.from_bytes(second.body).dataobj)).tolist() == [0.5]
    info = json.loads(answer(site, "127.0.0.1:80", "/secret/case/four/info.json").body)
    assert info["channels"] == ["channel 0", "channel 1"] and info["maps"] == []


def test_a_port_in_use_is_an_error_that_says_so(server: ViewServer) -> None:
    with pytest.raises(SetupError, match=f"port {server.site.port} of 127.0.0.1: cannot be used"):
        ViewServer(server.site.gallery, server.site.port)


def _hears_ctrl_c() -> None:
    """Shells let what they start in the background ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_the_command_prints_the_address_and_ends_with_ctrl_c(dataset: Path) -> None:
    command = [sys.executable, "-m", "segpipe", "view", str(dataset), "--no-browser", "--json", "--case", "c2"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_hears_ctrl_c
    ) as process:
        try:
            assert process.stdout is not None
            found = json.loads(process.stdout.readline())
            assert found["n_cases"] == 3 and found["url"].endswith("/#c2")
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()


def test_a_value_has_the_colour_of_its_label_as_in_the_report(tmp_path: Path) -> None:
    """Values 5 and 2 in that order; and regions, whose values have the colour of the smallest region with them."""
    values = tiny_labels()
    values[values == 1], values[0] = 5, 0
    write_tiny(tmp_path / "image.nii.gz", tiny_image(0))
    write_tiny(tmp_path / "label.nii.gz", values)
    case = GalleryCase("c", (tmp_path / "image.nii.gz",), tmp_path / "label.nii.gz")
    plain = LabelSet(labels=(Label(name="five", values=(5,)), Label(name="two", values=(2,))))
    regions = LabelSet(
        labels=(Label(name="whole", values=(2, 5)), Label(name="core", values=(5,))), paint_values=(2, 5)
    )
    for labels in (plain, regions):
        gallery = Gallery("t", (case,), label_places=value_places(labels))
        colours = label_colours(labels.names)
        expected = {
            2: colours["two" if labels is plain else "whole"],
            5: colours["five" if labels is plain else "core"],
        }
        found = {one["value"]: bytes(one["colour"]).hex() for one in describe(case, gallery)["labels"]}
        assert found == {value: colour[1:].lower() for value, colour in expected.items()}
