"""report/plan_*.py: the page that `segpipe plan` writes, by its content; ordinary and odd datasets."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from datasets import SHAPE_ZYX, oblique_affine, tiny_image, tiny_labels, write_json, write_nnunet, write_tiny

from plans import REGIONS, small_plan
from segpipe.cli.main import run
from segpipe.core.errors import DataError
from segpipe.core.labels import Label, LabelSet
from segpipe.core.volume import write_image
from segpipe.data.dataset import Case
from segpipe.fingerprint.record import CaseFingerprint, Fingerprint, LabelMeasure
from segpipe.plan.planned_cost import PlannedCost
from segpipe.plan.schema import Plan, PlanCommand
from segpipe.report.plan_page import volume_pictures, write_plan_page
from segpipe.report.plan_page_samples import patch_corners_mm, read_slice, sample_cases
from segpipe.report.plan_page_tables import configuration_table, cost_table, label_table, rare_labels, stage_tables
from segpipe.report.work_report import plan_decisions

CASES = [f"case_{number}" for number in range(6)]


class Page(HTMLParser):
    """Start tags with attributes, headings, rows of all tables as texts, and all text outside of the style."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._inside: list[str] = []
        self.source = file.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self._inside.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._inside.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        inside = self._inside[-1] if self._inside else ""
        if inside in ("td", "th"):
            self.rows[-1][-1] += data
        if inside in ("h1", "h2", "h3"):
            self.headings.append(data)
        if inside != "style":
            self.text += data

    @property
    def pictures(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == "img"]

    def row(self, name: str) -> list[str]:
        """The first row of that name."""
        return next(row for row in self.rows if row and row[0] == name)


def planned(data: Path, work: Path, *options: str) -> Page:
    assert run(["plan", str(data), "-o", str(work), "--no-cost", "-j", "1", *options]) == 0
    return Page(work / "report" / "plan.html")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six cases with a CT and an MR channel; b is missing in the last."""
    root = tmp_path_factory.mktemp("plan")
    data = write_nnunet(root / "data", CASES, 2, channel_names={"0": "CT", "1": "MR"})
    write_tiny(data / "labelsTr" / f"{CASES[-1]}.nii.gz", tiny_labels((1,)))
    planned(data, root / "work")
    return root / "work"


@pytest.fixture(scope="module")
def page(work: Path) -> Page:
    return Page(work / "report" / "plan.html")


def test_planning_writes_a_page_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = write_nnunet(tmp_path / "data", CASES)
    found = planned(data, tmp_path / "work")
    assert f"Page: {tmp_path / 'work' / 'report' / 'plan.html'}\n" in capsys.readouterr().out
    assert found.headings == [
        "tiny: the plan",
        "The data",
        "Voxels and images",
        "Intensities inside the labels",
        "Labels",
        "Sample cases",
        "Decisions and reasons",
        "Configurations",
        "Estimated cost",
        "Folds",
        "The whole plan",
    ]
    assert "segpipe plan ran with --no-cost" in found.text


def test_without_report_there_is_no_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = write_nnunet(tmp_path / "data", CASES)
    command = ["plan", str(data), "-o", str(tmp_path / "work"), "--no-cost", "-j", "1", "--json"]
    assert run([*command, "--no-report"]) == 0
    assert json.loads(capsys.readouterr().out)["report"] is None
    assert not (tmp_path / "work" / "report").exists()
    assert run(command) == 0
    assert Path(json.loads(capsys.readouterr().out)["report"]).is_file()


def test_the_page_needs_nothing_else_and_every_picture_is_told(page: Page):
    assert re.findall(r"""(?:src|href)=["'](?!data:)|url\(|@import|https?://(?!www\.w3\.org)""", page.source) == []
    assert not {"link", "iframe"} & {tag for tag, _ in page.tags}
    assert [attributes for tag, attributes in page.tags if tag == "script"] == [{}]
    assert len(page.pictures) == 6  # voxels and shapes, intensities, volumes, three cases
    for picture in page.pictures:
        assert len(picture["alt"] or "") > 40
        kind, content = re.fullmatch(r"data:image/([a-z+]+);base64,(.+)", picture["src"] or "").groups()  # type: ignore[union-attr]
        data = base64.b64decode(content)
        assert data.startswith(b"\x89PNG") if kind == "png" else ElementTree.fromstring(data).tag.endswith("svg")
    assert len(page.source) < 1_000_000


