"""nnU-Net's plans.json read back: equal to what was written, in its old keys too; the odd is refused."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import write_nnunet
from hypothesis import given
from hypothesis import strategies as st
from nnunet_files import exported, plan_files, with_intensities

from segpipe.bridge.nnunet_plans_read import read_nnunet_plans
from segpipe.cli.main import run
from segpipe.core.errors import PlanError
from segpipe.core.labels import Label, LabelSet
from segpipe.plan.schema import Plan

LABELS = LabelSet(labels=(Label(name="a", values=(1,)),))
LARGE = {  # so that every configuration is planned
    "spacings": [[1.5, 1.0, 1.0]] * 3,
    "shapes_after_crop": [[400, 500, 600]] * 3,
    "median_relative_size_after_cropping": 0.5,
}
DATASET = {"channel_names": {"0": "CT", "1": "T1"}, "labels": {"background": 0, "a": 1}, "numTraining": 3}


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    work = plan_files(tmp_path_factory.mktemp("plans"), with_intensities(LARGE, 2), DATASET, "--preset", "nnunet")
    return exported(work)


def read(folder: Path, plans: dict[str, Any]) -> Plan:
    (folder / "plans.json").write_text(json.dumps(plans))
    return read_nnunet_plans(folder / "plans.json", ("CT", "T1"), LABELS, "LPS", "0123456789ab")


def old_keys(plans: dict[str, Any]) -> dict[str, Any]:
    """As nnU-Net wrote it before version 2.4."""
    old = copy.deepcopy(plans)
    for configuration in old["configurations"].values():
        if "architecture" not in configuration:
            continue
        architecture = configuration.pop("architecture")
        stages = architecture["arch_kwargs"]
        configuration |= {
            "UNet_class_name": architecture["network_class_name"].rsplit(".", 1)[1],
            "UNet_base_num_features": stages["features_per_stage"][0],
            "unet_max_num_features": stages["features_per_stage"][-1],
            "n_conv_per_stage_encoder": stages["n_conv_per_stage"],
            "n_conv_per_stage_decoder": stages["n_conv_per_stage_decoder"],
            "pool_op_kernel_sizes": stages["strides"],
            "conv_kernel_sizes": stages["kernel_sizes"],
        }
    return old


@pytest.mark.parametrize("form", [copy.deepcopy, old_keys])
def test_what_is_read_is_written_again(form: Callable[..., dict[str, Any]], plans: dict[str, Any], tmp_path: Path):
    (tmp_path / "plans.json").write_text(json.dumps(form(plans)))
    fingerprint = with_intensities(LARGE, 2)
    work = plan_files(tmp_path / "w", fingerprint, DATASET, "--nnunet-plans", str(tmp_path / "plans.json"))
    assert {"3d_lowres", "3d_cascade_fullres"} < set(plans["configurations"])
    assert exported(work) == plans


def test_a_preset_beside_a_plans_file_is_a_contradiction(plans: dict[str, Any], tmp_path: Path, capsys):
    file = tmp_path / "plans.json"
    file.write_text(json.dumps(plans))
    for option in (["--preset", "resenc_l"], ["--gpu-memory", "24"]):
        assert run(["plan", "data", "-o", str(tmp_path / "work"), "--nnunet-plans", str(file), *option]) == 2
        assert "Leave out --preset and --gpu-memory" in capsys.readouterr().err


def test_a_folder_holds_the_plan_of_images_or_of_nnunets_files_never_of_both(tmp_path: Path, capsys):
    data = write_nnunet(tmp_path / "data", [f"c{i}" for i in range(6)])
    work = plan_files(tmp_path, with_intensities(LARGE, 2), DATASET, "--preset", "nnunet")
    images = ["plan", str(data), "-o", str(work), "--preset", "nnunet", "--no-cost", "--no-report"]
    assert run(images) == 0 and not (work / "nnunet_dataset.json").exists()
    files = ["--nnunet-fingerprint", str(tmp_path / "dataset_fingerprint.json")]
    files += ["--nnunet-dataset", str(tmp_path / "dataset.json")]
    assert run(["plan", *files, "-o", str(work)]) == 2
    assert "holds the plan of a dataset with images" in capsys.readouterr().err


REFUSED = [  # place in plans.json, value, what is said
    ("configurations.2d.architecture.arch_kwargs.nonlin", "torch.nn.ReLU", "found 'torch.nn.ReLU', expected 'torch.nn"),
    ("configurations.2d.architecture.arch_kwargs.nonlin", None, "nonlin: found None, expected 'torch.nn"),
    ("configurations.2d.architecture.arch_kwargs.n_stages", 99, "features_per_stage for n_stages 99"),
    ("configurations.2d.architecture.network_class_name", "a.B", "network 'B', expected one of PlainConvUNet"),
    ("configurations.2d.normalization_schemes", ["NoNormalization"] * 2, "3d_lowres: normalises differently from 2d"),
    ("configurations.2d.use_mask_for_norm", [True], "2 normalization_schemes, but 1 use_mask_for_norm"),
    ("configurations.2d.normalization_schemes", [["zscore"]] * 2, "normalization_schemes: found \\['zscore'\\]"),
    ("configurations.2d.patch_size", None, "configurations.2d: patch_size: found 'None', expected a list"),
    ("configurations.3d_cascade_fullres.inherits_from", ["2d"], "expected another configuration"),
    ("foreground_intensity_properties_per_channel.0.std", "big", "0: std: found 'big', expected a number"),
]


@pytest.mark.parametrize(("key", "value", "message"), REFUSED)
def test_what_segpipe_cannot_do_is_refused(key: str, value: Any, message: str, plans: dict[str, Any], tmp_path: Path):
    odd = copy.deepcopy(plans)
    _put(odd, key.split("."), value)
    with pytest.raises(PlanError, match=message):
        read(tmp_path, odd)


def _put(values: Any, path: list[Any], value: Any) -> None:
    for step in path[:-1]:
        values = values[step]
    values[path[-1]] = value


def _places(values: Any) -> Iterator[list[Any]]:
    below = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for step, value in below:
        yield [step]
        yield from ([step, *place] for place in _places(value))


ODD = st.sampled_from([None, "x", -1, 0, 1.5, True, [], {}, [1], [[1]], {"a": 1}, float("nan"), 10**30])


@given(data=st.data())
def test_any_odd_value_is_read_or_refused(data: st.DataObject, plans: dict[str, Any], tmp_path_factory):
    odd = data.draw(st.sampled_from([copy.deepcopy, old_keys]))(plans)
    _put(odd, data.draw(st.sampled_from(list(_places(odd)))), data.draw(ODD))
    with contextlib.suppress(PlanError):
        read(tmp_path_factory.getbasetemp(), odd)
