"""Folds: no patient on both sides, every case once, balanced, and the same again."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from datasets import tiny_labels, write_cases, write_json, write_tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from segpipe.cli.main import run
from segpipe.core.errors import DataError
from segpipe.core.labels import Label, LabelSet
from segpipe.data.dataset import Case, Dataset
from segpipe.data.splits import (
    Splits,
    fold_table,
    leaks,
    make_splits,
    read_nnunet_splits,
    split_by_site,
    with_fewer_patients,
)
from segpipe.data.stratify import stratify

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
    warnings = make_splits(dataset, presence, seed=0).warnings
    assert [warning.split(" ", 2)[2] for warning in warnings] == ["validates without b (in 2 patients)"] * 3


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


def tagged(labels: list[set[str]], sites: list[str | None], cases_each: int = 1):
    """A dataset of patients with these labels and sites, and its presence."""
    names = sorted(set().union(*labels))
    dataset = Dataset(
        name="tagged",
        layout="csv",
        root="/",
        channels=("MR",),
        labels=LabelSet(labels=tuple(Label(name=name, values=(i + 1,)) for i, name in enumerate(names))),
        cases=tuple(
            Case(case_id=f"p{i:03d}_{j}", patient_id=f"p{i:03d}", images=("x.nii",), site=site)
            for i, site in enumerate(sites)
            for j in range(cases_each)
        ),
        patients_from="here",
    )
    return dataset, {case.case_id: frozenset(labels[int(case.patient_id[1:])]) for case in dataset.cases}


def n_empty(splits: Splits, dataset: Dataset, presence: dict[str, frozenset[str]]) -> int:
    """Pairs of a fold and a label, or site, of which no case is validated."""
    rows = fold_table(splits.folds, dataset, presence)
    by_site = sum(row.n_cases == 0 for row in rows if row.site)
    return by_site + sum(n == 0 for row in rows if row.site is None for n in row.n_with_label.values())


@pytest.mark.parametrize("seed", range(20))
def test_a_rare_label_and_a_small_site_are_in_every_fold(seed: int):
    """40 patients with 2 cases at sites of 20, 13 and 7; `rare` in 7, `big` in 20: no fold need lack anything."""
    random = np.random.default_rng(seed)
    sites = random.permutation([*"A" * 20, *"B" * 13, *"C" * 7]).tolist()
    rare, big = set(random.permutation(40)[:7].tolist()), set(random.permutation(40)[:20].tolist())
    labels = [{"organ", *(["rare"] if i in rare else []), *(["big"] if i in big else [])} for i in range(40)]
    dataset, presence = tagged(labels, sites, cases_each=2)
    splits = make_splits(dataset, presence, seed)
    assert n_empty(splits, dataset, presence) == 0
    assert [len(fold.validation) for fold in splits.folds] == [16] * 5
    assert splits.warnings == ()


@pytest.mark.parametrize("seed", range(10))
def test_no_label_of_many_is_missed_without_need(seed: int):
    """50 patients, 10 labels at 15 % and 10 at 60 %: a label of n patients lacks in max(0, 5 - n) folds."""
    random = np.random.default_rng(seed)
    has = random.random((50, 20)) < np.repeat([0.15, 0.6], 10)
    dataset, presence = tagged([{f"l{j}" for j in np.flatnonzero(row)} for row in has], [None] * 50)
    splits = make_splits(dataset, presence, seed)
    assert n_empty(splits, dataset, presence) == sum(max(0, 5 - n) for n in has.sum(0) if n)
    assert [len(fold.validation) for fold in splits.folds] == [10] * 5


@given(st.integers(4, 8), st.integers(2, 3), st.integers(1, 4), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_as_few_empty_pairs_as_any_assignment(n_patients: int, k: int, n_labels: int, seed: int):
    """All assignments to folds of equal size are tried."""
    random = np.random.default_rng(seed)
    tags = random.random((n_patients, n_labels)) < random.uniform(0.2, 0.6)

    def lacking(fold_of: NDArray[np.int64]) -> int:
        return sum(int((~tags[fold_of == fold].any(0)).sum()) for fold in range(k))

    def sizes(fold_of: NDArray[np.int64]) -> int:
        return int(np.ptp(np.bincount(fold_of, minlength=k)))

    every = (np.array(one) for one in product(range(k), repeat=n_patients))
    fold_of = stratify(tags, tags[:, :0], [1] * n_patients, k, seed)
    assert sizes(fold_of) <= 1
    assert lacking(fold_of) == min(lacking(one) for one in every if sizes(one) <= 1)


@given(st.lists(st.integers(1, 7), min_size=5, max_size=60), st.integers(0, 1000))
def test_cases_are_shared_evenly_too(n_cases: list[int], seed: int):
    """Patients of 1 to 7 cases: folds differ by one patient, and by no more cases than one patient has."""
    fold_of = stratify(np.ones((len(n_cases), 1), bool), np.ones((len(n_cases), 0), bool), n_cases, 5, seed)
    assert np.ptp(np.bincount(fold_of, minlength=5)) <= 1
    assert np.ptp(np.bincount(fold_of, n_cases, 5)) <= 7


def test_each_fold_that_lacks_a_label_is_named():
    """`rare` in one patient: four folds validate without it, and its own fold trains without it."""
    dataset, presence = tagged([{"organ", "rare"}, *[{"organ"}] * 9], [None] * 10)
    splits = make_splits(dataset, presence, 0)
    own = next(i for i, fold in enumerate(splits.folds) if "p000_0" in fold.validation)
    assert splits.warnings == tuple(
        f"fold {i} {'trains' if i == own else 'validates'} without rare (in 1 patient)" for i in range(5)
    )


def test_the_table_counts_patients_by_fold_label_and_site():
    dataset, presence = tagged([{"a", "b"}, {"a"}, {"a"}, {"a", "b"}], ["x", "x", "y", "y"], cases_each=2)
    folds = split_by_site(dataset).folds
    rows = [row.model_dump() for row in fold_table(folds, dataset, presence)]
    assert [(row["fold"], row["site"], row["n_patients"], row["n_cases"]) for row in rows] == [
        (0, None, 2, 4),
        (0, "x", 2, 4),
        (0, "y", 0, 0),
        (1, None, 2, 4),
        (1, "x", 0, 0),
        (1, "y", 2, 4),
    ]
    assert rows[0]["n_with_label"] == {"a": 2, "b": 1}
    assert rows[0]["n_trained_with_label"] == {"a": 2, "b": 1}


def test_one_site_is_left_out_in_each_fold():
    """Patient 4 was scanned at both sites: no fold has it on both sides."""
    dataset, _ = tagged([{"a"}] * 5, ["x", "x", "y", "z", "z"])
    moved = Case(case_id="q", patient_id="p004", images=("x.nii",), site="y")
    splits = split_by_site(dataset.model_copy(update={"cases": (*dataset.cases, moved)}))
    assert [fold.validation for fold in splits.folds] == [("p000_0", "p001_0"), ("p002_0", "q"), ("p003_0", "p004_0")]
    assert splits.folds[1].train == ("p000_0", "p001_0", "p003_0")
    assert splits.folds[2].train == ("p000_0", "p001_0", "p002_0")
    assert splits.source == "3 folds, one for each site left out: x, y, z"
    assert splits.warnings[0].startswith("1 patient has cases at several sites")


@pytest.mark.parametrize(
    ("sites", "found"),
    [
        (["x"] * 3, r"1 site \(x\)\. --folds-by site expects"),
        ([None] * 3, r"0 sites\."),
        (["x", "y", None], r"2 sites, and 1 case without one \(e\.g\. p002_0\)"),
    ],
)
def test_sites_that_cannot_be_left_out(sites: list[str | None], found: str):
    with pytest.raises(DataError, match=found):
        split_by_site(tagged([{"a"}] * 3, sites)[0])


def test_folds_of_an_earlier_version_load(tmp_path: Path):
    fold = {"train": ["a"], "validation": ["b"]}
    source = "2 folds of 2 patients, stratified by labels present and site"
    old = {"k": 2, "seed": 3, "source": source, "folds": [fold, {"train": ["b"], "validation": ["a"]}], "warnings": []}
    assert Splits.load(write_json(tmp_path / "splits.json", old)).source == source


def test_plan_prints_the_folds_by_label_and_site(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Nine patients, b in one of them: two folds validate without b, and one trains without it."""
    names = [f"p{i}" for i in range(9)]
    write_cases(tmp_path, names)
    write_tiny(tmp_path / "labelsTr/p0.nii.gz", tiny_labels((1, 2)))
    for name in names[1:]:
        write_tiny(tmp_path / f"labelsTr/{name}.nii.gz", tiny_labels((1,)))
    sites = ["west", "west", "west", "west", "west", "east", "east", "east", "east"]
    lines = [f"{n},imagesTr/{n}_0000.nii.gz,labelsTr/{n}.nii.gz,{s}" for n, s in zip(names, sites, strict=True)]
    manifest = tmp_path / "cases.csv"
    manifest.write_text("\n".join(["case_id,image_MR,label,site", *lines]))
    plan = ["plan", str(manifest), "-o", str(tmp_path / "work"), "--no-cost", "--no-report", "--device", "cpu"]
    assert run([*plan, "--n-folds", "3"]) == 0
    printed = capsys.readouterr()
    table = printed.out[printed.out.index("Folds:") :].splitlines()
    assert table[:3] == [
        "Folds: 3 folds of 9 patients, equal in number to within one, balanced over",
        "  labels and sites by iterative stratification",
        "  validated          patients  cases  label_1  label_2",
    ]
    rows = [line.split() for line in table[3:12]]
    folds, east, west = ([row for row in rows if row[0] == name] for name in ("fold", "east", "west"))
    assert [row[2:5] for row in folds] == [["3", "3", "3"]] * 3
    assert sorted(row[5] for row in folds) == ["0", "0", "1"]
    assert sorted(row[1] for row in east) == ["1", "1", "2"]
    assert sorted(row[1] for row in west) == ["1", "2", "2"]
    assert printed.err.count("validates without label_2 (in 1 patient)") == 2
    assert printed.err.count("trains without label_2 (in 1 patient)") == 1
    assert run([*plan, "--folds-by", "site", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["folds"]
    assert [(row["fold"], row["n_patients"]) for row in found if row["site"] is None] == [(0, 4), (1, 5)]
    splits = Splits.load(tmp_path / "work/splits.json")
    assert splits.folds[0].train == tuple(names[:5])
    assert splits.folds[0].validation == tuple(names[5:])


@pytest.mark.parametrize("seed", range(10))
def test_a_label_is_balanced_at_each_site(seed: int):
    """Two sites of 15, a label in 5 patients of each: every fold has 3 patients of each site, one of them with it."""
    dataset, presence = tagged(
        [{"organ", "tumour"} if i % 3 == 0 else {"organ"} for i in range(30)], [*"x" * 15, *"y" * 15]
    )
    rows = fold_table(make_splits(dataset, presence, seed).folds, dataset, presence)
    assert [(row.n_patients, row.n_with_label["tumour"]) for row in rows if row.site] == [(3, 1)] * 10


@pytest.mark.parametrize("seed", range(330, 390))
def test_rare_labels_and_many_cases_do_not_make_folds_unequal(seed: int):
    """Labels or cases that few patients have together: folds of unequal size would spread them better."""
    random = np.random.default_rng(seed)
    n_patients, k, n_labels = (int(random.integers(*ends)) for ends in ((6, 24), (3, 6), (1, 8)))
    tags = random.random((n_patients, n_labels)) < random.uniform(0.05, 0.4)
    fold_of = stratify(tags, tags[:, :0], random.integers(1, 8, n_patients).tolist(), k, seed)
    assert np.ptp(np.bincount(fold_of, minlength=k)) <= 1


@pytest.mark.parametrize("seed", range(5))
def test_many_labels_of_few_patients(seed: int):
    """117 labels, each in half of 23 patients: dealing by the rarest label alone leaves 10 to 20 pairs empty."""
    tags = np.random.default_rng(seed).random((23, 117)) < 0.5
    fold_of = stratify(tags, tags[:, :0], [1] * 23, 5, seed)
    assert sorted(np.bincount(fold_of)) == [4, 4, 5, 5, 5]
    assert sum(int((~tags[fold_of == fold].any(0)).sum()) for fold in range(5)) <= 6


@given(patient_lists.filter(lambda patients: len(patients) >= 6), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_smaller_training_sets_lie_within_larger_ones(patients: list[tuple[int, str, str | None]], seed: int):
    owners = [f"p{i}" for i, (n_cases, _, _) in enumerate(patients) for _ in range(n_cases)]
    dataset = dataset_of(*owners)
    presence = {case.case_id: frozenset(patients[int(case.patient_id[1:])][1]) for case in dataset.cases}
    splits = make_splits(dataset, presence, seed, 2)
    if min(len({dataset.by_id[c].patient_id for c in fold.train}) for fold in splits.folds) < 4:
        return
    smaller = [with_fewer_patients(splits, dataset, presence, share, seed) for share in (0.25, 0.5, 0.75, 1.0)]
    assert smaller[-1] == splits
    for few, more in pairwise(smaller):
        for fold, larger in zip(few.folds, more.folds, strict=True):
            assert set(fold.train) < set(larger.train) and fold.validation == larger.validation
            kept, all_of = ({dataset.by_id[c].patient_id for c in one.train} for one in (fold, larger))
            assert not kept & {
                dataset.by_id[c].patient_id for c in set(larger.train) - set(fold.train)
            }  # whole patients
            assert kept < all_of


def test_a_quarter_of_the_training_patients_has_its_share_of_a_rare_label():
    dataset = dataset_of(*(f"p{i}" for i in range(40)))
    rare = {
        case.case_id: frozenset({"a", "b"} if int(case.patient_id[1:]) % 4 == 0 else {"a"}) for case in dataset.cases
    }
    splits = with_fewer_patients(make_splits(dataset, rare, 0), dataset, rare, 0.25, 0)
    for fold in splits.folds:
        assert len(fold.train) == 8  # of 32
        assert sum("b" in rare[case] for case in fold.train) == 2  # of 8


def test_too_few_training_patients_to_leave_some_out():
    dataset = dataset_of("p0", "p1", "p2", "p3")
    with pytest.raises(DataError, match="fold 0: 2 patients to train on, expected 4 or more"):
        with_fewer_patients(make_splits(dataset, everything(dataset), 0, 2), dataset, everything(dataset), 0.5, 0)