def test_labels_are_measured(page: Page):
    # a: 2×4×3 voxels of 2.5×1.5×1 mm are 24 × 3.75 = 90 mm³ in a box of 5×6×3 mm
    assert page.row("a") == ["a", "1", "6 of 6", "0.09  [0.09, 0.09]", "1  [1, 1]", "5 × 6 × 3"]
    assert page.row("b")[2] == "5 of 6"


def test_every_decision_has_its_reason(page: Page, work: Path):
    plan = Plan.load(work / "plan.yaml")
    for name, reason in plan.reasons.items():
        assert page.row(name)[2] == reason
    assert page.row("mirror_axes")[1] == "none"
    assert page.row("normalisation")[1].startswith("CT: clipped to ")
    assert page.row("normalisation")[1].endswith("; MR: scaled by each case's own mean and SD")
    assert all(page.row(name)[1] for name in plan.reasons)  # no decision without its value


def test_folds_count_cases_patients_and_labels(page: Page):
    rows = {row[0]: row[1:] for row in page.rows if row and row[0] in ("cases", "patients", "with a", "with b")}
    for name in ("cases", "patients", "with a"):
        pairs = [tuple(map(int, cell.split(" / "))) for cell in rows[name]]
        assert [sum(pair) for pair in pairs] == [6] * 5
        assert sum(validation for _, validation in pairs) == 6
    assert sum(int(cell.split(" / ")[1]) for cell in rows["with b"]) == 5


def test_the_same_folder_gives_the_same_bytes(work: Path):
    first = write_plan_page(work, []).read_bytes()
    assert write_plan_page(work, []).read_bytes() == first


def test_a_folder_without_a_plan_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"dataset\.json: no such file"):
        write_plan_page(tmp_path, [])


def test_a_case_that_cannot_be_read_is_told_and_the_page_written(tmp_path: Path):
    data = write_nnunet(tmp_path / "data", CASES)
    planned(data, tmp_path / "work")
    for case_id in CASES:
        (data / "labelsTr" / f"{case_id}.nii.gz").write_bytes(b"broken")
    found = Page(write_plan_page(tmp_path / "work", []))
    assert found.text.count("No picture of case_") == 3
    assert "Sample cases" not in found.headings


def cost(seconds: float | None) -> PlannedCost:
    return PlannedCost(
        configuration="3d_fullres",
        memory="GPU",
        training_gib=7.25,
        prediction_gib=0.5,
        tera_macs_per_step=1.5,
        seconds_per_step=seconds,
        parameters=31_200_000,
        prepared_gib=0.0625,
    )


def test_costs_stand_in_a_table(work: Path):
    found = Page(write_plan_page(work, [cost(None)]))
    assert [row for row in found.rows if row[:1] == ["3d_fullres"]][-1] == [
        "3d_fullres",
        "7.2",
        "0.5",
        "31.2",
        "1.5",
        "–",
        "–",
        "0.062",
    ]


@pytest.mark.parametrize(
    ("seconds", "budget", "text"),
    [
        (0.5, None, "3 s"),  # 2 epochs of 3 steps
        (50.0, None, "5 min"),
        (1200.0, None, "2 h"),
        (72_000.0, None, "5 days"),
        (0.5, 7200.0, "2 h"),
    ],
)
def test_time_of_a_fold_by_hand(seconds: float, budget: float | None, text: str):
    table = cost_table([cost(seconds)], small_plan(time_budget_seconds=budget))
    assert table.rows[0][6].text == text


