"""The phantom: what it promises to hold, and that it is neither trivial nor hopeless."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from sklearn.ensemble import HistGradientBoostingClassifier

from segpipe.core.errors import UsageError
from segpipe.core.grid import reorientation
from segpipe.core.volume import read_header, read_image_channels, read_labels, require_same_grid
from segpipe.data.phantom import CHANNELS, LABELS, make_phantom

CASES = ["phantom_001", "phantom_002", "phantom_003_scan1", "phantom_003_scan2", "phantom_004", "phantom_005"]


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_phantom(tmp_path_factory.mktemp("data") / "phantom", len(CASES), seed=0)


def image_of(phantom: Path, case_id: str) -> NDArray[np.float32]:
    files = [phantom / "imagesTr" / f"{case_id}_{channel:04d}.nii.gz" for channel in range(len(CHANNELS))]
    return read_image_channels(files).voxels_czyx


def labels_of(phantom: Path, case_id: str) -> NDArray[np.int32]:
    return read_labels(phantom / "labelsTr" / f"{case_id}.nii.gz")[0]


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_the_folder_is_a_dataset_in_nnunet_layout(phantom: Path):
    description = json.loads((phantom / "dataset.json").read_text("utf-8"))
    assert description["channel_names"] == {"0": "T1", "1": "T2"}
    assert description["labels"] == {"background": 0, "organ": 1, "core": 2, "node": 3}
    assert description["numTraining"] == len(CASES)
    assert sorted(p.name for p in (phantom / "labelsTr").iterdir()) == [f"{case}.nii.gz" for case in CASES]
    images = sorted(p.name for p in (phantom / "imagesTr").iterdir())
    assert images == [f"{case}_000{channel}.nii.gz" for case in CASES for channel in (0, 1)]


def test_channels_and_labels_of_a_case_lie_on_one_grid(phantom: Path):
    for case in CASES:
        label = read_header(phantom / "labelsTr" / f"{case}.nii.gz")
        for channel in (0, 1):
            image = read_header(phantom / "imagesTr" / f"{case}_000{channel}.nii.gz")
            require_same_grid(label.grid, image.grid, case)
            assert not image.contradiction


def test_grids_differ_as_real_ones_do(phantom: Path):
    grids = [read_header(phantom / "labelsTr" / f"{case}.nii.gz").grid for case in CASES]
    assert len({g.shape_zyx for g in grids}) >= 5
    assert len({g.spacing_mm for g in grids}) == len(grids)
    assert {"LPS", "RAS", "PSR"} <= {g.orientation for g in grids}
    oblique = [not np.isclose(np.abs(g.affine_ras_mm[:3, :3] / g.spacing_mm[::-1]).max(axis=0), 1).all() for g in grids]
    assert oblique == [False, True, False, False, True, False]
    for grid in grids:
        turn = reorientation(grid, "LPS")
        n_slices, n_rows, n_columns = turn.permute(grid.shape_zyx)
        slice_mm, row_mm, column_mm = turn.permute(grid.spacing_mm)
        assert 20 <= n_slices <= 28 and 40 <= n_rows <= 52 and 42 <= n_columns <= 52
        assert 2.6 <= slice_mm <= 4.0 and 1.75 <= row_mm <= 2.15 and column_mm == pytest.approx(row_mm, abs=1e-5)


def test_every_label_is_there_except_the_node_of_one_patient(phantom: Path):
    for case in CASES:
        present = set(np.unique(labels_of(phantom, case)).tolist())
        assert present == (set(LABELS.values()) - {3} if case == "phantom_002" else set(LABELS.values())), case


def test_two_scans_of_a_patient_show_the_same_organ(phantom: Path):
    def volume_mm3(case: str) -> float:
        grid = read_header(phantom / "labelsTr" / f"{case}.nii.gz").grid
        return float((labels_of(phantom, case) > 0).sum() * np.prod(grid.spacing_mm))

    first, second = volume_mm3("phantom_003_scan1"), volume_mm3("phantom_003_scan2")
    assert first == pytest.approx(second, rel=0.05)  # slices of up to 4 mm
    assert abs(volume_mm3("phantom_001") / first - 1) > 0.03  # other patients differ by more


def test_equal_seeds_give_equal_bytes_and_other_seeds_other_images(phantom: Path, tmp_path: Path):
    again = make_phantom(tmp_path / "again", 2, seed=0)
    other = make_phantom(tmp_path / "other", 1, seed=1)
    for file in sorted(again.rglob("*.nii.gz")):
        assert file.read_bytes() == (phantom / file.relative_to(again)).read_bytes(), file.name
    image = Path("imagesTr/phantom_001_0000.nii.gz")
    assert (other / image).read_bytes() != (again / image).read_bytes()


def test_a_finished_phantom_is_kept_and_a_foreign_folder_refused(tmp_path: Path):
    folder = make_phantom(tmp_path / "phantom", 1, seed=0)
    before = (folder / "dataset.json").stat().st_mtime_ns
    assert make_phantom(folder, 1, seed=0) == folder
    assert (folder / "dataset.json").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="holds something other"):
        make_phantom(folder, 1, seed=1)
    with pytest.raises(UsageError, match="holds something other"):
        make_phantom(tmp_path, 1, seed=0)
    with pytest.raises(UsageError, match="0 cases"):
        make_phantom(tmp_path / "none", 0, seed=0)


def best_window_dice(channel: NDArray[np.float32], truth: NDArray[np.bool_]) -> float:
    """Dice of the best window low < v <= high among 40 quantiles, chosen knowing the truth."""
    edges = np.quantile(channel, np.linspace(0.3, 1, 40))
    n_truth = np.array([truth[channel > edge].sum() for edge in edges])
    n_all = np.array([(channel > edge).sum() for edge in edges])
    hits, chosen = n_truth[:, None] - n_truth, n_all[:, None] - n_all
    return float(np.max(np.where(chosen > 0, 2 * hits / np.maximum(chosen + truth.sum(), 1), 0)))


def test_no_window_of_one_channel_finds_the_organ(phantom: Path):
    for case in CASES:
        image, organ = image_of(phantom, case), labels_of(phantom, case) == LABELS["organ"]
        assert best_window_dice(organ.astype(np.float32), organ) == 1.0  # the search itself works
        for channel in image:
            blurred = gaussian_filter(channel, 0.7)  # kinder than the noisy voxels
            assert best_window_dice(channel, organ) < 0.7
            assert best_window_dice(blurred, organ) < 0.7


def features(phantom: Path, case: str, channels: tuple[int, ...]) -> NDArray[np.float64]:
    """Channels divided by their mean, at three blurs, (voxels, features)."""
    image = image_of(phantom, case)[list(channels)]
    image = image / image.mean(axis=(1, 2, 3), keepdims=True)
    columns = [gaussian_filter(channel, sigma) for channel in image for sigma in (0.7, 1.5, 3.0)]
    return np.stack([c.ravel() for c in columns], axis=1).astype(np.float64)


def learned_dice(phantom: Path, channels: tuple[int, ...]) -> float:
    """Dice of the organ in an unseen patient, by boosted trees on blurred brightness without position."""
    train = ["phantom_001", "phantom_002", "phantom_003_scan1", "phantom_004"]
    x = np.concatenate([features(phantom, case, channels)[::3] for case in train])
    y = np.concatenate([labels_of(phantom, case).ravel()[::3] for case in train])
    model = HistGradientBoostingClassifier(max_iter=40, early_stopping=False, random_state=0).fit(x, y)
    unseen = "phantom_005"
    return dice(labels_of(phantom, unseen).ravel() == 1, model.predict(features(phantom, unseen, channels)) == 1)


def test_the_organ_is_learnable_from_both_channels_and_less_from_one(phantom: Path):
    both = learned_dice(phantom, (0, 1))
    assert both > 0.75
    assert max(learned_dice(phantom, (0,)), learned_dice(phantom, (1,))) < both - 0.2
