"""Requests: checked when they are made; and a dry run refuses what the command refuses, with the same words."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
from datasets import write_nnunet
from stages import plan_data, train

from segpipe.cli.main import run
from segpipe.cli.plan import command as plan_command
from segpipe.core.errors import UsageError
from segpipe.data.phantom import make_phantom
from segpipe.pipeline import plan as planning
from segpipe.pipeline.requests import Machine, PlanRequest, PredictRequest, RunRequest, SelectRequest, TrainRequest
from segpipe.plan.schema import Plan
from segpipe.report.work_contents import read_work
from segpipe.report.work_report import reproducing_commands

MACHINE = Machine("cpu", 1)
QUICK = ("training.epochs=1", "training.iterations_per_epoch=1", "training.validation_iterations=1")
MESSAGE = re.compile(r"^(Usage|(\w+ )*[Ee]rror): .*", re.DOTALL | re.MULTILINE)  # without the progress before it
SETS = " ".join(f"--set {edit}" for edit in QUICK)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data`, `work` with both of two folds trained, `half` with one, `planned` with none, and broken things."""
    here = tmp_path_factory.mktemp("requests")
    write_nnunet(here / "data", ["p0", "p1", "p2", "p3"])
    plan_data(here / "data", here / "planned", MACHINE, n_folds=2, edits=QUICK)
    shutil.copytree(here / "planned", here / "half")
    train(here / "half", "3d_fullres", [0], MACHINE)
    shutil.copytree(here / "half", here / "work")
    train(here / "work", "3d_fullres", None, MACHINE)
    shutil.copytree(here / "work", here / "gone")
    next((here / "gone" / "runs" / "3d_fullres" / "fold_0" / "validation").glob("*.nii.gz")).unlink()
    shutil.copytree(here / "planned", here / "broken")
    (here / "broken" / "plan.yaml").write_text("a: 1")
    shutil.copytree(here / "data", here / "spoilt")
    (here / "spoilt" / "imagesTr" / "p0_0000.nii.gz").write_text("no image")
    (here / "spoilt" / "labelsTr" / "p1.nii.gz").write_text("no image")
    shutil.copytree(here / "data", here / "unread")
    for scan in (here / "unread").glob("*/*.nii.gz"):
        scan.write_text("no image")
    shutil.copytree(here / "planned", here / "planned_unread")
    dataset = here / "planned_unread" / "dataset.json"
    dataset.write_text(dataset.read_text().replace(f"{here}/data/", f"{here}/unread/"))
    assert run(f"predict -m {here}/work -f 0 -i {here}/data/imagesTr -o {here}/masks --device cpu".split()) == 0
    assert run(f"pretrain {here}/data/imagesTr -o {here}/pre --for {here}/planned --device cpu".split()) == 0
    trial = "-f 0 --candidates 1 --trial-iterations 1 --device cpu"
    assert run(f"prune {here}/work -o {here}/small --ratio 0.5 {trial}".split()) == 0
    (here / "foreign").mkdir()
    shutil.copy(here / "data" / "labelsTr" / "p0.nii.gz", here / "foreign" / "p0.nii.gz")
    (here / "empty").mkdir()
    (here / "file").touch()
    (here / "steps.yaml").write_text("labels: {nose: {keep_largest: true}}")
    arms = "{a: {}, b: {set: {training.learning_rate: 0.02}}}"
    text = f"name: s\nquestion: q\narms: {arms}\nfolds: [0]\nseeds: [0]\nsteps: 2\n"
    (here / "no_data.yaml").write_text(text)
    (here / "nowhere.yaml").write_text(text + "data: none\n")
    (here / "bad_preset.yaml").write_text(text.replace("a: {}", "a: {preset: effnet_b9}") + "data: unread\n")
    (here / "bad_key.yaml").write_text(text.replace("training.learning_rate", "training.loss.lrr") + "data: unread\n")
    (here / "no_masks.yaml").write_text(text.replace("a: {}", "a: {masks: nowhere}") + "data: data\n")
    (here / "fold_3.yaml").write_text(text.replace("[0]", "[3]", 1) + "data: split\n")
    shutil.copytree(here / "data", here / "split")
    folds = [{"train": ["p0", "p1"], "val": ["p2", "p3"]}, {"train": ["p2", "p3"], "val": ["p0", "p1"]}]
    (here / "split" / "splits_final.json").write_text(json.dumps(folds))
    (here / "one_arm.yaml").write_text(text.replace(", b: {set: {training.learning_rate: 0.02}}", "") + "data: data\n")
    return here