def test_configurations_and_stages_by_hand():
    plan = small_plan(patch=(4, 8, 12))
    rows = {row[0].text: row[1].text for row in configuration_table(plan).rows}
    assert rows["voxel, mm"] == "2.5 × 1.5 × 1"
    assert rows["patch, mm"] == "10 × 12 × 12"
    assert rows["patch / median image"] == "40%"  # 4/8 × 8/10 × 12/12
    assert "guided by" not in rows
    stages = [[cell.text for cell in row] for row in stage_tables(plan)[0].rows]
    assert stages[0] == ["0", "2.5 × 1.5 × 1", "4 × 8 × 12", "4", "1 × 1 × 1", "3 × 3 × 3", "1", "1"]
    assert stages[1] == ["1", "5 × 3 × 2", "2 × 4 × 6", "8", "2 × 2 × 2", "3 × 3 × 3", "1", "–"]


def measured(volumes_mm3: Sequence[dict[str, float]]) -> Fingerprint:
    """Cases with labels of these volumes in 1 mm voxels."""
    cases = []
    for number, volumes in enumerate(volumes_mm3):
        labels = {
            name: LabelMeasure(voxels=int(v), volume_mm3=v, n_components=1, extent_mm=(1.0, 1.0, v))
            for name, v in volumes.items()
        }
        case = CaseFingerprint(
            case_id=f"c{number}",
            site=None,
            orientation="RAS",
            spacing_mm=(1.0, 1.0, 1.0),
            shape_zyx=(9, 9, 9),
            cropped_shape_zyx=(9, 9, 9),
            labels=labels,
            content="",
            signature="",
        )
        cases.append(case)
    return Fingerprint(
        orientation="RAS",
        channels=("MR0",),
        cases=tuple(cases),
        intensities=(),
        median_relative_size_after_cropping=1.0,
    )


def test_samples_are_the_smallest_the_median_and_the_largest_case():
    labels = small_plan().labels
    by_rank = {"smallest": "c3", "median": "c1", "largest": "c0"}
    volumes = [{"a": 5.0, "b": 5.0}, {"a": 1.0, "b": 8.0}, {"a": 0.0, "b": 0.0}, {"a": 2.0, "b": 0.0}]
    found = sample_cases(measured(volumes), labels)
    assert {rank: case.case_id for rank, case in found.items()} == by_rank  # c2 has no label
    assert list(sample_cases(measured(volumes[:1]), labels)) == ["only"]
    assert list(sample_cases(measured(volumes[:2]), labels)) == ["smallest", "largest"]
    assert [case.case_id for case in sample_cases(measured(volumes[2:3]), labels).values()] == ["c0"]


def test_overlapping_regions_count_once():
    # whole joins 1 and 2: c1 has the larger tumour, though the sum over regions is larger in c0
    found = sample_cases(measured([{"whole": 6.0, "core": 6.0}, {"whole": 7.0, "core": 1.0}]), REGIONS)
    assert found["largest"].case_id == "c1"


def test_a_label_in_no_case_and_rare_ones_are_pointed_out():
    fingerprint = measured([{"a": 1.0, "b": 0.0}] + [{"a": 0.0, "b": 0.0}] * 10)
    alone, never = rare_labels(fingerprint)
    assert alone.startswith("Rare: a (1 of 11), in less than 10% of the cases")
    assert never.startswith("Rare: b, in no case")
    rows = label_table(fingerprint, small_plan().labels, 5).rows
    assert [cell.text for cell in rows[1]] == ["b", "2", "0 of 11 · rare", "–", "–", "–"]
    assert rows[0][2].is_bad and rows[1][2].is_bad
    assert "none" not in volume_pictures(fingerprint, labels_of("a", "b"))[0].alt


def labels_of(*names: str) -> LabelSet:
    return LabelSet(labels=tuple(Label(name=name, values=(place,)) for place, name in enumerate(names, 1)))


