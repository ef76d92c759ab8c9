"""Files for other tools: a table of what `segpipe export` writes, and the functions that write it. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from segpipe.core.choices import Choice, expect_known, functions_for, unread_parameters
from segpipe.core.errors import UsageError

EXPORTERS: dict[str, Choice] = {
    "nnunet-plans": Choice(does="the plan as plans.json", source="nnunetv2 2.8.1"),
    "nnunet-model": Choice(
        does="trained folds as a folder with which `nnUNetv2_predict_from_modelfolder` predicts the same masks",
        source="nnunetv2 2.8.1",
        parameters=("configuration", "folds", "any_orientation"),
    ),
}
_OPTIONS = {"configuration": "-c", "folds": "-f", "any_orientation": "--any-orientation"}


@dataclass(frozen=True)
class ExportRequest:
    """Files to write for another tool.

    Args:
        folder: A work folder with a plan.
        kind: Name of a row of `EXPORTERS`.
        output: File or folder to write.
        configuration: Which; None for the default one.
        folds: Names of trained folds; empty for all.
        any_orientation: Export a model also if the other tool predicts rightly only images stored in the plan's
            orientation.

    Raises:
        UsageError: If the kind is unknown, or does not read an option that is given.
    """

    folder: Path
    kind: str
    output: Path
    configuration: str | None = None
    folds: tuple[str, ...] = ()
    any_orientation: bool = False

    def __post_init__(self) -> None:
        try:
            expect_known(self.kind, EXPORTERS)
        except ValueError as fault:
            raise UsageError(f"--to {self.kind}: {fault}.") from None
        unread = unread_parameters(EXPORTERS, [self.kind])
        given = [_OPTIONS[name] for name in unread if getattr(self, name)]
        if given:
            raise UsageError(f"{' and '.join(given)}: --to {self.kind} exports the plan as a whole. Leave it out.")


def export(request: ExportRequest) -> None:
    """Write what is asked for.

    Raises:
        UsageError: If the folder holds no plan or no trained fold.
        PlanError, DataError: If the other tool has nothing like a part of the plan, or a file is damaged.
    """
    _EXPORT[request.kind](request)


def _nnunet_plans(request: ExportRequest) -> None:
    from segpipe.bridge.nnunet_plans import export_nnunet_plans

    export_nnunet_plans(request.folder, request.output)


def _nnunet_model(request: ExportRequest) -> None:
    from segpipe.bridge.nnunet_model import export_nnunet_model  # late: this needs torch

    configuration, folds = request.configuration, request.folds
    export_nnunet_model(request.folder, request.output, configuration, folds, any_orientation=request.any_orientation)


_WRITERS: dict[str, Callable[[ExportRequest], None]] = {
    "nnunet-plans": _nnunet_plans,
    "nnunet-model": _nnunet_model,
}
_EXPORT = functions_for(EXPORTERS, _WRITERS, "EXPORTERS of bridge/exporters.py")
