"""core/choices.py and the tables that use it: names of a plan, what follows from them, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from plans import small_plan
from segpipe.bridge.exporters import EXPORTERS, ExportRequest
from segpipe.core.choices import Choice, functions_for
from segpipe.core.errors import PlanError, UsageError
from segpipe.core.records import Record, parse_yaml
from segpipe.networks.cost import cost
from segpipe.networks.parts import (
    ACTIVATIONS,
    BLOCKS,
    BOTTLENECK_ATTENTIONS,
    BOTTLENECK_MASKS,
    BOTTLENECK_MIXERS,
    GATES,
    NORMS,
    PYRAMIDS,
    REGULATORS,
    Parts,
)
from segpipe.networks.spec import KINDS
from segpipe.plan.augmentation import AUGMENTATIONS, LOCAL_CHANGES, Augmentation, Chance
from segpipe.plan.edit import completions, edit_plan
from segpipe.plan.loss import LOSSES, TERMS, Loss
from segpipe.plan.schema import SCHEMES, Normalisation, Plan
from segpipe.plan.training import OPTIMIZERS, SAMPLERS, SCHEDULES, Training
from segpipe.prepare.case import NORMALISE_IN_PLACE
from segpipe.train.augmentation.local import CHANGE
from segpipe.train.optim import MAKE_OPTIMIZER

NETWORK = "configurations.3d_fullres.network"
PLACES: dict[str, tuple[Mapping[str, Any], type[Record] | None]] = {  # where a name stands: its table and its record
    "training.optimizer": (OPTIMIZERS, Training),
    "training.schedule": (SCHEDULES, Training),
    "training.foreground_unit": (SAMPLERS, Training),
    "training.loss": (LOSSES, None),
    "training.loss.terms": (TERMS, Loss),
    "training.augmentation": (AUGMENTATIONS, None),
    "normalisation.0.scheme": (SCHEMES, Normalisation),
    f"{NETWORK}.kind": (KINDS, Parts),
    f"{NETWORK}.parts.norm": (NORMS, Parts),
    f"{NETWORK}.parts.activation": (ACTIVATIONS, Parts),
    f"{NETWORK}.parts.attention": (GATES, Parts),
    f"{NETWORK}.parts.block": (BLOCKS, Parts),
    f"{NETWORK}.parts.regulator": (REGULATORS, Parts),
    f"{NETWORK}.parts.bottleneck": (PYRAMIDS, Parts),
    f"{NETWORK}.parts.bottleneck_attention": (BOTTLENECK_ATTENTIONS, Parts),
    f"{NETWORK}.parts.bottleneck_mask": (BOTTLENECK_MASKS, Parts),
    f"{NETWORK}.parts.bottleneck_mixer": (BOTTLENECK_MIXERS, Parts),
}
OLD_PLAN = Path(__file__).with_name("golden") / "plan_before_0.2.yaml"


@pytest.mark.parametrize("key", PLACES)
def test_an_unknown_name_is_a_sentence_with_the_nearest_one(key: str, tmp_path: Path) -> None:
    table, _ = PLACES[key]
    known = next(iter(table))
    value = {f"{known}x": 1.0} if key.endswith("terms") else f"{known}x"
    expected = rf"{key}.*expected one of {re.escape(', '.join(table))} \(did you mean '{known}'\?\)"
    with pytest.raises(PlanError, match=expected):
        edit_plan(small_plan(), [f"{key}={value}"])
    values: Any = small_plan().model_dump(mode="json", context={"write_defaults": True})
    place = values
    *path, last = key.split(".")
    for step in path:
        place = place[int(step) if isinstance(place, list) else step]
    place[last] = value
    (tmp_path / "plan.json").write_text(json.dumps(values), encoding="utf-8")
    (tmp_path / "plan.yaml").write_text((tmp_path / "plan.json").read_text(), encoding="utf-8")  # JSON is YAML
    with pytest.raises(PlanError, match=expected):
        Plan.load(tmp_path / "plan.yaml")


@pytest.mark.parametrize("key", PLACES)
def test_every_row_says_what_it_is_and_its_parameters_are_fields(key: str) -> None:
    table, record = PLACES[key]
    for name, row in table.items():
        if isinstance(row, Choice):
            assert row.does and not row.does.endswith("."), name
            assert record is None or set(row.parameters) <= set(record.model_fields), name


def test_rows_and_functions_have_the_same_names() -> None:
    table = {"a": Choice(does="first"), "b": Choice(does="second")}
    assert list(functions_for(table, {"b": 2, "a": 1}, "TABLE")) == ["a", "b"]
    with pytest.raises(ValueError, match="TABLE: 'b' has a row and no function"):
        functions_for(table, {"a": 1}, "TABLE")
    with pytest.raises(ValueError, match="TABLE: 'c' has a function and no row"):
        functions_for(table, {"a": 1, "b": 2, "c": 3}, "TABLE")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_states_of_a_row_are_those_that_the_optimizer_keeps(name: str) -> None:
    network = nn.Sequential(nn.Conv3d(1, 3, 1), nn.Conv3d(3, 5, 1), nn.Conv3d(5, 2, 1))
    optimizer = MAKE_OPTIMIZER[name](network, Training(optimizer=name))
    network(torch.randn(1, 1, 2, 2, 2)).sum().backward()
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    kept = sum(value.nbytes for value in states if isinstance(value, torch.Tensor) and value.ndim)
    facts = OPTIMIZERS[name]
    predicted = cost(
        network,
        1,
        2,
        (2, 2, 2),
        1,
        precision="fp32",
        optimizer_states=facts.states,
        gradient_copies=facts.gradient_copies,
    )
    assert predicted.optimizer_bytes == kept


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ("training.adam_beta2=0.95", "adam_beta2 belongs to adamw and muon and spam, not to optimizer sgd"),
        ("training={schedule: cosine, poly_exponent: 2.0}", "poly_exponent belongs to poly, not to schedule cosine"),
    ],
)
def test_a_parameter_that_nothing_reads_is_refused(edit: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        edit_plan(small_plan(), [edit])


def test_a_plan_of_the_version_before_loads_and_trains_by_the_same_values() -> None:
    text = OLD_PLAN.read_text(encoding="utf-8")
    assert "adam_beta2" not in text and "poly_exponent" not in text
    assert (
        Plan.parse(parse_yaml(text.replace("gpu_memory_gb: null", "gpu_memory_gb: 24.0")), "old").gpu_memory_gib == 24
    )
    training = Plan.load(OLD_PLAN).training
    assert (training.adam_beta2, training.adam_epsilon, training.poly_exponent) == (0.99, 1e-8, 0.9)
    group = MAKE_OPTIMIZER["adamw"](nn.Linear(1, 1), training).param_groups[0]
    assert (group["betas"], group["eps"]) == ((0.9, 0.99), 1e-8)
    # written again it says what counts, and nothing that does not
    assert {"adam_beta2", "adam_epsilon", "poly_exponent"} < training.model_dump(mode="json").keys()
    assert not {"nesterov", "adam_beta1"} & training.model_dump(mode="json").keys()


def test_the_values_reach_the_optimizer() -> None:
    network = nn.Linear(2, 2)
    adamw = Training(optimizer="adamw", momentum=0.8, adam_beta2=0.95, adam_epsilon=1e-6)
    assert MAKE_OPTIMIZER["adamw"](network, adamw).param_groups[0]["betas"] == (0.8, 0.95)
    assert MAKE_OPTIMIZER["adamw"](network, adamw).param_groups[0]["eps"] == 1e-6
    assert not MAKE_OPTIMIZER["sgd"](network, Training(nesterov=False)).param_groups[0]["nesterov"]
    muon = Training(optimizer="muon", adam_beta1=0.7, adam_beta2=0.95, adam_epsilon=1e-6, nesterov=False)
    made: Any = MAKE_OPTIMIZER["muon"](network, muon)
    assert (made.betas, made.epsilon, made.nesterov) == ((0.7, 0.95), 1e-6, False)


def test_every_local_change_has_a_chance_and_none_turns_all_off() -> None:
    marked = {
        name
        for name, field in Augmentation.model_fields.items()
        if any(isinstance(mark, Chance) for mark in field.metadata)
    }
    assert {f"p_{name}" for name in LOCAL_CHANGES} < marked
    assert {parameter for row in LOCAL_CHANGES.values() for parameter in row.parameters} < set(
        Augmentation.model_fields
    )
    assert set(LOCAL_CHANGES) == set(CHANGE)
    none = Augmentation.from_name("none")
    assert all(getattr(none, name) == 0 for name in marked) and not none.alters_locally
    assert Augmentation(p_shift=0.1).alters_locally


def test_every_scheme_has_a_function_and_names_what_it_needs() -> None:
    assert list(NORMALISE_IN_PLACE) == list(SCHEMES)
    with pytest.raises(PlanError, match="scheme ct needs low, high, mean, std"):
        Normalisation.parse({"scheme": "ct"}, "plan")
    with pytest.raises(PlanError, match="low belongs to ct, not to scheme zscore"):
        Normalisation.parse({"scheme": "zscore", "low": 1.0}, "plan")


def test_what_an_exporter_does_not_read_is_refused(tmp_path: Path) -> None:
    for row in EXPORTERS.values():
        assert set(row.parameters) <= {"configuration", "folds", "any_orientation"}
    with pytest.raises(UsageError, match=r"--to nnunet-plan: expected one of .* \(did you mean 'nnunet-plans'\?\)"):
        ExportRequest(tmp_path, "nnunet-plan", tmp_path)
    with pytest.raises(UsageError, match="-c and -f: --to nnunet-plans exports the plan as a whole"):
        ExportRequest(tmp_path, "nnunet-plans", tmp_path, "2d", ("fold_0",))


def test_set_is_completed_from_the_tables() -> None:
    assert dict(completions("normalisation.0.scheme=r")) == {
        f"normalisation.0.scheme={name}": SCHEMES[name].does for name in ("rescale_0_1", "rgb_0_1")
    }
    assert completions("training.opt") == [("training.optimizer=", "")]
    assert dict(completions("training.optimizer=")) == {
        f"training.optimizer={name}": row.does for name, row in OPTIMIZERS.items()
    }
    assert [text for text, _ in completions("configurations.2d.network.parts.norm=b")] == [
        "configurations.2d.network.parts.norm=batch"
    ]
    assert [text for text, _ in completions("training.precision=b")] == ["training.precision=bf16"]
    assert completions("training.optimizor=") == completions("training.loss.terms=") == []
