"""Which coarse weights guided a cascade as it was trained; said when they are others now."""

from __future__ import annotations

from segpipe.core.progress import say
from segpipe.core.records import Record
from segpipe.core.work import FoldFolder
from segpipe.predict.selected_model import weights_of


class GuidedBy(Record):
    """guided_by.json beside the weights of a cascade.

    Args:
        weights: Of each fold of the coarser configuration, as `weights_of` gives it.
    """

    weights: dict[str, str]


def note_guides(folder: FoldFolder, previous: str | None, *, begins: bool) -> None:
    """Write what guides a fold that begins, or warn if it goes on with other guides; nothing outside of a cascade."""
    if previous is None:
        return
    if begins or not folder.guided_by.is_file():
        GuidedBy(weights=_weights_now(folder, previous)).save(folder.guided_by)
    else:
        warn_of_guides(folder, previous)


def warn_of_guides(folder: FoldFolder, previous: str | None) -> None:
    """Warn if a fold of the coarser configuration was trained again since it guided this one."""
    if previous is None or not folder.guided_by.is_file():
        return
    now = _weights_now(folder, previous)
    known = GuidedBy.load(folder.guided_by).weights
    again = [fold for fold, digest in known.items() if now.get(fold, digest) != digest]
    if again:
        say(
            f"warning: {folder.path}: {', '.join(again)} was trained again since it guided this cascade, which may "
            "trust it wrongly. Train the cascade anew: `segpipe train` with --restart."
        )


def _weights_now(folder: FoldFolder, previous: str) -> dict[str, str]:
    run = folder.path.resolve().parent.parent / previous
    return weights_of(FoldFolder(path) for path in sorted(run.glob("fold_*")))
