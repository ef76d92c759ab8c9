"""The methods paragraph, plain and in LaTeX."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_report import CONFIGURATION, finished, work  # noqa: F401 (fixtures)
from test_report_compare import method

from segpipe.compare.comparison import Question, compare, parse_margins
from segpipe.core.work import Work
from segpipe.data.splits import Splits
from segpipe.evaluate.intervals import N_RESAMPLES
from segpipe.evaluate.metrics import METRICS
from segpipe.evaluate.summary import POLICIES
from segpipe.report.methods_text import (
    MethodsText,
    comparison_methods,
    interval_text,
    metrics_text,
    policy_text,
    work_methods,
)
from segpipe.report.work_contents import read_work


def text_of(folder: Path) -> str:
    found = read_work(folder)
    (run,) = found.runs
    assert run.scores is not None
    return work_methods(found, run, run.scores, ("dice", "hd95")).plain


def test_a_work_folder_tells_its_protocol(work: Path):  # noqa: F811
    text = text_of(work)
    assert "Phantom has 6 cases of 5 patients" in text
    assert f"Cross-validation used {Splits.load(Work(work).splits).source}, drawn with seed 0." in text
    assert "of a fold. 6 cases of 5 patients were scored, each predicted" in text
    assert "190 steps taken per fold, not to the planned end in folds 0, 1, 2 (250000 planned steps)" in text
    assert "epochs" not in text and "training seed 0" in text
    assert "HD95 is the larger of the two directed 95th percentiles" in text
    assert f"{N_RESAMPLES} resamples of patients" in text in text
    assert "Bland and Altman 1986" in text


def test_parts_of_the_network_that_were_chosen_by_name_are_named(work: Path):  # noqa: F811
    plan = (work / "plan.yaml").read_text("utf-8")
    chosen = r"\1kind: plain\1parts: {bottleneck_mixer: s5, mixer_blocks: 3}"
    (work / "plan.yaml").write_text(re.sub(r"(\n +)kind: plain", chosen, plan), "utf-8")
    assert "network plain, " in text_of(work) and ", bottleneck mixer s5, " in text_of(work)


def test_what_folds_were_trained_with_comes_before_what_was_planned(work: Path):  # noqa: F811
    plan = (work / "plan.yaml").read_text("utf-8")
    for fold, seconds in enumerate((60.0, 90.0, 60.0)):
        changed = plan.replace("time_budget_seconds: null", f"time_budget_seconds: {seconds}")
        (work / "runs" / CONFIGURATION / f"fold_{fold}" / "plan.yaml").write_text(changed)
        history = work / "runs" / CONFIGURATION / f"fold_{fold}" / "history.csv"
        history.write_text(f"epoch,iteration\n1,{fold + 1}\n2,{2 * fold + 9}\n")
    text = text_of(work)
    assert "9 to 13 steps taken per fold, as many as a time budget of 60 or 90 s per fold allowed" in text
    assert "epochs of" not in text and "epochs planned" not in text  # the clock ruled


def test_the_length_is_in_epochs_only_if_every_fold_ran_to_its_planned_end(work: Path):  # noqa: F811
    plan = (work / "plan.yaml").read_text("utf-8")
    (work / "plan.yaml").write_text(
        plan.replace("epochs: 1000", "epochs: 4").replace("_per_epoch: 250", "_per_epoch: 5")
    )
    histories = [work / "runs" / CONFIGURATION / f"fold_{fold}" / "history.csv" for fold in range(3)]
    for history in histories:
        history.write_text("epoch,iteration,stopped_early\n1,5,0\n4,20,0\n")
    assert text_of(work).split("training seed 0, ")[1].startswith("4 epochs of 5 steps, 20 steps.")
    histories[1].write_text("epoch,iteration,stopped_early\n1,5,0\n2,10,1\n")
    assert "10 to 20 steps taken per fold, stopped early in fold 1 because" in text_of(work)
    histories[2].write_text("epoch,iteration,stopped_early\n1,5,0\n")
    assert "rose, not to the planned end in fold 2 (20 planned steps)." in text_of(work)
    for history in histories:
        history.unlink()
    assert "20 planned steps, of which the number taken is not recorded" in text_of(work)


@pytest.mark.parametrize("content", ["", "a: [1", "configurations: [1]\ntraining: x\n", "preset: p\n"])
def test_a_broken_plan_is_left_out(work: Path, content: str):  # noqa: F811
    (work / "plan.yaml").write_text(content)
    assert "patches of" not in text_of(work)


def test_a_comparison_tells_its_family_its_margin_and_its_claims():
    found = compare([method("a", 0, 60), method("b", 0.1, 60), method("c", 0, 60)], Question(parse_margins(["dice"])))
    text = comparison_methods(found).plain
    assert "a, b and c were compared" in text
    assert "There were 60 cases of 30 patients, validated in 5 common folds, and a single training seed" in text
    assert "10000 drawn patterns" in text and "was 0.0050 (dice)" in text
    assert "family of 3 declared comparisons (organ, every pair of methods)" in text
    assert "No claim is made about the methods themselves (one seed" in text


def test_a_family_against_the_first_method_is_not_called_every_pair():
    methods = [method("a", 0, 60), method("b", 0.1, 60), method("c", 0, 60)]
    text = comparison_methods(compare(methods, Question(parse_margins(["dice"]), against_first=True))).plain
    assert "family of 2 declared comparisons (organ, each other method with a)" in text


def test_every_policy_and_every_metric_has_words():
    assert len({policy_text(policy) for policy in POLICIES}) == len(POLICIES)
    for name in METRICS:
        assert len(metrics_text([name])) > 20
    assert interval_text(4, 0).startswith(
        "Means were taken over cases for each label, then over labels. 4 patients give"
    )


def test_latex_by_hand():
    text = MethodsText((("A", r"5 % of a_b & 3×3 mm³, $1 #2 {x} ~ ^ \ – < |"),))
    assert text.latex == (
        r"\paragraph{A.} 5\,\% of a\_b \& 3$\times$3 mm\textsuperscript{3}, \$1 \#2 \{x\} \textasciitilde{} "
        r"\textasciicircum{} \textbackslash{} -- $<$ $|$"
    )
    assert text.plain.startswith("A. 5 % of a_b")


@given(st.text("ab %&$#_{}\\~^<>|", max_size=30))
def test_latex_has_no_bare_special_letter_and_closes_what_it_opens(words: str):
    latex = MethodsText((("T", words),)).latex.removeprefix(r"\paragraph{T.} ")
    latex = re.sub(r"\$[<>|]\$", "", latex)
    bare = re.sub(r"\\(textbackslash|textasciitilde|textasciicircum)\{\}", "", latex)
    assert not re.search(r"(?<!\\)[&%$#_{}~^]", bare)
