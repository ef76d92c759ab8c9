"""The protocol in words, ready for a paper: plain text, and the same in LaTeX."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from dataclasses import dataclass

from segpipe._version import __version__
from segpipe.compare.comparison_records import Comparison, MetricComparison
from segpipe.compare.permutation import MAX_EXACT_PATIENTS
from segpipe.compare.verdict_sentences import quantity
from segpipe.core.text import count
from segpipe.evaluate.intervals import ENOUGH_PATIENTS, N_RESAMPLES
from segpipe.evaluate.metrics import METRICS, SHOWN_UNITS
from segpipe.evaluate.summary import MEAN_LABEL

_POLICIES = {
    "mr": "the best value if both masks of a structure were empty, and the worst if one was: 0, or the diagonal of the "
    "image for a distance (Metrics Reloaded)",
    "nnunet": "nothing if both masks of a structure were empty (the case was left out), and the worst value if one "
    "was: 0, or the diagonal of the image for a distance (nnU-Net)",
    "brats": "the best value if both masks of a structure were empty, and 0 or 374 mm if one was (BraTS)",
    "omit": "nothing: cases in which either mask of a structure was empty were left out of its mean and counted",
}
_LATEX: dict[str, str | int | None] = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": "$|$",
    "<": "$<$", ">": "$>$", "–": "--", "−": "$-$", "±": r"$\pm$", "×": r"$\times$",
    "²": r"\textsuperscript{2}", "³": r"\textsuperscript{3}",
}  # fmt: skip
_FOREIGN = "Scores computed by another program follow its own definitions."
_PACKAGES = ("numpy", "scipy")


@dataclass(frozen=True)
class MethodsText:
    """Paragraphs, each a heading and its text; both forms are made of the same words."""

    paragraphs: tuple[tuple[str, str], ...]

    @property
    def plain(self) -> str:
        """For any editor."""
        return "\n\n".join(f"{heading}. {text}" for heading, text in self.paragraphs)

    @property
    def latex(self) -> str:
        """For LaTeX with UTF-8, its default; needs no package and no bibliography."""
        return "\n\n".join(
            f"\\paragraph{{{_escape_latex(heading)}.}} {_escape_latex(text)}" for heading, text in self.paragraphs
        )


def _escape_latex(text: str) -> str:
    return text.translate(str.maketrans(_LATEX)).replace(" \\%", "\\,\\%")


def metrics_text(metrics: Iterable[str]) -> str:
    """Define the metrics, with their sources."""
    rows = [METRICS[name] for name in metrics]
    units = [f", in {SHOWN_UNITS[row.unit]}" if SHOWN_UNITS[row.unit] else "" for row in rows]
    sources = [f" ({row.source})" if row.source else "" for row in rows]
    parts = [
        f"{row.title} is {row.description}{unit}{source}"
        for row, unit, source in zip(rows, units, sources, strict=True)
    ]
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."


def policy_text(policy: str) -> str:
    """State what empty masks counted."""
    return f"In means a score counted {_POLICIES[policy]}."


def interval_text(n_patients: int, seed: int) -> str:
    """Describe the intervals and their limits."""
    if n_patients == 1:
        return "Means were taken over cases for each label, then over labels. One patient gives no interval."
    few = (
        f" With {count(n_patients, 'patient')}, fewer than {ENOUGH_PATIENTS}, they may cover less than 95 %."
        if n_patients < ENOUGH_PATIENTS
        else ""
    )
    return (
        "Means were taken over cases for each label, then over labels. 95 % confidence intervals are bias-corrected "
        f"and accelerated bootstrap intervals (Efron 1987) of {N_RESAMPLES} resamples of patients with all their cases "
        f"(seed {seed}).{few}"
    )


def software_text() -> str:
    """Versions of what computed the statistics."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES]
    return f"Statistics were computed with segpipe {__version__} ({', '.join(versions)})."


def comparison_methods(comparison: Comparison) -> MethodsText:
    """The protocol of a comparison."""
    names, metrics = comparison.methods, comparison.metrics
    data = f"{', '.join(names[:-1])} and {names[-1]} were compared on the same cases. "
    data += " ".join(dict.fromkeys(_counts(found) for found in metrics))
    n_patients = min(found.n_patients for found in metrics)
    return MethodsText((
        ("Data", data),
        ("Metrics", f"{metrics_text(found.metric for found in metrics)} {_FOREIGN} {policy_text(comparison.policy)}"),
        ("Intervals", interval_text(n_patients, comparison.seed)),
        ("Tests", _tests(comparison)),
        ("Claims", " ".join(_claims(comparison))),
        ("Software", software_text()),
    ))  # fmt: skip


def _counts(found: MetricComparison) -> str:
    folds = f" validated in {found.n_folds} common folds," if found.n_folds else ""
    seeds = "a single training seed" if found.n_seeds == 1 else f"{found.n_seeds} training seeds"
    cases = f"{count(found.n_cases, 'case')} of {count(found.n_patients, 'patient')}"
    text = f"There were {cases},{folds} and {seeds} for each method."
    return " ".join([text, *found.notes])


def _tests(comparison: Comparison) -> str:
    rows = [row for found in comparison.metrics for row in found.rows]
    declared = [row for row in rows if row.is_declared]
    labels = ", ".join(dict.fromkeys("the mean over labels" if r.label == MEAN_LABEL else r.label for r in declared))
    margins = ", ".join(dict.fromkeys(f"{quantity(r.margin, METRICS[r.metric])} ({r.metric})" for r in declared))
    n_patients = max((row.n_patients for row in rows), default=0)
    patterns = (
        "all patterns of signs" if n_patients <= MAX_EXACT_PATIENTS else f"{comparison.n_permutations} drawn patterns"
    )
    return (
        "Differences were paired by case. The p-value is that of a two-sided sign-flip permutation test, in which the "
        f"cases of a patient flipped together ({patterns}; {MAX_EXACT_PATIENTS} patients or fewer: exact). Wilcoxon's "
        "signed-rank test of patients' means is secondary. Equivalence was tested by two one-sided t-tests with "
        f"variances clustered by patient (Schuirmann 1987); the equivalence margin was {margins}. "
        f"The family of {len(declared)} declared comparisons ({labels}, every pair of methods) was corrected by Holm's "
        f"method at 5 %; the {len(rows) - len(declared)} others are exploratory and were corrected by "
        "Benjamini and Hochberg's."
    )


def _claims(comparison: Comparison) -> list[str]:
    """State the subject of the verdicts and the basis of the rankings."""
    bases = dict.fromkeys(r.methods_basis for found in comparison.metrics for r in found.rows if r.is_declared)
    is_told = any(r.methods is not None for found in comparison.metrics for r in found.rows)
    claims = ["Verdicts on trained models allow for other patients, not for other trainings."]
    if is_told:
        claims.append(
            f"Verdicts on methods rest on {', '.join(bases)}: their variance has a term for trainings beside that for "
            "patients, or is that of Nadeau and Bengio (2003) where each seed had its own folds."
        )
    else:
        claims.append(f"No claim is made about the methods themselves ({', '.join(bases)}).")
    if any(found.rankings for found in comparison.metrics):
        claims.append(
            f"Rankings were repeated on {N_RESAMPLES} resamples of patients; their agreement with the ranking by all "
            "patients is Kendall's tau-b."
        )
    if any(found.suitability for found in comparison.metrics):
        claims.append(
            "Suitability of the data is the SD between methods of their means over folds divided by the SD within a "
            "method over folds (Isensee et al. 2024), beside a generalisability coefficient without the folds' own "
            "difficulty."
        )
    return claims