REFUSED = [  # command, exit code; what may name a device takes the CPU
    ("prepare none", 2),
    ("prepare file", 2),
    ("prepare broken", 2),
    ("prepare planned -c 4d", 2),
    ("train none", 2),
    ("train broken", 2),
    ("train planned -f 0 --time-budget 2s --restart", 2),
    ("train planned -f 0 --time-budget 2s", 2),
    ("train planned --time-budget 8s", 2),
    ("train planned -f 2", 2),
    ("train planned -c 4d", 2),
    ("train planned --set training.epochs=0", 2),
    ("train planned --set trainin.epochs=1", 2),
    ("train planned --set epochs", 2),
    ("train planned --epochs 2 --iterations 3", 2),
    ("train planned --epochs 2 --time-budget 1h", 2),
    ("train planned --devices 0", 2),
    ("train planned --device cuda:7", 4),
    ("train planned --device tpu", 4),
    ("train half --set training.learning_rate=0.5", 2),
    ("train half --epochs 7", 2),
    ("run none -o new", 3),
    ("run empty -o new", 3),
    ("run data -o data", 2),
    ("run spoilt -o new", 3),
    ("run data -o new --preset effnet_b9", 2),
    ("run data -o new --set trainin.epochs=1", 2),
    ("run data -o new --set training.lerning_rate=1", 2),
    ("run data -o new --epochs 2 --iterations 2", 2),
    ("run data -o new --splits none.json", 3),
    ("run data -o new --splits none.json --folds-by site", 2),
    ("run data -o new --folds-by site", 3),
    ("run data -o new --device tpu", 4),
    ("run data -o broken", 2),
    ("run data -o planned -c 4d", 2),
    ("run data -o planned -f 9", 2),
    ("run data -o planned --time-budget 2s", 2),
    ("run data -o half --preset auto --set training.learning_rate=0.5 -f 0", 2),
    ("predict -m none -i data/imagesTr -o new", 2),
    ("predict -m planned -i data/imagesTr -o new", 2),
    ("predict -m work -i none -o new", 3),
    ("predict -m work -i empty -o new", 3),
    ("predict -m work -i data/imagesTr -o new -f 7", 2),
    ("predict -m work -i data/imagesTr -o new -c 2d", 2),
    ("predict -m work -c 3d_fullres,3d_fullres -m work -i data/imagesTr -o new", 2),
    ("predict -m work -i data/imagesTr -o new --postprocess steps.yaml", 2),
    ("predict -m work -i data/imagesTr -o new --postprocess steps.yaml --no-postprocess", 2),
    ("predict -m work -i data/imagesTr -o data/imagesTr", 2),
    ("predict -m work -i data/imagesTr -o masks", 2),
    ("predict -m work -i data/imagesTr -o masks -f 0 --no-tta", 2),
    ("predict -m work -i data/imagesTr -o foreign", 2),
    ("predict -m work -i data/imagesTr -o new --device tpu", 4),
    ("select none", 2),
    ("select planned", 2),
    ("select half", 2),
    ("select gone", 3),
    ("select work --device tpu", 4),
    ("study none.yaml -o new", 2),
    ("study no_data.yaml -o new", 2),
    ("study nowhere.yaml -o new", 3),
    ("study one_arm.yaml -o new", 2),
    ("study no_masks.yaml -o new", 3),
    ("study fold_3.yaml -o new", 2),
    ("pretrain data/imagesTr -o new --for none", 2),
    ("pretrain data/imagesTr -o new --for broken", 2),
    ("pretrain data/imagesTr/p0_0000.nii.gz -o new --for planned", 3),
    ("pretrain none -o new --for planned", 3),
    ("pretrain data -o new --for planned --with-labels", 2),
    ("pretrain data/imagesTr -o pre --for planned --iterations 2", 2),
    ("prune planned -o new --ratio 0.5", 2),
    ("prune work -o work --ratio 0.5", 2),
    ("prune work -o new --ratio 1.5", 2),
    ("prune work -o small --ratio 0.5 -f 0 --candidates 2 --trial-iterations 1", 2),
    ("analyse pruning planned", 2),
    ("analyse pruning work --stage 9", 2),
    ("evaluate -r data/labelsTr -p none", 3),
    ("evaluate -r data/labelsTr -p empty", 2),
    ("evaluate -r data/labelsTr -p foreign", 3),
    ("evaluate -r data/labelsTr -p data/labelsTr --metrics dicee", 2),
    ("evaluate -r data/labelsTr -p data/labelsTr --metric-preset brat", 2),
    ("evaluate -r data/labelsTr -p data/labelsTr --policy mrr", 2),
    ("evaluate -r data/labelsTr -p data/labelsTr -l nose", 2),
    ("evaluate -r data/labelsTr -p data/labelsTr --nsd-tolerance nose=1", 2),
    ("evaluate -r data/labelsTr -p data/labelsTr --metrics ece", 3),
    ("evaluate -r data/labelsTr -p data/labelsTr --ledger none", 2),
    ("evaluate -r data/labelsTr/p0.nii.gz -p data/labelsTr", 2),
]


