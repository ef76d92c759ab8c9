"""States and weights on disk: whole, known to be whole, and what happens if they are not."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from segpipe.core.errors import UsageError
from segpipe.core.work import FoldFolder
from segpipe.train.checkpoint import load_state, load_weights, save_state, save_weights, write_history
from segpipe.train.weights_header import about_weights


def state_at(iteration: int) -> dict[str, object]:
    """All that a state holds."""
    empty: dict[str, object] = {"optimizer": {}, "scaler": {}, "average": {}, "average_steps": 0, "finished": False}
    where = {"iteration": iteration, "epoch": 1, "seconds": 1.0, "history": []}
    return empty | where | {"network": {"w": torch.full((3,), float(iteration))}}


def folder_with_states(path: Path, *iterations: int) -> FoldFolder:
    """States saved one after the other, weights beside the last one."""
    folder = FoldFolder(path)
    for iteration in iterations:
        save_state(folder, state_at(iteration))
        save_weights(folder.weights, nn.Conv3d(1, 1, 1), {"iteration": str(iteration)})
    return folder


def damage(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(content)


def test_the_newest_state_is_read_and_the_one_before_is_kept(tmp_path):
    folder = folder_with_states(tmp_path, 10, 20, 30)
    state = load_state(folder)
    assert state is not None and state["iteration"] == 30 and state["network"]["w"].tolist() == [30, 30, 30]
    assert torch.load(folder.previous_state, weights_only=True)["iteration"] == 20
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint.safetensors",
        "state.previous.pt",
        "state.pt",
    ]


def test_the_hash_is_the_comment_of_the_archive(tmp_path):
    content = folder_with_states(tmp_path, 10).state.read_bytes()
    assert hashlib.sha256(content[:-64]).hexdigest().encode() == content[-64:]
    assert content[-66:-64] == b"\x40\x00"  # 64, as the zip format has it


def test_a_damaged_state_is_set_aside_and_the_one_before_used(tmp_path, capsys):
    folder = folder_with_states(tmp_path, 10, 30)
    damage(folder.state, 200)
    state = load_state(folder)
    assert state is not None and state["iteration"] == 10
    said = capsys.readouterr().err
    assert "damaged: state.pt (wrong SHA-256 or content), kept as state.damaged" in said
    assert "resumes from the state before it, at iteration 10; 20 iterations are lost" in said
    assert (tmp_path / "state.damaged").is_file() and not folder.state.exists()
    save_state(folder, {"iteration": 40})
    assert torch.load(folder.previous_state, weights_only=True)["iteration"] == 10


@pytest.mark.parametrize(
    "wrong", [{}, {"iteration": "30"}, {"network": None}, {"history": ()}, {"epoch": torch.zeros(3)}, {"seconds": None}]
)
def test_a_state_of_wrong_content_is_set_aside_too(tmp_path, wrong, capsys):
    folder = folder_with_states(tmp_path, 10)
    save_state(folder, state_at(30) | wrong if wrong else {"iteration": 30})
    state = load_state(folder)
    assert state is not None and state["iteration"] == 10
    assert "damaged: state.pt (wrong SHA-256 or content)" in capsys.readouterr().err


def test_a_state_that_torch_cannot_read_is_set_aside_too(tmp_path):
    folder = folder_with_states(tmp_path, 10, 30)
    folder.state.write_bytes(b"no archive" + hashlib.sha256(b"no archive").hexdigest().encode())
    state = load_state(folder)
    assert state is not None and state["iteration"] == 10


def test_two_damaged_states_are_kept_and_training_starts_anew(tmp_path, capsys):
    folder = folder_with_states(tmp_path, 10, 30)
    damage(folder.state, -1)
    folder.previous_state.write_bytes(b"")
    assert load_state(folder) is None
    said = capsys.readouterr().err
    assert "damaged: state.pt and state.previous.pt" in said and "starts over; 30 iterations are lost" in said
    assert (tmp_path / "state.damaged").is_file() and (tmp_path / "state.previous.damaged").is_file()


def test_without_weights_nobody_knows_how_much_is_lost(tmp_path, capsys):
    folder = folder_with_states(tmp_path, 10, 30)
    folder.weights.unlink()
    damage(folder.state, 0)
    load_state(folder)
    assert "at iteration 10; some work is lost" in capsys.readouterr().err


def test_killed_between_the_two_renames_the_state_before_is_taken_in_silence(tmp_path, capsys):
    folder = folder_with_states(tmp_path, 10)
    folder.state.replace(folder.previous_state)
    state = load_state(folder)
    assert state is not None and state["iteration"] == 10
    assert not capsys.readouterr().err
    assert load_state(FoldFolder(tmp_path / "nothing")) is None


@given(place=st.integers(0, 10**6), bit=st.integers(0, 7), cut=st.booleans())
def test_no_change_of_a_state_goes_unseen(tmp_path_factory, place, bit, cut):
    folder = folder_with_states(tmp_path_factory.mktemp("state"), 10)
    content = bytearray(folder.state.read_bytes())
    place %= len(content)
    content[place] ^= 1 << bit
    folder.state.write_bytes(content[:place] if cut else content)
    assert load_state(folder) is None


def test_weights_come_back_and_those_of_another_network_are_refused(tmp_path):
    first, second = nn.Conv3d(1, 2, 3), nn.Conv3d(1, 2, 3)
    save_weights(tmp_path / "w.safetensors", first, {"fold": "0"})
    assert about_weights(tmp_path / "w.safetensors") == {"fold": "0"}
    load_weights(tmp_path / "w.safetensors", second)
    assert torch.equal(first.weight, second.weight)
    with pytest.raises(UsageError, match="another network"):
        load_weights(tmp_path / "w.safetensors", nn.Conv3d(1, 4, 3))
    (tmp_path / "w.safetensors").write_bytes(b"no weights")
    with pytest.raises(UsageError, match="cannot be read as weights"):
        about_weights(tmp_path / "w.safetensors")


def test_a_history_has_a_line_for_each_epoch_and_no_file_before(tmp_path):
    path = tmp_path / "history.csv"
    write_history(path, [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": float("nan")}])
    assert path.read_text("utf-8") == "epoch,loss\n1,0.5\n2,nan\n"
    write_history(path, [])
    assert not path.exists()


def test_equal_weights_give_equal_bytes_that_others_read(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    about = {name: name.upper() for name in "badcfehg"}
    contents = set()
    for order in (sorted(about), sorted(about, reverse=True), about, about, about):
        save_weights(tmp_path / "w.safetensors", network, {name: about[name] for name in order})
        contents.add((tmp_path / "w.safetensors").read_bytes())
    assert len(contents) == 1 and about_weights(tmp_path / "w.safetensors") == about
    stored = load_file(tmp_path / "w.safetensors")
    assert all(torch.equal(value, stored[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.float8_e4m3fn, torch.bool])
def test_weights_of_another_type_are_refused(dtype, tmp_path):
    network = nn.Linear(2, 3)
    weights = {name: value.to(dtype) for name, value in network.state_dict().items()}
    save_file(weights, tmp_path / "w.safetensors")
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(UsageError, match=rf"2 of another type: bias \({name}, expected float32\), weight"):
        load_weights(tmp_path / "w.safetensors", network)
    for kept in (torch.float64, torch.float16):
        save_file({n: v.to(kept) for n, v in network.state_dict().items()}, tmp_path / "w.safetensors")
        load_weights(tmp_path / "w.safetensors", nn.Linear(2, 3))


def test_weights_of_another_network_are_told_by_what_differs(tmp_path):
    """Equally many tensors, so that a count would not show it."""
    save_weights(tmp_path / "w.safetensors", nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Linear(2, 4)}), {})
    with pytest.raises(UsageError) as found:
        load_weights(tmp_path / "w.safetensors", nn.ModuleDict({"a": nn.Linear(2, 4), "c": nn.Linear(2, 4)}))
    assert "2 missing: c.weight, c.bias; 2 without a place in it: b.bias, b.weight; " in str(found.value)
    assert "2 of another shape: a.bias (3, expected 4), a.weight (3×2, expected 4×2)" in str(found.value)