def test_of_188_labels_the_smallest_and_the_largest_are_drawn_and_the_rarest_listed_first():
    names = [f"l{number}" for number in range(188)]
    cases = [{name: 1.0 + number for number, name in enumerate(names)}] * 2
    cases[1] = cases[1] | {"l50": 0.0, "l51": 0.0}
    fingerprint, labels = measured(cases), labels_of(*names)
    (picture,) = volume_pictures(fingerprint, labels)
    assert "Of 188 labels the 10 smallest and the 10 largest" in picture.caption
    assert "l9 0.01 mL" in picture.alt and " l10 " not in picture.alt and "and 8 more" in picture.alt
    table = label_table(fingerprint, labels, 5)
    assert table.is_folded and [row[0].text for row in table.rows[:3]] == ["l50", "l51", "l0"]
    assert volume_pictures(measured([{"a": 0.0}]), labels_of("a")) == ()


def tiny_case(folder: Path) -> Case:
    labels = tiny_labels()
    labels[3, 9, 11] = 1  # the slice of index 3 has one voxel more than that of index 2
    image = write_tiny(folder / "image.nii.gz", tiny_image(0))
    label = write_tiny(folder / "label.nii.gz", labels)
    return Case(case_id="case", patient_id="p", images=(str(image),), label=str(label))


def test_the_slice_goes_through_the_most_labelled_voxels(tmp_path: Path):
    shown = read_slice(tiny_case(tmp_path), small_plan())
    # the files are RAS, shown is LPS: rows and columns run backwards
    np.testing.assert_array_equal(shown.channels[0], tiny_image(0)[3, ::-1, ::-1])
    assert shown.values[0, 0] == 1
    assert (shown.plane, shown.spacing_mm, shown.size_mm) == ("axial", (1.5, 1.0), (15.0, 12.0))


def test_the_slice_lies_across_the_axis_of_the_longest_voxels(tmp_path: Path):
    plan = small_plan().model_copy(update={"axis_order": (2, 1, 0)})  # x first: sagittal
    shown = read_slice(tiny_case(tmp_path), plan)
    assert (shown.plane, shown.spacing_mm, shown.size_mm) == ("sagittal", (2.5, 1.5), (20.0, 15.0))


def test_patches_are_drawn_to_scale_by_hand(tmp_path: Path):
    plan = small_plan()  # 8×12 voxels of 1.5×1 mm in a slice of 15×12 mm
    shown = read_slice(tiny_case(tmp_path), plan)
    corners = patch_corners_mm(shown, np.array([10.0, 6.0]), plan)["3d_fullres"]
    # 12 mm around row 10 would be 4…16; moved back inside 0…15. Columns fill the slice
    assert corners.tolist() == [[3.0, 0.0], [15.0, 12.0]]


def test_a_patch_is_turned_with_the_axes_and_centred_where_it_is_larger(tmp_path: Path):
    plan = small_plan(spacing_mm=(1.0, 1.5, 2.5)).model_copy(update={"axis_order": (2, 1, 0)})
    shown = read_slice(tiny_case(tmp_path), plan)  # rows are Z (20 mm), columns Y (15 mm)
    corners = patch_corners_mm(shown, np.array([10.0, 6.5]), plan)["3d_fullres"]
    # the plan's axis 1 is Y: 8 × 1.5 = 12 mm along columns, 0.5…12.5; axis 2 is Z: 12 × 2.5 = 30 mm along rows
    assert corners.tolist() == [[-5.0, 0.5], [25.0, 12.5]]


def test_the_ignore_value_is_told_and_not_drawn(tmp_path: Path):
    data = write_nnunet(tmp_path / "data", CASES, labels={"background": 0, "a": 1, "ignore": 2})
    found = planned(data, tmp_path / "work")
    assert "voxels of value 2; they are ignored everywhere" in found.text
    assert all("of a." in (picture["alt"] or "") for picture in found.pictures[-3:])


def test_regions(tmp_path: Path):
    labels = {"background": 0, "whole": [1, 2], "core": [2]}
    found = planned(
        write_nnunet(tmp_path / "data", CASES, labels=labels, regions_class_order=[1, 2]), tmp_path / "work"
    )
    assert found.row("whole")[1:4] == ["1, 2", "6 of 6", "0.18  [0.18, 0.18]"]
    assert all("of whole, core." in (picture["alt"] or "") for picture in found.pictures[-3:])