@pytest.mark.parametrize(("command", "code"), REFUSED, ids=[command for command, _ in REFUSED])
def test_a_dry_run_refuses_what_the_command_refuses_with_the_same_words(here, command, code, monkeypatch, capsys):
    monkeypatch.chdir(here)
    words = [
        *command.split(),
        *(() if "--device" in command or command.startswith(("prepare", "evaluate")) else ("--device", "cpu")),
    ]
    said = []
    for more in ((), ("--dry-run",)):
        assert run([*words, *more]) == code
        said.append(MESSAGE.search(capsys.readouterr().err)[0])
    assert said[0] == said[1]
    assert not (here / "new").exists()


BAD_SETTINGS = [  # option, and what is said of it; the scans of the dataset cannot be read
    ("--preset effnet_b9", "preset 'effnet_b9' is unknown"),
    ("--set trainin.epochs=1", "trainin: unknown key. Did you mean 'training'?"),
    ("--set training.lerning_rate=1", "Did you mean 'learning_rate'?"),
    ("--set training.optimizer.lrr=1", "training.optimizer has no 'lrr'; set training.optimizer itself"),
    ("--set training.loss.gama=1", "training.loss.gama: unknown key"),
    ("--set training.loss.terms.dcie=1", "(did you mean 'dice'?)"),
    ("--set training.optimizer=sdg", "(did you mean 'sgd'?)"),
    ("--set training.learning_rate=fast", "training.learning_rate: found 'fast'"),
    ("--set training.learning_rate=-1", "training.learning_rate: found -1"),
    ('--set training={"schedule":"cosine","poly_exponent":2.0}', "poly_exponent belongs to poly"),
    ("--set training.augmentation=stong", "(did you mean 'strong'?)"),
    ("--set training.early_stop_epochs=3 --set training.validation_iterations=0", "needs validation patches"),
    ("--set training.schedule=cosine --set training.poly_exponent=2.0", "poly_exponent belongs to poly"),
    ("--set configurations.3d_fulres.batch_size=4", "Did you mean '3d_fullres'?"),
    ("--set configurations.3d_fullres.batchsize=4", "Did you mean 'batch_size'?"),
    ("--set configurations.3d_fullres.batch_size=four", "configurations.3d_fullres.batch_size: found 'four'"),
    ("--set configurations.3d_fullres.network.kind=plian", "(did you mean 'plain'?)"),
    ("--set configurations.3d_fullres.network.parts.nrom=batch", "Did you mean 'norm'?"),
    ('--set configurations.3d_fullres.network={"parts":{"norm":"bach"}}', "(did you mean 'batch'?)"),
    ("--set normalisation.0.scheme=zcsore", "(did you mean 'zscore'?)"),
    ("--set training.epochs", "expected KEY=VALUE"),
]
BAD_RUNS = [
    ("-f 9", "-f 9: there are 5 folds"),
    ("-c 4d", "-c 4d: the plan will have no such configuration"),
    ("--time-budget 2s", "the minimum is 5 s"),
]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        *((f"plan unread -o new {option}", message) for option, message in BAD_SETTINGS),
        *((f"run unread -o new {option}", message) for option, message in BAD_SETTINGS + BAD_RUNS),
        *((f"train planned_unread {option}", message) for option, message in BAD_SETTINGS if "--preset" not in option),
        ("train planned_unread -f 9", "-f 9: there are 2 folds"),
        ("train planned_unread -c 4d", "-c 4d: the plan has"),
        ("train planned_unread --time-budget 2s", "the minimum is 5 s"),
        ("study bad_preset.yaml -o new", "arm a: preset 'effnet_b9' is unknown"),
        ("study bad_key.yaml -o new", "arm b: --set training.loss.lrr=0.02: training.loss.lrr: unknown key"),
    ],
)
def test_a_wrong_setting_is_refused_before_a_scan_is_read(here, command, message, monkeypatch, capsys):
    monkeypatch.chdir(here)
    assert run([*command.split(), "--device", "cpu"]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (here / "new").exists()


@pytest.mark.parametrize(
    "option",
    ["", '--set configurations.mine={"inherits":"2d","batch_size":3} -c mine', "-f 1 --time-budget 9s"],
)
def test_a_setting_that_may_be_right_reaches_the_scans(here, option, monkeypatch, capsys):
    monkeypatch.chdir(here)
    assert run(f"run unread -o new --device cpu {option}".split()) == 3
    assert "unread: " in capsys.readouterr().err


ACCEPTED = [  # command that ends well, with a copy of the folder it works on
    "prepare WORK -c 2d",
    "train WORK -f 0 --iterations 1 --restart",
    "train WORK",
    f"run data -o WORK -f 0 {SETS}",
    "predict -m work -i data/imagesTr/p0_0000.nii.gz -o NEW",
    "predict -m work -i data/imagesTr -o masks -f 0",
    "select WORK",
    "pretrain data/imagesTr -o NEW --for planned --iterations 1",
    "prune WORK -o NEW --ratio 0.5 -f 0 --candidates 1 --trial-iterations 1",
    "analyse pruning WORK -f 0 --combinations 2 --trial-iterations 1",
    "evaluate -r data/labelsTr -p data/labelsTr",
    "study STUDY -o NEW --data data",
]


@pytest.mark.parametrize("command", ACCEPTED)
def test_a_dry_run_accepts_what_the_command_does(here, tmp_path, command, monkeypatch):
    monkeypatch.chdir(here)
    shutil.copytree(here / "work", tmp_path / "work", symlinks=True)
    places = {"WORK": str(tmp_path / "work"), "NEW": str(tmp_path / "new"), "STUDY": "no_data.yaml"}
    words = [places.get(word, word) for word in command.split()]
    words += [] if command.startswith(("prepare", "evaluate")) else ["--device", "cpu"]
    assert run([*words, "--dry-run"]) == 0
    assert run(words) == 0


def test_a_dry_run_ends_with_the_exit_code_of_the_images_that_cannot_be_predicted(here, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(here)
    words = ["predict", "-m", "work", "-i", "spoilt/imagesTr", "-o", str(tmp_path / "new"), "--device", "cpu"]
    assert run([*words, "--dry-run"]) == 3
    assert "p0 would be left out" in " ".join(capsys.readouterr().out.split())
    assert run(words) == 3
    assert run([*words, "--max-memory", "0.001"]) == run([*words, "--max-memory", "0.001", "--dry-run"])


def test_masks_that_exist_are_predicted_again_if_that_is_asked_for(here, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(here)
    words = ["predict", "-m", "work", "-i", "data/imagesTr", "-o", str(tmp_path / "new"), "--device", "cpu"]
    assert run(words) == 0
    mask, before = tmp_path / "new" / "p0.nii.gz", (tmp_path / "new" / "p0.nii.gz").stat().st_mtime_ns
    assert run(words) == 0 and mask.stat().st_mtime_ns == before
    capsys.readouterr()
    for more, n_left in (((), 0), (("--overwrite",), 4)):
        assert run([*words, "--dry-run", *more]) == 0
        assert f"{n_left} of 4 images" in capsys.readouterr().out
    assert run([*words, "--overwrite"]) == 0 and mask.stat().st_mtime_ns > before


def test_a_request_that_cannot_be_right_is_refused_when_it_is_made(tmp_path):
    with pytest.raises(UsageError, match="-j 0"):
        Machine("cpu", 0)
    with pytest.raises(UsageError, match="Give either DATA, or both"):
        PlanRequest(tmp_path, MACHINE)
    with pytest.raises(UsageError, match="Give either DATA, or both"):
        PlanRequest(tmp_path, MACHINE, tmp_path, nnunet_dataset=tmp_path)
    with pytest.raises(UsageError, match="--n-folds 1: expected 2 or more"):
        RunRequest(tmp_path, tmp_path, MACHINE, n_folds=1)
    with pytest.raises(UsageError, match="--metric volume_difference: expected one of dice, iou, hd95, assd"):
        SelectRequest(tmp_path, MACHINE, "volume_difference")
    with pytest.raises(UsageError, match="--folds-by ward: expected patient or site"):
        RunRequest(tmp_path, tmp_path, MACHINE, folds_by="ward")
    with pytest.raises(UsageError, match=r"one fold for each site\. Leave out --n-folds"):
        PlanRequest(tmp_path, MACHINE, tmp_path, n_folds=3, folds_by="site")
    with pytest.raises(UsageError, match=r"--gpu-memory 0: expected a number above 0 \(GiB\)"):
        PlanRequest(tmp_path, MACHINE, tmp_path, gpu_memory_gib=0.0)
    with pytest.raises(UsageError, match=r"--time-budget nan: expected a number above 0 \(s\)"):
        TrainRequest(tmp_path, MACHINE, time_budget_seconds=float("nan"))
    with pytest.raises(UsageError, match="-m: no model"):
        PredictRequest([], tmp_path, tmp_path, MACHINE)


def test_edits_of_a_request_stand_for_its_length(tmp_path):
    request = TrainRequest(tmp_path, MACHINE, epochs=3, edits=("training.learning_rate=0.1",))
    assert request.all_edits[0] == "training.learning_rate=0.1" and "training.epochs=3" in request.all_edits


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four phantom scans of three patients."""
    return make_phantom(tmp_path_factory.mktemp("phantom") / "data", 4, 0)


def replanned(work: Path, again: Path) -> bytes:
    """The plan that the first printed command makes in another folder."""
    words = shlex.split(reproducing_commands(read_work(work))[0])
    assert words[:2] == ["segpipe", "plan"] and words[3:5] == ["-o", str(work)]
    assert run([*words[1:4], str(again), *words[5:], "--no-report", "-j", "1"]) == 0
    return (again / "plan.yaml").read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        "--time-budget 100s --gpu-memory 2.123456789 --set configurations.3d_fullres.batch_size=2 "
        "--set 'training.loss={label_smoothing: 0.1}' --set training.epochs=3",
        "--time-budget 1h --device cpu --n-folds 2 --seed 7",
        "--preset nnunet --gpu-memory 6 --no-cost",
    ],
)
def test_the_printed_command_makes_the_same_plan_byte_for_byte(phantom, tmp_path, options):
    work = tmp_path / "work"
    assert run(["plan", str(phantom), "-o", str(work), "--no-report", "-j", "1", *shlex.split(options)]) == 0
    assert replanned(work, tmp_path / "again") == (work / "plan.yaml").read_bytes()


def test_the_plan_of_a_run_of_some_folds_is_made_again_too(phantom, tmp_path):
    request = RunRequest(
        phantom, tmp_path / "w", MACHINE, folds=(0, 1), time_budget_seconds=70.0, edits=("training.precision=fp32",)
    )
    planning.run(planning.resolve(request.planning))
    (plan_option,) = (o for o in Plan.load(tmp_path / "w" / "plan.yaml").command.options if "time-budget" in o)
    assert plan_option == "--time-budget=105s"  # 35 s for each of two folds; `plan` shares a budget between all three
    assert replanned(tmp_path / "w", tmp_path / "again") == (tmp_path / "w" / "plan.yaml").read_bytes()
    # asked again with another value and one more, the plan stays and the command has each once
    longer = RunRequest(
        phantom, tmp_path / "w", MACHINE, folds=(0, 1), time_budget_seconds=70.0,
        edits=("training.precision=bf16", "training.seed=3"),
    )  # fmt: skip
    planning.run(planning.resolve(longer.planning))
    assert replanned(tmp_path / "w", tmp_path / "again") == (tmp_path / "w" / "plan.yaml").read_bytes()
    sets = [o for o in Plan.load(tmp_path / "w" / "plan.yaml").command.options if o.startswith("--set")]
    assert sets == ["--set=training.precision=bf16", "--set=training.seed=3"]


def test_a_plan_edited_by_hand_is_to_be_copied_and_older_plans_load(phantom, tmp_path):
    work = tmp_path / "w"
    plan_data(phantom, work, MACHINE, edits=("training.epochs=3",))
    assert not any(line.startswith("#") for line in reproducing_commands(read_work(work)))
    text = (work / "plan.yaml").read_text("utf-8")
    (work / "plan.yaml").write_text(text.replace("epochs: 3", "epochs: 4"))
    doubt = f"# This plan was edited after the command made it: copy the plan above to {work}/plan.yaml."
    assert reproducing_commands(read_work(work))[1] == doubt
    request = RunRequest(phantom, work, MACHINE, edits=("training.seed=3",))  # an edit on top does not hide it
    planning.run(planning.resolve(request.planning))
    assert reproducing_commands(read_work(work))[1] == doubt
    (work / "plan.yaml").write_text(text[: text.index("command:")])  # as versions before wrote it
    assert Plan.load(work / "plan.yaml").command is None
    assert "does not say which options made it" in reproducing_commands(read_work(work))[1]


def test_every_option_of_plan_is_in_the_printed_command_or_does_not_change_the_plan():
    without_effect = {"output", "with_report", "n_workers", "as_json", "debug", "data", "work"}
    given = {
        "folder": Path("w"), "machine": MACHINE, "data": Path("d"), "preset": "cpu", "gpu_memory_gib": 3.0,
        "edits": ("training.epochs=1",), "seed": 5, "predicts_costs": False, "time_budget_seconds": 9.0,
    }  # fmt: skip
    files = {"nnunet_fingerprint": Path("f"), "nnunet_dataset": Path("j")}
    requests = [
        PlanRequest(**given, n_folds=3),
        PlanRequest(**given, folds_by="site"),
        PlanRequest(**given, splits_file=Path("s")),
        PlanRequest(Path("w"), MACHINE, nnunet_plans=Path("p"), **files),
    ]
    printed = [option for request in requests for option in request.options("cpu", request.gpu_memory_gib, 5)]
    printed += PlanRequest(Path("w"), MACHINE, Path("d"), max_memory_gib=8.0).options("cpu", None, 5)
    names = {option.partition("=")[0] for option in printed}
    for parameter in plan_command.params:
        spelled = {*parameter.opts, *parameter.secondary_opts}
        assert parameter.name in without_effect or spelled & names, f"{parameter.name} is not printed"
    known = {
        *given,
        *files,
        "max_memory_gib",
        "n_folds",
        "folds_by",
        "splits_file",
        "nnunet_plans",
        "n_trained_folds",
        "keeps_plan",
    }
    assert {field.name for field in fields(PlanRequest)} == known
