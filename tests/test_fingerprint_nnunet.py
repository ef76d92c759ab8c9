"""A second opinion: nnunetv2's fingerprint extractor on the same files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from datasets import tiny_image, tiny_labels, write_nnunet, write_tiny

from segpipe.data.dataset import Dataset
from segpipe.data.load import load_dataset
from segpipe.fingerprint.measure import measure

_N_SAMPLES = 20_000  # for each case
_BIN = 2.0**-11  # relative width


def assert_as_nnunet(dataset: Dataset) -> None:
    """Cases exactly; intensities within the error of nnU-Net's sample, which is drawn with replacement."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    theirs = [
        DatasetFingerprintExtractor.analyze_case(list(case.images), case.label, SimpleITKIO, _N_SAMPLES)
        for case in dataset.cases
    ]
    ours = measure(dataset, 2)
    assert [case.spacing_mm for case in ours.cases] == [pytest.approx(tuple(t[1]), abs=1e-6) for t in theirs]
    assert [case.cropped_shape_zyx for case in ours.cases] == [tuple(t[0]) for t in theirs]
    assert ours.median_relative_size_after_cropping == np.median([t[4] for t in theirs])
    for channel, seen in enumerate(ours.intensities):
        sample = np.concatenate([t[2][channel] for t in theirs]).astype(np.float64)
        error = 5 / sample.size**0.5  # five standard errors
        assert seen.mean == pytest.approx(sample.mean(), abs=error * sample.std())
        kurtosis = np.mean(((sample - sample.mean()) / sample.std()) ** 4)
        assert seen.std == pytest.approx(sample.std(), rel=error * kurtosis**0.5)
        assert seen.min <= sample.min() and seen.max >= sample.max()
        for value, fraction in (
            (seen.percentile_00_5, 0.005),
            (seen.median, 0.5),
            (seen.percentile_99_5, 0.995),
        ):
            spread = error * (fraction * (1 - fraction)) ** 0.5
            low, high = np.quantile(sample, (fraction - spread, fraction + spread))
            assert low - _BIN * abs(low) <= value <= high + _BIN * abs(high)


def part_of(folder: Path, step: int) -> Dataset:
    dataset = load_dataset(folder)
    return dataset.model_copy(update={"cases": dataset.cases[::step]})


@pytest.mark.parametrize(("name", "step"), [("hippocampus", 12), ("acdc", 7)])
def test_published_data_are_measured_as_nnunet_does(shared_data, name, step):
    assert_as_nnunet(part_of(shared_data / name, step))


def test_two_channels_cases_of_unequal_size_and_cropping_are_measured_as_nnunet_does(tmp_path):
    folder = write_nnunet(tmp_path, ["c0", "c1", "c2"], n_channels=2)
    for number, case_id in enumerate(("c0", "c1")):  # in c2 nothing is cropped
        for channel in range(2):
            voxels = tiny_image(number + 3 * channel) * 10 ** (channel + number)
            voxels[:, : number + 1 + channel, :] = 0
            voxels[:, :, 9 + number :] = 0
            write_tiny(folder / "imagesTr" / f"{case_id}_{channel:04d}.nii.gz", voxels)
    few = tiny_labels()
    few[:, 3:] = 0
    write_tiny(folder / "labelsTr" / "c1.nii.gz", few)
    assert_as_nnunet(load_dataset(folder))
