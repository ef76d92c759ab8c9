"""The loss as a value of the plan, and records that a plan may call by name; formulas are in train/losses.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from segpipe.core.choices import Choice, OneOf, expect_known, unread_parameters
from segpipe.core.records import Record
from segpipe.networks.parts import writes_defaults

PRESET = "preset"  # key beside which stands what differs from a name


class Presettable(Record):
    """A record that a file gives as a name, a name and what differs from it, or what differs from the defaults.

    The shortest of these that reads back equal is written; `model_dump(context=WRITE_DEFAULTS)` has every field.
    """

    NAMES: ClassVar[Mapping[str, Mapping[str, Any]]]  # what each name changes in the defaults

    @classmethod
    def from_name(cls, name: str, **changes: Any) -> Any:
        """The record of a name, with changes."""
        return cls.model_validate({PRESET: name, **changes})

    @model_validator(mode="before")
    @classmethod
    def _spelt_out(cls, values: Any) -> Any:
        given = {PRESET: values} if isinstance(values, str) else values
        if not isinstance(given, Mapping):
            return values
        rest = dict(_as_tuples(given))
        name = rest.pop(PRESET, None)
        if name is None:
            return rest
        return {**cls.NAMES[expect_known(str(name), cls.NAMES)], **rest}

    @model_serializer(mode="wrap")
    def _shortest(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> Any:
        values: dict[str, Any] = handler(self)
        if writes_defaults(info):
            return values
        forms: list[tuple[int, Any]] = []
        for name in self.NAMES:
            other = type(self).from_name(name)
            changes = {key: value for key, value in values.items() if getattr(self, key) != getattr(other, key)}
            forms.append((1 + len(changes), {PRESET: name, **changes}) if changes else (0, name))
        fields = type(self).model_fields
        chosen = {key: value for key, value in values.items() if getattr(self, key) != fields[key].default}
        return min([*forms, (len(chosen), chosen)], key=lambda form: form[0])[1]


def _as_tuples(value: Any) -> Any:
    """Turn the lists of JSON into the tuples that strict records want."""
    if isinstance(value, Mapping):
        return {key: _as_tuples(inner) for key, inner in value.items()}
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


@dataclass(frozen=True, kw_only=True)
class LossTerm(Choice):
    """A term of a loss. Its parameters are fields of `Loss`.

    Args:
        only_full_resolution: Left out of deep supervision, as it does not survive bringing the labels down.
        reads_features: Reads the decoder's features instead of the outputs; in training only.
    """

    only_full_resolution: bool = False
    reads_features: bool = False


SUPCON = "supcon_voxel"
TERMS: dict[str, LossTerm] = {  # train/losses.py has a function for each row
    "dice": LossTerm(does="soft Dice, negative", source="Drozdzal et al. 2016; nnU-Net's"),
    "tversky": LossTerm(
        does="1 - Tversky index", source="Salehi et al. 2017", parameters=("tversky_alpha", "tversky_beta")
    ),
    "focal_tversky": LossTerm(
        does="1 - Tversky index, to a power",
        source="Abraham and Khan 2019",
        parameters=("tversky_alpha", "tversky_beta", "focal_tversky_exponent"),
    ),
    "ce": LossTerm(does="cross-entropy; of regions, binary", parameters=("label_smoothing",)),
    "topk": LossTerm(
        does="cross-entropy of the worst voxels",
        source="Wu et al. 2016; nnU-Net's",
        parameters=("label_smoothing", "topk_fraction"),
    ),
    "focal": LossTerm(does="focal loss", source="Lin et al. 2017", parameters=("focal_gamma",)),
    "cldice": LossTerm(
        does="1 - soft centreline Dice",
        source="Shit et al. 2021",
        parameters=("cldice_iterations", "cldice_labels"),
    ),
    "skeleton_recall": LossTerm(
        does="share of a label found around its centreline, negative",
        source="Kirchhoff et al. 2024",
        only_full_resolution=True,  # a thin line is lost on a coarser grid
    ),
    SUPCON: LossTerm(
        does="supervised contrast of labelled voxels in the decoder's features; 0.05 to 0.1 beside other terms",
        source="Khosla et al. 2020",
        parameters=("supcon_temperature", "supcon_voxels"),
        reads_features=True,
    ),
}
LOSSES: dict[str, dict[str, float]] = {  # a name, and the weights of its terms; the rest is at its default
    "dice_ce": {"dice": 1.0, "ce": 1.0},
    "dice": {"dice": 1.0},
    "ce": {"ce": 1.0},
    "topk": {"topk": 1.0},
    "dice_topk": {"dice": 1.0, "topk": 1.0},
    "focal": {"focal": 1.0},
    "dice_focal": {"dice": 1.0, "focal": 1.0},
    "dice_ce_supcon": {"dice": 1.0, "ce": 1.0, SUPCON: 0.1},
    "tversky": {"tversky": 1.0},
    "tversky_ce": {"tversky": 1.0, "ce": 1.0},
    "focal_tversky": {"focal_tversky": 1.0},
    "focal_tversky_ce": {"focal_tversky": 1.0, "ce": 1.0},
    "dice_ce_cldice": {"dice": 1.0, "ce": 1.0, "cldice": 1.0},
    "dice_ce_skeleton_recall": {"dice": 1.0, "ce": 1.0, "skeleton_recall": 1.0},
}
MOST_LINES = 16  # labels with soft skeletons: each takes tens of copies of its output


class Loss(Presettable):
    """A weighted sum of terms; the default is nnU-Net's.

    Args:
        terms: Weight of each term.
        label_smoothing: ce, topk: share of the target that is spread over all labels; of a region, over yes and no.
        topk_fraction: topk: share of the voxels that count, the worst ones.
        focal_gamma: focal: the larger, the less a voxel counts that is nearly right; 0: cross-entropy.
        tversky_alpha, tversky_beta: tversky, focal_tversky: weight of false positives and of false negatives; both
            0.5 are Dice.
        focal_tversky_exponent: focal_tversky: of 1 - Tversky; below 1 labels that are nearly right pull harder.
        cldice_iterations: cldice: erosions of the soft skeleton; as many as the thickest tube's radius has voxels.
        cldice_labels: cldice: names of the labels it is computed for; empty: all, at most 16.
        supcon_temperature: supcon_voxel: of the similarities; smaller looks at the nearest voxels more.
        supcon_voxels: supcon_voxel: voxels of each label, background included, in a batch; at most 1024 in all.
    """

    NAMES: ClassVar[Mapping[str, Mapping[str, Any]]] = {name: {"terms": terms} for name, terms in LOSSES.items()}

    terms: dict[Annotated[str, OneOf(TERMS)], PositiveFloat] = Field(default=LOSSES["dice_ce"], min_length=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    topk_fraction: float = Field(default=0.1, gt=0, le=1)
    focal_gamma: float = Field(default=2.0, ge=0)
    tversky_alpha: PositiveFloat = 0.3
    tversky_beta: PositiveFloat = 0.7
    focal_tversky_exponent: PositiveFloat = 0.75
    cldice_iterations: PositiveInt = 3
    cldice_labels: tuple[str, ...] = ()
    supcon_temperature: PositiveFloat = 0.1
    supcon_voxels: PositiveInt = 64

    @field_validator("terms")
    @classmethod
    def _order_terms(cls, terms: dict[str, float]) -> dict[str, float]:
        return {term: terms[term] for term in TERMS if term in terms}  # equal records write equal bytes

    def labels_with_lines(self, names: Sequence[str]) -> tuple[int, ...]:
        """Return the places, among the labels of a plan, of those that cldice is computed for; none without that term.

        Raises:
            ValueError: If one is unknown or named twice, or there are more than memory and time allow.
        """
        if "cldice" not in self.terms:
            return ()
        chosen = self.cldice_labels or tuple(names)
        wrong = [name for name in chosen if name not in names or chosen.count(name) > 1]
        if wrong:
            raise ValueError(
                f"training.loss.cldice_labels: {wrong[0]!r} must be one of {', '.join(names)} and appear only once"
            )
        if len(chosen) > MOST_LINES:
            raise ValueError(
                f"training.loss: cldice keeps tens of copies of each output; found {len(chosen)} labels, expected "
                f"{MOST_LINES} or fewer; name the tubes (--set 'training.loss.cldice_labels=[{chosen[0]}, …]'), or use "
                "skeleton_recall, whose cost does not grow with the labels"
            )
        return tuple(names.index(name) for name in chosen)

    @model_validator(mode="after")
    def _is_read(self) -> Loss:
        for key, readers in unread_parameters(TERMS, self.terms).items():
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} belongs to {readers}; terms are {', '.join(self.terms)}")
        return self
