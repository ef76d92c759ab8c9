"""The strength of augmentation: values of the plan, from which `train/augmentation/draws` draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from segpipe.core.choices import Choice
from segpipe.plan.loss import Presettable


class Chance:
    """Mark a field as the chance that something is changed."""


_Probability = Annotated[float, Field(ge=0, le=1)]  # of something that is changed anyway
_Chance = Annotated[_Probability, Chance()]
_Angle = Annotated[float, Field(ge=0, le=180)]


def _expect_ascending(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] > limits[1]:
        raise ValueError(f"expected the smaller number first, [{limits[1]:g}, {limits[0]:g}]")
    return limits


_Ascending = AfterValidator(_expect_ascending)
_Range = Annotated[tuple[PositiveFloat, PositiveFloat], _Ascending]
_Shares = Annotated[tuple[NonNegativeFloat, Annotated[float, Field(lt=0.4)]], _Ascending]
_Radii = Annotated[tuple[PositiveFloat, Annotated[float, Field(le=100)]], _Ascending]
_Sizes = Annotated[tuple[PositiveInt, Annotated[int, Field(le=7)]], _Ascending]
_Zooms = Annotated[tuple[PositiveFloat, Annotated[float, Field(le=1)]], _Ascending]


_DA5 = "nnunetv2, nnUNetTrainerDA5"
LOCAL_CHANGES: dict[str, Choice] = {  # in their order; train/augmentation/local.py has functions for each row
    "median": Choice(does="the median of a window", source=_DA5, parameters=("median_vox",)),
    "shift": Choice(does="a number is added", source=_DA5, parameters=("shift_std",)),
    "blank": Choice(does="boxes become their mean", source=_DA5, parameters=("blank_boxes",)),
    "gradient": Choice(does="a smooth hill or hollow is added", source=_DA5, parameters=("gradient",)),
    "local_gamma": Choice(
        does="gamma on top of a hill, fading with it",
        source=_DA5,
        parameters=("local_gamma_below", "local_gamma_above"),
    ),
    "sharpening": Choice(does="the Laplacian is taken away", source=_DA5, parameters=("sharpening",)),
}
_LOCAL_CHANCES = {
    f"p_{name}": Annotated[_Chance, Field(description=f"Of half of the channels of such a sample: {row.does}.")]
    for name, row in LOCAL_CHANGES.items()
}


@dataclass(frozen=True, kw_only=True)
class AugmentationPreset(Choice):
    """A name for values of `Augmentation`: what it changes in the defaults."""

    changes: Mapping[str, Any]


class Augmentation(Presettable):
    """Probabilities (p_, of a sample) and ranges. The defaults are nnU-Net's.

    Each row of `LOCAL_CHANGES` has a chance as well, p_<name>, which is 0: a new row leaves older plans as they are.
    In a file it is a name of `AUGMENTATIONS`, or a mapping of what differs: `{preset: nnunet, p_rotation: 0.4}`.
    Factors of brightness, contrast and gamma are as often below 1 as above it, evenly on either side.

    Args:
        p_rotation_axis: Of each axis of a sample that is turned.
        p_scale_apart: Of a sample that is scaled: each axis by a factor of its own.
        p_mirror: Of each axis that may be mirrored.
        rotation_degrees: Largest angle about each axis.
        rotation_flat_degrees: The same for patches that are turned in-plane only, about the axis across the planes.
        rotation_long_degrees: The same for patches of one slice that is longer than wide.
        scale: Smallest and largest extent that is seen, as a multiple of the patch's: above 1 things look smaller.
        elastic: Smallest and largest share of the distance between control points by which these move; below 0.4
            nothing folds.
        noise_std: Largest standard deviation, in units of the normalised image.
        blur_vox: Smallest and largest standard deviation, drawn for each axis.
        brightness, contrast, gamma: Smallest and largest factor, for each channel.
        lowres_zoom: Smallest and largest share of the voxels along an axis, for each channel.
        p_quarter_turn: That a sample is turned by 90, 180 or 270 degrees in a plane in which the patch is square.
        median_vox: Smallest and largest edge of the window whose median is taken.
        shift_std: Standard deviation of what is added to a channel, in units of the normalised image.
        blank_boxes: Most boxes, each a tenth to a third of the patch along an axis, that become their mean.
        gradient: Least and greatest height of a smooth hill, or depth of a hollow, that is added.
        local_gamma_below, local_gamma_above: Ranges of gamma on top of such a hill, as often the one as the other.
        sharpening: Smallest and largest share of the Laplacian that is taken away.
        p_guide_shape: That labels which guide a cascade grow, shrink, lose gaps or lose spurs.
        p_guide_part: That labels which guide a cascade lose a connected part.
        p_guide_label: Of each label of such a sample.
        guide_radius_vox: Smallest and largest radius of the ball by which a label grows or shrinks.
        guide_part_share: Of a patch; a part that covers as much is not lost.

    Source:
        nnU-Net's list of transforms, probabilities and ranges (nnunetv2 2.8.1).
    """

    NAMES: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # filled below, where the chances are known

    p_rotation: _Chance = 0.2
    p_rotation_axis: _Probability = 1.0
    p_scale: _Chance = 0.2
    p_scale_apart: _Probability = 0.0
    p_elastic: _Chance = 0.0
    p_mirror: _Chance = 0.5
    p_noise: _Chance = 0.1
    p_blur: _Chance = 0.2
    p_brightness: _Chance = 0.15
    p_contrast: _Chance = 0.15
    p_lowres: _Chance = 0.25
    p_gamma_inverted: _Chance = 0.1
    p_gamma: _Chance = 0.3
    rotation_degrees: _Angle = 30.0
    rotation_flat_degrees: _Angle = 180.0
    rotation_long_degrees: _Angle = 15.0
    scale: _Range = (0.7, 1.4)
    elastic: _Shares = (0.0, 0.25)
    noise_std: NonNegativeFloat = 0.1
    blur_vox: _Range = (0.5, 1.0)
    brightness: _Range = (0.75, 1.25)
    contrast: _Range = (0.75, 1.25)
    gamma: _Range = (0.7, 1.5)
    lowres_zoom: _Zooms = (0.5, 1.0)
    p_quarter_turn: _Chance = 0.0
    __annotations__ |= _LOCAL_CHANCES
    vars().update(dict.fromkeys(_LOCAL_CHANCES, 0.0))
    median_vox: _Sizes = (2, 7)
    shift_std: NonNegativeFloat = 0.5
    blank_boxes: PositiveInt = 4
    gradient: _Range = (1.0, 5.0)
    local_gamma_below: _Range = (0.01, 0.8)
    local_gamma_above: _Range = (1.5, 4.0)
    sharpening: _Range = (0.1, 1.0)
    p_guide_shape: _Chance = 0.4
    p_guide_part: _Chance = 0.2
    p_guide_label: _Probability = 0.5
    guide_radius_vox: _Radii = (1.0, 8.0)
    guide_part_share: _Probability = 0.15

    @property
    def alters(self) -> bool:
        """Return whether anything is ever changed."""
        return any(getattr(self, name) for name in _chances())

    @property
    def moves(self) -> bool:
        """Return whether patches are interpolated, so that more than the patch must be cut."""
        return bool(self.p_rotation or self.p_scale or self.p_elastic or self.p_quarter_turn)

    @property
    def alters_locally(self) -> bool:
        """Return whether intensities are ever changed by `train/augmentation/local`."""
        return any(getattr(self, name) for name in _LOCAL_CHANCES)


def _chances() -> tuple[str, ...]:
    """Fields without which nothing is changed; not among them are shares such as p_rotation_axis."""
    return tuple(
        name
        for name, field in Augmentation.model_fields.items()
        if any(isinstance(mark, Chance) for mark in field.metadata)
    )


AUGMENTATIONS: dict[str, AugmentationPreset] = {
    "none": AugmentationPreset(does="changes nothing", changes=dict.fromkeys(_chances(), 0.0)),
    "light": AugmentationPreset(
        does="small turns and scales, no blur; for short trainings",
        changes={
            "rotation_degrees": 15.0,
            "scale": (0.85, 1.2),
            "p_blur": 0.0,
            "p_lowres": 0.0,
            "p_gamma_inverted": 0.0,
            "p_gamma": 0.15,
        },
    ),
    "nnunet": AugmentationPreset(does="nnU-Net's default", source="nnunetv2, nnUNetTrainer", changes={}),
    # An elastic deformation comes on top, which nnunetv2 does not have. Its exchange of axes is a quarter turn of a
    # mirror image; where it either blurs or takes medians, these are drawn apart, each half as often.
    "strong": AugmentationPreset(
        does="more of everything, and local changes",
        source=_DA5,
        changes={
            "p_rotation": 0.4,
            "p_rotation_axis": 0.5,
            "p_scale_apart": 1.0,
            "p_elastic": 0.2,
            "p_brightness": 0.0,
            "p_contrast": 0.2,
            "p_lowres": 0.15,
            "p_blur": 0.1,
            "scale": (0.7, 1.43),
            "blur_vox": (0.3, 1.5),
            "contrast": (0.5, 2.0),
            "lowres_zoom": (0.25, 1.0),
            "p_quarter_turn": 0.375,
            "p_median": 0.1,
            "p_shift": 0.1,
            "p_blank": 0.4,
            "p_gradient": 0.3,
            "p_local_gamma": 0.3,
            "p_sharpening": 0.2,
        },
    ),
}
Augmentation.NAMES = {name: row.changes for name, row in AUGMENTATIONS.items()}
