"""A model as one file: what comes out is what went in, and a file that was made to do harm does none."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import tiny_image, write_tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import plan_of, write_fold, write_scores, write_work
from safetensors.torch import load_file

import segpipe
from segpipe.cli.main import run
from segpipe.core.errors import SegpipeError, UsageError
from segpipe.core.volume import read_labels
from segpipe.core.work import Work
from segpipe.networks.build import build
from segpipe.networks.initial_weights import start_from
from segpipe.networks.parts import InitialWeights
from segpipe.pipeline.packing import pack
from segpipe.predict.folds import find_folds
from segpipe.predict.package import CARD, MANIFEST, open_model, read_manifest, write_package
from segpipe.predict.postprocess import POSTPROCESSING_FILE, Postprocessing, Steps
from segpipe.train.checkpoint import save_weights

WEIGHTS = "runs/3d_fullres/fold_0/checkpoint.safetensors"
PLAN = "runs/3d_fullres/fold_0/plan.yaml"
Entry = tuple[zipfile.ZipInfo, bytes]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One fold."""
    folder = tmp_path_factory.mktemp("packed")
    pack(write_work(folder / "work", n_folds=1), folder / "m.segpipe.zip")
    return folder / "m.segpipe.zip"


def test_a_packed_model_predicts_as_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = write_work(tmp_path / "work")
    Postprocessing(labels={"a": Steps(keep_largest=True)}).save(work / "runs" / "3d_fullres" / POSTPROCESSING_FILE)
    write_tiny(tmp_path / "in" / "t.nii.gz", tiny_image(1))
    packed = tmp_path / "m.segpipe.zip"
    assert run(["pack", str(work), "-o", str(packed), "--licence", "CC0-1.0", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["written"] == str(packed) and printed["model"]["licence"] == "CC0-1.0"
    common = ["-i", str(tmp_path / "in"), "--device", "cpu", "-j", "1"]
    assert run(["predict", "-m", str(work), "-o", str(tmp_path / "a"), *common]) == 0
    assert run(["predict", "-m", str(packed), "-o", str(tmp_path / "b"), *common]) == 0
    assert (read_labels(tmp_path / "a/t.nii.gz")[0] == read_labels(tmp_path / "b/t.nii.gz")[0]).all()
    assert (tmp_path / "a/prediction.json").read_text("utf-8") == (tmp_path / "b/prediction.json").read_text("utf-8")
    assert run(["predict", "-m", str(packed), "-o", str(tmp_path / "c"), *common, "-f", "4"]) == 2
    said = capsys.readouterr().err
    assert "m.segpipe.zip: has no trained fold 4 (it has 0, 1)" in said
    assert "model.yaml" not in said and "m.segpipe.zip: masks are postprocessed, as it was packed." in said
    assert run(["predict", "-m", str(packed), "-o", str(tmp_path / "c"), *common, "-c", "2d"]) == 2
    said = capsys.readouterr().err
    assert "m.segpipe.zip: no trained configuration '2d' (found: 3d_fullres). Choose one of these with -c." in said
    assert run(["predict", "-m", "none.zip", "-o", str(tmp_path / "c"), *common]) == 2
    said = capsys.readouterr().err
    assert "none.zip: does not exist; expected a work folder, one of its runs/<configuration>, or a file of" in said


def test_a_package_with_other_weights_than_it_was_packed_with_is_refused(packed: Path, tmp_path: Path) -> None:
    other = tmp_path / "w.safetensors"
    torch.manual_seed(7)
    network = build(plan_of().configurations["3d_fullres"].network, 1, 3)
    save_weights(other, network, {"configuration": "3d_fullres", "fold": "0", "finished": "1"})
    edited = rewritten(packed, tmp_path / "m.segpipe.zip", replaced(WEIGHTS, other.read_bytes()))
    with pytest.raises(UsageError, match="was edited: the weights of 3d_fullres/0 are not"):
        segpipe.load(edited)


def test_training_starts_from_the_fold_of_a_package_that_fits(tmp_path: Path) -> None:
    """Two configurations: the weights of the wider one fit a network as wide."""
    plan, packed = plan_of(), tmp_path / "m.segpipe.zip"
    full = plan.configurations["3d_fullres"]
    spec = full.network.model_copy(update={"features": tuple(2 * n for n in full.network.features)})
    wide = full.model_copy(update={"network": spec})
    plan = plan.model_copy(update={"configurations": {**plan.configurations, "wide": wide}})
    for name, number in (("3d_fullres", 0), ("wide", 3), ("wide", 1)):
        write_fold(tmp_path / "work", plan, number, name)
    pack(tmp_path / "work", packed, configurations=["3d_fullres", "wide"], licence="CC0-1.0")
    network = build(spec, 1, 3)
    lines = start_from(InitialWeights(source=str(packed)), network).lines
    assert lines[0].startswith(f"starts from {packed}, runs/wide/fold_1 (licence unknown, stated with them: CC0-1.0)")
    stored = load_file(tmp_path / "work" / "runs" / "wide" / "fold_1" / "checkpoint.safetensors")
    assert all(torch.equal(value, stored[name]) for name, value in network.state_dict().items())
    packed.write_bytes(packed.read_bytes().replace(b'"finished":"1"', b'"finished":"2"'))  # in headers of weights
    with pytest.raises(UsageError, match=r"SHA-256 is wrong|Bad CRC"):
        start_from(InitialWeights(source=str(packed)), network)


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    shutil.copytree(write_work(tmp_path / "a"), tmp_path / "b")
    for name in ("a", "b"):
        pack(tmp_path / name, tmp_path / f"{name}.segpipe.zip")
    assert (tmp_path / "a.segpipe.zip").read_bytes() == (tmp_path / "b.segpipe.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.segpipe.zip") as archive:
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert all(str(tmp_path).encode() not in archive.read(name) for name in archive.namelist())


def test_what_the_manifest_and_the_card_tell(tmp_path: Path) -> None:
    fold, other = (write_fold(tmp_path / "work", plan_of(), number) for number in range(2))
    write_scores(fold, 0, [0.8, 0.9])
    write_scores(other, 1, [0.7])
    manifest = pack(tmp_path / "work", tmp_path / "m.segpipe.zip")
    assert read_manifest(tmp_path / "m.segpipe.zip") == manifest
    facts = manifest.model
    assert facts.folds == {"3d_fullres": ("0", "1")} and facts.n_training_cases == 4 and facts.licence is None
    of_a = facts.scores[0]
    assert (of_a.label, of_a.metric, of_a.n_patients) == ("a", "dice", 3) and of_a.mean == pytest.approx(0.8)
    weights = fold.weights.read_bytes()
    assert manifest.parts[WEIGHTS].sha256 == hashlib.sha256(weights).hexdigest()
    assert manifest.parts[WEIGHTS].size_bytes == len(weights)
    with zipfile.ZipFile(tmp_path / "m.segpipe.zip") as archive:
        card = archive.read(CARD).decode()
        everything = b"".join(archive.read(name) for name in archive.namelist())
    assert "| a | 1 |" in card and "| MR0 | zscore |" in card and "up to 4 cases for each network" in card
    assert "| 3d_fullres | a | dice | 0.800 |" in card and "2 networks, averaged (fold 0, 1)" in card
    assert "None was stated" in card and "no medical device" in card
    assert b"case00" not in everything and b"p00" not in everything  # a name of a case may be a patient's


def test_configurations_are_packed_together_and_with_what_guides_them(tmp_path: Path) -> None:
    plan = plan_of()
    full = plan.configurations["3d_fullres"]
    others = {"3d_lowres": full, "3d_cascade": full.model_copy(update={"previous": "3d_lowres"})}
    plan = plan.model_copy(update={"configurations": plan.configurations | others})
    for name in plan.configurations:
        write_fold(tmp_path / "work", plan, 0, name)
    manifest = pack(tmp_path / "work", tmp_path / "m.segpipe.zip", configurations=["3d_fullres", "3d_cascade"])
    assert set(manifest.model.folds) == set(plan.configurations)
    found = segpipe.load(tmp_path / "m.segpipe.zip", device="cpu").ensemble
    expected = segpipe.load(tmp_path / "work", configurations=["3d_fullres", "3d_cascade"], device="cpu").ensemble
    assert [member.guide is not None for member in found.members] == [False, True]
    assert found.digest == expected.digest
    pack(tmp_path / "work", tmp_path / "c.segpipe.zip", configurations=["3d_cascade"])
    assert len(segpipe.load(tmp_path / "c.segpipe.zip", device="cpu").ensemble.members) == 1


def test_a_card_says_what_is_not_known(packed: Path) -> None:
    with zipfile.ZipFile(packed) as archive:
        card = archive.read(CARD).decode()
    assert "None are known" in card and "who the patients are" in card


def test_names_keep_to_their_cell(tmp_path: Path) -> None:
    plan = plan_of().model_copy(update={"dataset": "a|b\n# `c`"})
    write_fold(tmp_path / "work", plan, 0)
    pack(tmp_path / "work", tmp_path / "m.segpipe.zip")
    with zipfile.ZipFile(tmp_path / "m.segpipe.zip") as archive:
        assert archive.read(CARD).decode().splitlines()[0] == r"# Segmentation model: a\|b # 'c'"


def test_a_card_holds_no_html_and_no_links_of_others(tmp_path: Path) -> None:
    name = '<img src=x onerror="alert(1)">![a](http://x)'
    write_fold(tmp_path / "work", plan_of().model_copy(update={"dataset": name}), 0)
    pack(tmp_path / "work", tmp_path / "m.segpipe.zip", licence="<script>alert(1)</script>")
    with zipfile.ZipFile(tmp_path / "m.segpipe.zip") as archive:
        card = archive.read(CARD).decode()
    assert "<script" not in card and "<img" not in card and "![a]" not in card and "&lt;script" in card


def test_what_is_packed_once_is_not_packed_again(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a file, expected a work folder"):
        pack(packed, tmp_path / "again.segpipe.zip")


def test_a_part_that_would_not_be_read_is_not_written(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no part of a package: runs/\.\./x"):
        write_package(tmp_path / "m.zip", read_manifest(packed).model, {"runs/../x": b""})
    assert not (tmp_path / "m.zip").exists()


def test_a_fold_that_is_still_trained_is_not_packed(tmp_path: Path) -> None:
    for number, finished in enumerate("10"):
        fold = write_fold(tmp_path / "work", plan_of(), number)
        about = {"configuration": "3d_fullres", "fold": str(number), "finished": finished}
        save_weights(fold.weights, build(plan_of().configurations["3d_fullres"].network, 1, 3), about)
    for model, folds in ((tmp_path / "work", ["1"]), (fold.path, ())):
        with pytest.raises(
            UsageError, match=r"fold_1: not trained to the end, .*: a packed model cannot be trained on"
        ):
            pack(model, tmp_path / "m.segpipe.zip", folds=folds)
    assert pack(tmp_path / "work", tmp_path / "m.segpipe.zip").model.folds == {"3d_fullres": ("0",)}


def test_one_network_of_every_case_predicts_packed_or_not_where_no_fold_has_a_number(tmp_path: Path) -> None:
    work = write_work(tmp_path / "work", n_folds=1)
    fold = work / "runs" / "3d_fullres" / "fold_all"
    (work / "runs" / "3d_fullres" / "fold_0").rename(fold)  # as `segpipe import` leaves nnU-Net's fold_all
    about = {"configuration": "3d_fullres", "fold": "all", "finished": "1"}
    save_weights(fold / "checkpoint.safetensors", build(plan_of().configurations["3d_fullres"].network, 1, 3), about)
    pack(work, tmp_path / "m.segpipe.zip")
    found, expected = (segpipe.load(m, device="cpu").ensemble.digest for m in (tmp_path / "m.segpipe.zip", work))
    assert found == expected
    write_fold(work, plan_of(), 3)
    assert [folder.path.name for folder in find_folds(work, None)] == ["fold_3"]


def test_a_line_about_an_opened_model_names_the_package(packed: Path, tmp_path: Path) -> None:
    bare = rewritten(
        packed, tmp_path / "m.segpipe.zip", lambda parts: [p for p in parts if "trained_on" not in p[0].filename]
    )
    notes = segpipe.load(bare, device="cpu").notes
    assert any(note.startswith(f"warning: {bare}: the training images are not") for note in notes)
    with pytest.raises(UsageError, match=f"^{re.escape(str(bare))}: has no trained fold 4"):
        segpipe.load(bare, folds=[4])


def test_nothing_is_left_of_an_opened_model(packed: Path) -> None:
    with open_model(packed) as folder:
        assert Work(folder).fold("3d_fullres", "0").weights.is_file()
    assert not folder.parent.exists()


def entries_of(path: Path) -> list[Entry]:
    with zipfile.ZipFile(path) as archive:
        return [(info, archive.read(info)) for info in archive.infolist()]


def info_of(name: str, mode: int = 0o644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("placeholder")
    info.filename = name
    info.external_attr = mode << 16
    return info


def rewritten(source: Path, target: Path, change: Callable[[list[Entry]], list[Entry]], *, relist: bool = True) -> Path:
    """The package with other entries, by an attacker who also corrects the manifest."""
    entries = change(entries_of(source))
    if relist:
        manifest = next(json.loads(content) for info, content in entries if info.filename == MANIFEST)
        manifest["parts"] = {
            info.filename: {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
            for info, content in entries
            if info.filename != MANIFEST
        }
        entries = [(i, json.dumps(manifest).encode() if i.filename == MANIFEST else c) for i, c in entries]
    with zipfile.ZipFile(target, "w") as archive:
        for info, content in entries:
            archive.writestr(info, content, compress_type=info.compress_type)
    return target


def with_part(name: str, content: bytes = b"x", mode: int = 0o644) -> Callable[[list[Entry]], list[Entry]]:
    return lambda entries: [*entries, (info_of(name, mode), content)]


def replaced(name: str, content: bytes) -> Callable[[list[Entry]], list[Entry]]:
    return lambda entries: [(info, content if info.filename == name else old) for info, old in entries]


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../outside",
        "runs/3d_fullres/../../../outside",
        "runs/../fold_0/plan.yaml",
        "runs\\3d_fullres\\fold_0\\plan.yaml",
        "C:/outside",
        "runs/3d_fullres/fold_0/state.pt",
        "runs/3d_fullres/fold_0/model.pkl",
        "runs/3d_fullres/fold_0/",
        "runs/3d_fullres/fold_00\n/plan.yaml",
        "runs/" + "a" * 300 + "/fold_0/plan.yaml",
        "",
    ],
)
def test_a_path_that_no_model_has_is_refused(name: str, packed: Path, tmp_path: Path) -> None:
    bad = rewritten(packed, tmp_path / "m.zip", with_part(name))
    with pytest.raises(UsageError, match=r"m\.zip: .* is no part of a model; .* Do not use this file"), open_model(bad):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["m.zip"]


def test_a_name_with_a_hidden_end_is_refused(packed: Path, tmp_path: Path) -> None:
    bad = rewritten(packed, tmp_path / "m.zip", with_part(PLAN.replace("0", "1") + "x.pk"), relist=False)
    bad.write_bytes(bad.read_bytes().replace(b"plan.yamlx.pk", b"plan.yaml\0.pk"))
    with pytest.raises(UsageError, match="is no part of a model"), open_model(bad):
        pass


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", [PLAN, PLAN.replace("3d_fullres", "3D_FULLRES")])
def test_a_part_that_stands_twice_is_refused(name: str, packed: Path, tmp_path: Path) -> None:
    bad = rewritten(packed, tmp_path / "m.zip", with_part(name))
    with pytest.raises(UsageError, match="stands twice"), open_model(bad):
        pass


def test_a_link_is_refused(packed: Path, tmp_path: Path) -> None:
    name = "runs/3d_fullres/fold_1/plan.yaml"
    bad = rewritten(packed, tmp_path / "m.zip", with_part(name, b"/etc/passwd", stat.S_IFLNK | 0o777))
    with pytest.raises(UsageError, match="is no plain file"), open_model(bad):
        pass


def test_what_would_grow_is_refused(packed: Path, tmp_path: Path) -> None:
    def bomb(entries: list[Entry]) -> list[Entry]:
        info = info_of("runs/3d_fullres/fold_1/checkpoint.safetensors")
        info.compress_type = zipfile.ZIP_DEFLATED
        return [*entries, (info, bytes(10_000_000))]

    bad = rewritten(packed, tmp_path / "m.zip", bomb)
    assert bad.stat().st_size < 1_000_000
    with pytest.raises(UsageError, match="is compressed"), open_model(bad):
        pass


def test_entries_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """The central directory lists one stored file 50 times: 50 times its size, of few bytes."""
    bad = tmp_path / "m.zip"
    with zipfile.ZipFile(bad, "w") as archive:
        archive.writestr(MANIFEST, "{}")
        archive.writestr("runs/a/fold_0/checkpoint.safetensors", bytes(5000))
        shared = archive.infolist()[1]
        for number in range(1, 50):
            copy = info_of(f"runs/a/fold_{number}/checkpoint.safetensors")
            for field in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(copy, field, getattr(shared, field))
            archive.filelist.append(copy)
    with pytest.raises(UsageError, match="bytes that claim to hold 250002"), open_model(bad):
        pass


def test_a_text_of_unreasonable_size_is_refused(packed: Path, tmp_path: Path) -> None:
    bad = rewritten(packed, tmp_path / "m.zip", replaced(CARD, bytes(2_000_000)))
    with pytest.raises(UsageError, match="has 2000000 bytes"), open_model(bad):
        pass


def test_references_that_stand_for_gigabytes_are_refused(packed: Path, tmp_path: Path) -> None:
    laughs = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
    bad = rewritten(packed, tmp_path / "m.zip", replaced(PLAN, laughs.encode()))
    with pytest.raises(UsageError, match=r"plan\.yaml: is not valid YAML \(more than 131,072 values"), open_model(bad):
        pass


def test_control_characters_in_a_package_are_refused_and_printed_as_text(packed: Path, tmp_path: Path) -> None:
    named = rewritten(packed, tmp_path / "m.zip", replaced(PLAN, b'dataset: "a\\e[2Jb"\n'))
    with pytest.raises(UsageError) as fault, open_model(named):
        pass
    assert "control characters" in str(fault.value) and "\x1b" not in str(fault.value)


@pytest.mark.parametrize("name", [MANIFEST, PLAN, PLAN.replace("plan.yaml", "trained_on.json")])
@pytest.mark.parametrize("text", [b"[" * 100_000, b"\xff\xfe\0", b'{"a": ' + b"9" * 5000 + b"}", b"", b"null"])
def test_a_text_made_to_break_the_reader_is_an_error_that_names_the_file(
    name: str, text: bytes, packed: Path, tmp_path: Path
) -> None:
    bad = rewritten(packed, tmp_path / "m.zip", replaced(name, text), relist=name != MANIFEST)
    with pytest.raises(SegpipeError, match=r"m\.zip"), open_model(bad):
        pass


def test_an_edited_part_is_named(packed: Path, tmp_path: Path) -> None:
    bad = rewritten(packed, tmp_path / "m.zip", replaced(CARD, b"The best model."), relist=False)
    with pytest.raises(UsageError, match=r"m\.zip: README\.md is damaged or was edited: SHA-256"), open_model(bad):
        pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entries: [e for e in entries if e[0].filename != WEIGHTS], "checkpoint.safetensors is missing"),
        (with_part("runs/3d_fullres/postprocessing.yaml"), "postprocessing.yaml is not in its manifest.json"),
        (lambda entries: [e for e in entries if e[0].filename != MANIFEST], "holds no manifest.json"),
    ],
    ids=["missing", "extra", "foreign"],
)
def test_parts_are_those_of_the_manifest(
    change: Callable[[list[Entry]], list[Entry]], message: str, packed: Path, tmp_path: Path
) -> None:
    bad = rewritten(packed, tmp_path / "m.zip", change, relist=False)
    with pytest.raises(UsageError, match=message), open_model(bad):
        pass


def test_a_file_that_is_no_zip_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.segpipe.zip").write_text("hello")
    with (
        pytest.raises(UsageError, match=r"m\.segpipe\.zip: cannot be read as a model"),
        open_model(tmp_path / "m.segpipe.zip"),
    ):
        pass


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_truncated_or_damaged_file_is_an_error_or_means_the_same(
    data: st.DataObject, packed: Path, tmp_path: Path
) -> None:
    """A flipped bit either is found, or lies where nothing is read, such as a date."""
    good = packed.read_bytes()
    place = data.draw(st.integers(0, len(good) - 1))
    if data.draw(st.booleans()):
        content = good[:place]
    else:
        content = good[:place] + bytes([good[place] ^ 1 << data.draw(st.integers(0, 7))]) + good[place + 1 :]
    (tmp_path / "m.zip").write_bytes(content)
    with open_model(packed) as folder:
        expected = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    try:
        with open_model(tmp_path / "m.zip") as folder:
            found = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    except SegpipeError as fault:
        assert "m.zip" in str(fault)
    else:
        assert found == expected
