"""The images that weights were pre-trained on, and which of a training's cases are among them."""

from __future__ import annotations

from collections.abc import Mapping

from segpipe.core.records import Record
from segpipe.core.text import count

_MAX_NAMED = 5
_NO_LABEL = "e3b0c44298fc"  # SHA-256 of no bytes, as a case without a label has it


class PretrainedOn(Record):
    """The cases of a training whose images its first weights were pre-trained on.

    Args:
        source: File of the weights.
        n_images: Images that they have seen.
        train, validation: Ids of this training's cases among them. An image is known by the bytes of its files: one
            that was written anew is not recognised.
        with_labels: Ids of those whose labels were seen too.
    """

    source: str
    n_images: int
    train: tuple[str, ...]
    validation: tuple[str, ...]
    with_labels: tuple[str, ...] = ()

    def text(self) -> str:
        """Say what this means for the scores."""
        seen = f"the weights of {self.source} were pre-trained on {count(self.n_images, 'image')}"
        if not self.validation:
            return f"{seen}, none of them of a validation case ({len(self.train)} of training cases)."
        names = ", ".join(self.validation[:_MAX_NAMED]) + ", …" * (len(self.validation) > _MAX_NAMED)
        labels = [case for case in self.validation if case in self.with_labels]
        what = f"images and, of {len(labels)}, labels" if labels else "images, not labels"
        return (
            f"{seen}, among them {count(len(self.validation), 'validation case')} ({what}): {names}. Their scores do "
            "not tell how well new patients are segmented. Pre-train without them to know."
        )


def compare_with_seen(
    source: str, seen: Mapping[str, str], train: Mapping[str, str], validation: Mapping[str, str]
) -> PretrainedOn:
    """Find a training's cases among those that weights have seen.

    Args:
        source: File of the weights.
        seen: Content digests by case, as `prepare.store.StoredCase` has them.
        train, validation: Those of the training's cases.
    """
    images = {content.partition("-")[0] for content in seen.values()}
    labelled = {content for content in seen.values() if content.partition("-")[2] != _NO_LABEL}

    def among(cases: Mapping[str, str]) -> tuple[str, ...]:
        return tuple(case for case, content in cases.items() if content.partition("-")[0] in images)

    return PretrainedOn(
        source=source,
        n_images=len(seen),
        train=among(train),
        validation=among(validation),
        with_labels=tuple(case for case, content in {**train, **validation}.items() if content in labelled),
    )