def test_names_are_text_never_markup_or_formulas(tmp_path: Path):
    name = '<script>"$a_^{$" &amp; 肝 ' + "x" * 80
    data = write_nnunet(tmp_path / "data", CASES, labels={"background": 0, name: 1, "b": 2}, channel_names={"0": "$^"})
    found = planned(data, tmp_path / "work")
    assert found.row(name)[1] == "1"
    assert [tag for tag, _ in found.tags].count("script") == 1  # the page's own


@pytest.mark.parametrize("across_xyz", [0, 1, 2])
def test_2d_images_are_seen_from_their_front(tmp_path: Path, across_xyz: int):
    shape = [12, 10, 8]
    shape[2 - across_xyz] = 1  # in z, y, x
    values = np.zeros(shape, np.uint8)
    values[tuple(slice(0, 1) if n == 1 else slice(2, 6) for n in shape)] = 1
    data = write_nnunet(tmp_path / "data", [], labels={"background": 0, "a": 1})
    for number, case_id in enumerate(CASES):
        voxels = np.random.default_rng(number).normal(size=shape).astype(np.float32)
        write_tiny(data / "imagesTr" / f"{case_id}_0000.nii.gz", voxels, np.diag([1.0, 1.0, 1.0, 1.0]))
        write_tiny(data / "labelsTr" / f"{case_id}.nii.gz", values, np.diag([1.0, 1.0, 1.0, 1.0]))
    found = planned(data, tmp_path / "work")
    plane = ("sagittal", "coronal", "axial")[across_xyz]
    assert all(f"{plane} slice" in (picture["alt"] or "") for picture in found.pictures[-3:])


def test_a_4d_file_gives_a_picture_of_every_channel(tmp_path: Path):
    data = tmp_path / "data"
    for case_id in CASES:
        channels = np.stack([tiny_image(0), tiny_image(1), tiny_image(2)])
        write_image(data / "imagesTr" / f"{case_id}.nii.gz", channels, oblique_affine())
        write_tiny(data / "labelsTr" / f"{case_id}.nii.gz", tiny_labels())
    training = [{"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in CASES]
    description = {"modality": {"0": "T1", "1": "T2", "2": "PD"}, "labels": {"0": "background", "1": "a", "2": "b"}}
    write_json(data / "dataset.json", {"name": "four", "numTraining": 6, "training": training} | description)
    found = planned(data, tmp_path / "work")
    assert all("slice of T1, T2, PD with" in (picture["alt"] or "") for picture in found.pictures[-3:])


def test_equal_voxels_and_one_labelled_case(tmp_path: Path):
    data = write_nnunet(tmp_path / "data", CASES, channel_names={"0": "CT"})
    for case_id in CASES:
        write_tiny(data / "imagesTr" / f"{case_id}_0000.nii.gz", np.full(SHAPE_ZYX, 7, np.float32))
    for case_id in CASES[1:]:
        write_tiny(data / "labelsTr" / f"{case_id}.nii.gz", np.zeros(SHAPE_ZYX, np.uint8))
    found = planned(data, tmp_path / "work")
    assert len(found.pictures) == 4
    assert "the case with the only labelled volume" in found.text


def test_published_data(shared_data: Path, tmp_path: Path):
    found = planned(shared_data / "sts_multi", tmp_path / "work")
    assert "only 4 patients: 4 folds instead of 5" in found.text
    assert len(found.pictures) == 6
    assert len(found.source) < 3_000_000


def test_reasons_of_the_rules_say_what_set_changed_afterwards():
    options = ("--set=training.epochs=3", "--set=configurations.3d_fullres.patch_zyx=[8,8,8]", "--preset=auto")
    plan = small_plan().model_copy(
        update={
            "command": PlanCommand(options=options, plan_digest="0"),
            "reasons": {"orientation": "As read.", "3d_fullres": "A patch of 16.", "training": "50 epochs."},
        }
    )
    assert {one.name: one.reason for one in plan_decisions(plan.model_dump(mode="json"))} == {
        "orientation": "As read.",
        "3d_fullres": "A patch of 16. Then changed by --set: patch_zyx.",
        "training": "50 epochs. Then changed by --set: epochs.",
    }
