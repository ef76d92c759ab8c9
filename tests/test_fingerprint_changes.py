"""fingerprint/changes.py and fingerprint/measure.py"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from datasets import tiny_image, tiny_labels, write_cases, write_nnunet, write_tiny

from segpipe.core.errors import DataError
from segpipe.data.dataset import Dataset
from segpipe.data.load import load_dataset
from segpipe.fingerprint.changes import Changes, find_changes, remeasure
from segpipe.fingerprint.measure import load_measured, measure
from segpipe.fingerprint.record import Fingerprint

CASES = ["c0", "c1", "c2"]
NOTHING = Changes(channels=None, labels=(), added=(), removed=(), image_changed=(), label_changed=())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three tiny cases."""
    return write_nnunet(tmp_path / "data", CASES)


@pytest.fixture
def kept(data: Path) -> Path:
    """What was measured of them."""
    path = data.parent / "kept.npz"
    remeasure(path, load_dataset(data), 2)
    return path


def image(data: Path, case_id: str) -> Path:
    return data / "imagesTr" / f"{case_id}_0000.nii.gz"


def label(data: Path, case_id: str) -> Path:
    return data / "labelsTr" / f"{case_id}.nii.gz"


def again(kept: Path, dataset: Dataset) -> Fingerprint:
    """Measured with what is kept; the same as measured from the start."""
    found = remeasure(kept, dataset, 2)
    assert found.to_json() == measure(dataset, 1).to_json()
    return found


def damage_measured(data: Path, case_id: str) -> None:
    """Make a file unreadable behind its signature: whoever reads it fails."""
    stat = image(data, case_id).stat()
    image(data, case_id).write_bytes(bytes(stat.st_size))
    os.utime(image(data, case_id), ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_unchanged_data_are_not_read(data, kept, capsys):
    expected = measure(load_dataset(data), 1)
    for case_id in CASES:
        damage_measured(data, case_id)
    assert remeasure(kept, load_dataset(data), 1) == expected
    assert "unchanged since it was measured." in capsys.readouterr().err
    assert find_changes(load_measured(kept), load_dataset(data)) == NOTHING and not NOTHING


def test_what_changed_is_said_and_only_that_is_measured(data, kept, capsys):
    write_tiny(image(data, "c0"), tiny_image(77))
    for file in (image(data, "c1"), label(data, "c1")):
        file.unlink()
    write_cases(data, ["c3"])
    damage_measured(data, "c2")  # is kept: nobody reads it
    found = find_changes(load_measured(kept), load_dataset(data))
    assert (found.added, found.removed, found.image_changed, found.label_changed) == (("c3",), ("c1",), ("c0",), ())
    assert [case.case_id for case in remeasure(kept, load_dataset(data), 1).cases] == ["c0", "c2", "c3"]
    said = capsys.readouterr().err
    assert "1 case added (c3); 1 case removed (c1); 1 case with a new image (c0). Measuring 2 of 3 cases" in said


def test_a_changed_label_map_is_told_from_a_changed_image(data, kept):
    write_tiny(label(data, "c2"), np.where(tiny_labels() == 2, 2, 0).astype(np.uint8))
    found = find_changes(load_measured(kept), load_dataset(data))
    assert (found.image_changed, found.label_changed) == ((), ("c2",))
    assert again(kept, load_dataset(data)).cases[2].present == {"b"}


def test_files_of_another_time_and_the_same_bytes_are_not_measured_again(data, kept, capsys):
    for case_id in CASES:
        os.utime(image(data, case_id), (1, 1))
    assert find_changes(load_measured(kept), load_dataset(data)) == NOTHING
    capsys.readouterr()
    again(kept, load_dataset(data))
    assert "comparing files" in capsys.readouterr().err
    again(kept, load_dataset(data))  # the new times are known by now
    assert "comparing files" not in capsys.readouterr().err


def test_a_moved_dataset_is_the_same(data, kept):
    assert find_changes(load_measured(kept), load_dataset(data.rename(data.with_name("moved")))) == NOTHING


@pytest.mark.parametrize(
    ("labels", "differing"),
    [
        ({"background": 0, "b": 1, "a": 2}, ("a", "b")),
        ({"background": 0, "a": 1, "ignore": 2}, ("(ignore)", "b")),
        ({"background": 0, "one": 1, "b": 2}, ("a", "one")),
    ],
)
def test_another_list_of_labels_measures_everything_again(data, kept, labels, differing):
    dataset = load_dataset(write_nnunet(data, CASES, labels=labels))
    found = find_changes(load_measured(kept), dataset)
    assert set(found.labels) == set(differing)
    assert f"the list of labels differs ({', '.join(found.labels)})" in str(found)
    again(kept, dataset)


def test_other_channels_measure_everything_again(data, kept):
    dataset = load_dataset(data).model_copy(update={"channels": ("CT",)})
    found = find_changes(load_measured(kept), dataset)
    assert found.channels == (("MR0",), ("CT",)) and str(found) == "the channels were MR0 and are CT"
    assert again(kept, dataset).channels == ("CT",)


def test_a_sentence_names_five_and_counts_the_others():
    many = Changes(None, (), tuple(f"c{i}" for i in range(7)), (), (), ())
    assert str(many) == "7 cases added (c0, c1, c2, c3, c4 and 2 more)"


def test_a_site_is_no_reason_to_measure(data, kept):
    dataset = load_dataset(data)
    sited = dataset.model_copy(update={"cases": tuple(c.model_copy(update={"site": "X"}) for c in dataset.cases)})
    for case_id in CASES:
        damage_measured(data, case_id)
    assert remeasure(kept, sited, 1).sites == {"X": 3}


def test_the_most_frequent_orientation_may_change_with_the_cases(data, kept):
    turned = np.diag([-1.0, -1.0, 2.0, 1.0])
    for number in range(4):
        write_tiny(image(data, f"d{number}"), tiny_image(5), turned)
        write_tiny(label(data, f"d{number}"), tiny_labels(), turned)
    assert again(kept, load_dataset(data)).orientation == "LPS"


def test_cases_measured_beside_a_faulty_one_are_kept(data, capsys):
    path = data.parent / "kept.npz"
    whole = image(data, "c1").read_bytes()
    image(data, "c1").write_bytes(whole[:-200])
    with pytest.raises(DataError, match="c1"):
        remeasure(path, load_dataset(data), 1)
    image(data, "c1").write_bytes(whole)
    again(path, load_dataset(data))
    assert "1 case added (c1). Measuring 1 of 3 cases" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"no zip", None])
def test_a_damaged_store_is_measured_anew(data, kept, capsys, content):
    kept.write_bytes(kept.read_bytes()[:-300] if content is None else content)
    with pytest.raises(DataError, match=r"kept\.npz: cannot be read .* Delete it"):
        load_measured(kept)
    again(kept, load_dataset(data))
    assert "All cases are measured" in capsys.readouterr().err
    assert len(load_measured(kept).cases) == 3


def test_a_case_without_a_labelled_voxel_is_stored_too(data):
    write_tiny(label(data, "c1"), np.zeros_like(tiny_labels()))
    path = data.parent / "kept.npz"
    first = remeasure(path, load_dataset(data), 1)
    assert remeasure(path, load_dataset(data), 1) == first and first.cases[1].present == frozenset()
