"""Folds: no patient on both sides, every case once, balanced, and the same again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from datasets import write_json
from hypothesis import given
from hypothesis import strategies as st

from segpipe.core.errors import DataError
from segpipe.core.labels import Label, LabelSet
from segpipe.data.dataset import Case, Dataset
from segpipe.data.splits import Splits, leaks, make_splits, read_nnunet_splits

LABELS = LabelSet(labels=(Label(name="a", values=(1,)), Label(name="b", values=(2,))))


def dataset_of(*patients: str, sites: dict[str, str] | None = None) -> Dataset:
    """One case for each entry, of that patient."""
    cases = [
        Case(case_id=f"c{i:03d}", patient_id=patient, images=("x.nii",), site=(sites or {}).get(patient))
        for i, patient in enumerate(patients)
    ]
    return Dataset(
        name="tiny", layout="csv", root="/", channels=("MR",), labels=LABELS, cases=tuple(cases), patients_from="here"
    )


def everything(dataset: Dataset) -> dict[str, frozenset[str]]:
    return {case.case_id: frozenset({"a", "b"}) for case in dataset.cases}


def test_ten_patients_give_five_folds_of_two():
    dataset = dataset_of(*(f"p{i}" for i in range(10)))
    splits = make_splits(dataset, everything(dataset), seed=0)
    assert [len(fold.validation) for fold in splits.folds] == [2] * 5
    assert [len(fold.train) for fold in splits.folds] == [8] * 5
    assert splits.warnings == ()


patient_lists = st.lists(
    st.tuples(st.integers(1, 4), st.sampled_from(["", "a", "b", "ab"]), st.sampled_from([None, "x", "y"])),
    min_size=2,
    max_size=30,
)


@given(patient_lists, st.integers(-5, 2**33), st.integers(2, 8))
def test_folds_share_no_patient_and_cover_all(patients: list[tuple[int, str, str | None]], seed: int, k: int):
    owners = [f"p{i}" for i, (n_cases, _, _) in enumerate(patients) for _ in range(n_cases)]
    sites = {f"p{i}": site for i, (_, _, site) in enumerate(patients) if site}
    dataset = dataset_of(*owners, sites=sites)
    presence = {case.case_id: frozenset(patients[int(case.patient_id[1:])][1]) for case in dataset.cases}
    splits = make_splits(dataset, presence, seed, k)
    assert splits.k == len(splits.folds) == min(k, len(patients))
    patient_of = {case.case_id: case.patient_id for case in dataset.cases}
    for fold in splits.folds:
        assert not {patient_of[c] for c in fold.train} & {patient_of[c] for c in fold.validation}
        assert sorted((*fold.train, *fold.validation)) == sorted(patient_of)
    assert Counter(c for fold in splits.folds for c in fold.validation) == Counter(list(patient_of))


@given(st.integers(2, 60), st.integers(2, 6), st.integers(0, 100))
def test_folds_of_one_stratum_differ_by_one_patient(n_patients: int, k: int, seed: int):
    dataset = dataset_of(*(f"p{i}" for i in range(n_patients)))
    sizes = [len(fold.validation) for fold in make_splits(dataset, everything(dataset), seed, k).folds]
    assert max(sizes) - min(sizes) <= 1


def test_a_rare_label_and_sites_are_spread():
    """Of 20 patients 5 have b, and 10 are of each site: every fold of four gets one with b and two of each site."""
    sites = {f"p{i}": "x" if i % 2 else "y" for i in range(20)}
    dataset = dataset_of(*(f"p{i}" for i in range(20)), sites=sites)
    by_label = {c.case_id: frozenset({"a", "b"} if int(c.patient_id[1:]) < 5 else {"a"}) for c in dataset.cases}
    no_sites = dataset_of(*(f"p{i}" for i in range(20)))
    for fold in make_splits(no_sites, by_label, seed=3).folds:
        assert sum("b" in by_label[c] for c in fold.validation) == 1
    site_of = {case.case_id: case.site for case in dataset.cases}
    for fold in make_splits(dataset, everything(dataset), seed=3).folds:
        assert Counter(site_of[c] for c in fold.validation) == {"x": 2, "y": 2}


def test_order_of_cases_changes_nothing_and_the_seed_does():
    dataset = dataset_of(*(f"p{i % 9}" for i in range(20)))
    turned = dataset.model_copy(update={"cases": dataset.cases[::-1]})
    first = make_splits(dataset, everything(dataset), seed=1)
    assert first == make_splits(turned, everything(dataset), seed=1)
    assert first.folds != make_splits(dataset, everything(dataset), seed=2).folds


def test_three_patients_give_three_folds_and_a_warning():
    dataset = dataset_of("p1", "p1", "p2", "p3")
    splits = make_splits(dataset, everything(dataset), seed=0)
    assert splits.k == 3
    assert splits.warnings == ("only 3 patients: 3 folds instead of 5",)


def test_a_label_of_two_patients_is_named():
    dataset = dataset_of(*(f"p{i}" for i in range(6)))
    presence = {c.case_id: frozenset({"a", "b"} if c.patient_id in ("p0", "p1") else {"a"}) for c in dataset.cases}
    assert "label b occurs in 2 patients" in make_splits(dataset, presence, seed=0).warnings[0]


def test_one_patient_cannot_be_split():
    dataset = dataset_of("p", "p", "p")
    with pytest.raises(DataError, match=r"3 cases of 1 patient; expected at least 2"):
        make_splits(dataset, everything(dataset), seed=0)


def test_programmers_faults():
    dataset = dataset_of("p", "q")
    with pytest.raises(ValueError, match="k is 1"):
        make_splits(dataset, everything(dataset), seed=0, k=1)
    with pytest.raises(ValueError, match=r"presence leaves out \['c001'\]"):
        make_splits(dataset, {"c000": frozenset()}, seed=0)


def test_splits_return_from_their_file(tmp_path: Path):
    dataset = dataset_of("p", "q", "r")
    splits = make_splits(dataset, everything(dataset), seed=0)
    splits.save(tmp_path / "splits.json")
    assert Splits.load(tmp_path / "splits.json") == splits


def test_nnunet_splits_are_taken_unchanged_and_leaks_named(tmp_path: Path):
    dataset = dataset_of("p1", "p1", "p2", "p3")
    path = write_json(
        tmp_path / "splits_final.json",
        [{"train": ["c002", "c001"], "val": ["c000"]}, {"train": ["c000"], "val": ["c002"]}],
    )
    splits = read_nnunet_splits(path, dataset)
    assert [(fold.train, fold.validation) for fold in splits.folds] == [
        (("c002", "c001"), ("c000",)),
        (("c000",), ("c002",)),
    ]
    assert splits.seed is None
    loud, sentence = leaks(splits.folds, dataset)
    assert loud.startswith("PATIENTS ON BOTH SIDES OF 1 OF 2 FOLDS. ")
    assert sentence == "fold 0: 1 patient on both sides (p1)"
    assert splits.warnings == (
        *leaks(splits.folds, dataset),
        "2 cases never validated (c001, c003)",
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"train": ["c000"], "val": ["c01"]}], "fold 0: 1 case.*'c01'.* Did you mean 'c001'"),
        ([{"train": ["c000"], "val": ["c000"]}], "cases on both sides: c000"),
        ([{"train": ["c000"], "val": ["c001", "c001"]}], "cases twice on one side: c001"),
        ([{"train": [["c000"]], "val": ["c001"]}], r"1 case is not in the dataset, e\.g\. \['c000'\]"),
        ([{"train": ["c000"], "val": []}], "at least one case to train on and one to validate with"),
        ([{"train": ["c000"]}], r"fold 0: expected \{"),
        ({"folds": []}, "expected a list of folds"),
    ],
)
def test_wrong_nnunet_splits(tmp_path: Path, content: object, message: str):
    path = write_json(tmp_path / "splits_final.json", content)
    with pytest.raises(DataError, match=message):
        read_nnunet_splits(path, dataset_of("p1", "p2"))


def test_a_case_validated_twice_is_named(tmp_path: Path):
    folds = [{"train": ["c000"], "val": ["c001"]}, {"train": ["c000"], "val": ["c001"]}]
    splits = read_nnunet_splits(write_json(tmp_path / "s.json", folds), dataset_of("p1", "p2"))
    assert "1 case validated more than once (c001)" in splits.warnings


@given(st.lists(st.integers(0, 9), min_size=4, max_size=30).filter(lambda ids: len(set(ids)) > 1), st.integers(0, 5))
def test_folds_of_segpipe_leak_nothing(ids: list[int], seed: int):
    dataset = dataset_of(*(f"p{i}" for i in ids))
    assert leaks(make_splits(dataset, everything(dataset), seed).folds, dataset) == ()
