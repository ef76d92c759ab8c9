"""`--set a.b=c`: edits of a plan, checked like the plan itself."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import AfterValidator, create_model
from pydantic.fields import FieldInfo

from segpipe.core.choices import expect_known, table_of
from segpipe.core.errors import PlanError
from segpipe.core.progress import say
from segpipe.core.records import Record, did_you_mean, parse_yaml
from segpipe.networks.parts import WRITE_DEFAULTS
from segpipe.networks.spec import NetworkSpec
from segpipe.plan.geometry import Topology
from segpipe.plan.laterality import sided_labels, sideways_axis
from segpipe.plan.loss import PRESET, Presettable
from segpipe.plan.presets import PRESETS, find_preset
from segpipe.plan.schema import CONFIGURATIONS, KEY, Configuration, Plan, complete_configurations
from segpipe.plan.training import OPTIMIZERS, Training

_NETWORK = "network"  # key of a configuration
_N_NAMED = 4  # of labels in a warning
_USUAL_CHANNELS = ("0", "1", "2", "3")


def edit_plan(plan: Plan, assignments: Sequence[str], *, warns: bool = True) -> Plan:
    """Return the plan with values replaced.

    Args:
        plan: Stays as it is.
        assignments: Such as `training.learning_rate=0.003` or `configurations.2d.batch_size=8`; the value is YAML.
            `normalisation.0` is the first channel's. `configurations.mine={inherits: 3d_fullres, batch_size: 4}` adds a
            configuration. What inherits from an edited configuration follows it.
            `configurations.2d.network.preset=simplenet` takes the network of another preset, for the strides, kernels
            and patch that are there.
        warns: Whether a warning is printed if the optimizer changes without its learning rate (rates of sgd are too
            high for the others), and if labels with sides are mirrored from now on.

    Raises:
        PlanError: If a key does not exist, two edits contradict each other, or the plan would not be valid: a patch
            that is no multiple of the strides, lists that differ in their number of stages, …
    """
    values = plan.model_dump(mode="json")
    values["training"] = plan.training.model_dump(mode="json", context=WRITE_DEFAULTS)  # what a name stands for
    given = parse_assignments(assignments)
    _assign_all(values, given)
    if not assignments:
        return plan
    result = Plan.parse(values, f"--set {' '.join(assignments)}")
    if warns:
        _tell_what_stays(plan.training, result.training, given)
    if warns and not mirrored_sides(plan):
        warn_of_sides(result)
    return result


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """Values by key. Keys that no plan can have are refused, so that nobody waits for a plan to learn of a misspelling.

    Raises:
        PlanError: If an assignment is none, its value is no YAML, its key cannot exist, or it contradicts another one.
    """
    given: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = (part.strip() for part in assignment.partition("="))
        if not equals:
            raise PlanError(f"--set {assignment}: expected KEY=VALUE, e.g. training.learning_rate=0.003.")
        try:
            value = parse_yaml(text)
        except yaml.YAMLError as fault:
            raise PlanError(f"--set {assignment}: the value cannot be read ({fault}).") from None
        _require_possible(assignment, key, value)
        _refuse_contradiction(given, key, value)
        given[key] = value
    return given


def _require_possible(assignment: str, key: str, value: Any) -> None:
    """Refuse a key that no plan has, and a value that its place can never hold, whatever the rest of the plan is."""
    annotation: Any = Plan
    steps = key.split(".")
    for number, step in enumerate(steps):
        annotation = _type_below(assignment, ".".join(steps[:number]), annotation, step)
    if isinstance(value, Mapping) and steps[0] == "configurations" and _record_in(annotation) is not None:
        for name, inner in value.items():  # what is left out is inherited, so the whole cannot be checked yet
            _require_possible(assignment, f"{key}.{name}", inner)
        return
    field: Any = {key: (annotation, ...)}
    create_model("OnlyThis", __base__=Record, **field).parse({key: value}, f"--set {assignment}")


def _type_below(assignment: str, place: str, annotation: Any, step: str) -> Any:
    """The type of `step` in a record, a mapping or a list of records at `place`."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    kind, record = get_origin(annotation), _record_in(annotation)
    if kind is dict:
        names, values = get_args(annotation)
        try:
            expect_known(step, table_of(names) or [step])
        except ValueError as fault:
            raise PlanError(f"--set {assignment}: {place}.{step}: {fault}.") from None
        return values
    if record is None or (kind is tuple and not step.isdecimal()):
        advice = f"set the whole list, e.g. --set {place}=[…]" if kind is tuple else f"set {place} itself"
        raise PlanError(f"--set {assignment}: {place} has no {step!r}; {advice}.")
    if kind is tuple:
        return record
    if step == PRESET and issubclass(record, Presettable):
        return record
    if step == PRESET and record is NetworkSpec:
        return Annotated[str, AfterValidator(lambda name: expect_known(name, PRESETS))]
    known = list(record.model_fields)
    if step not in known:
        raise PlanError(f"--set {assignment}: {f'{place}.{step}'.strip('.')}: unknown key.{did_you_mean(step, known)}")
    field = record.model_fields[step]
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


class _Recipe(Record):
    """The part of a plan that does not follow from the data."""

    training: Training


def check_edits(assignments: Sequence[str], recipes: Iterable[Training], configurations: Collection[str]) -> None:
    """Check edits of a plan that is not made yet, so that nobody waits for it to learn of a misspelling.

    Args:
        assignments: As for `edit_plan`.
        recipes: The plan will hold one of these; an edit must suit at least one.
        configurations: Names that the plan may have; empty if they are not known.

    Raises:
        PlanError: As for `edit_plan`, as far as that can be said.
    """
    given = parse_assignments(assignments)
    new = {key.split(".")[1] for key, value in given.items() if isinstance(value, Mapping) and KEY in value}
    for key in given if configurations else ():
        first, *rest = key.split(".")
        if first == "configurations" and rest:
            _below(dict.fromkeys((*configurations, *new)), rest[0], key)
    faults = []
    for recipe in recipes:
        values = {"training": recipe.model_dump(mode="json", context=WRITE_DEFAULTS), "configurations": {}}
        try:
            _assign_all(values, {key: value for key, value in given.items() if key.split(".")[0] == "training"})
            _Recipe.parse({"training": values["training"]}, f"--set {' '.join(assignments)}")
        except PlanError as fault:
            faults.append(fault)
        else:
            return
    if faults:
        raise faults[0]


def mirrored_sides(plan: Plan) -> tuple[str, ...]:
    """Return the labels with a side that a plan mirrors although mirroring contradicts them."""
    paired = {name for pair in plan.mirror_swaps for name in pair}
    if sideways_axis(plan.orientation, plan.axis_order) not in plan.mirror_axes:
        return ()
    return tuple(name for name in sided_labels(plan.labels.names) if name not in paired)


def warn_of_sides(plan: Plan) -> None:
    """Warn of labels with a side whose mirror image would contradict them."""
    sided = mirrored_sides(plan)
    if sided:
        side_axis = sideways_axis(plan.orientation, plan.axis_order)
        rest = [axis for axis in plan.mirror_axes if axis != side_axis]
        say(
            f"warning: mirror_axes {list(plan.mirror_axes)}: axis {side_axis} runs from left to right, so mirroring "
            f"would mislabel {', '.join(sided[:_N_NAMED])}{' …' * (len(sided) > _N_NAMED)}. Leave the axis out (--set "
            f"mirror_axes={rest}), or name the labels that swap: --set mirror_swaps=[[LEFT, RIGHT]]."
        )


def _tell_what_stays(old: Training, new: Training, given: Mapping[str, Any]) -> None:
    """Warn of a learning rate, momentum or decay that was chosen for an optimizer of another kind."""
    usual_before, usual_now = OPTIMIZERS[old.optimizer].usual, OPTIMIZERS[new.optimizer].usual
    if usual_before == usual_now or {"training", "training.learning_rate"} & set(given):
        return
    usual = {key: value for key, value in usual_now.items() if f"training.{key}" not in given}
    stay = ", ".join(f"{key} {getattr(new, key):g}" for key in usual)
    advice = " ".join(f"--set training.{key}={value:g}" for key, value in usual.items())
    say(f"warning: training.optimizer={new.optimizer}: {stay} were chosen for {old.optimizer}. Usual values: {advice}.")


def _refuse_contradiction(given: Mapping[str, Any], key: str, value: Any) -> None:
    for other, known in given.items():
        inside = other.startswith(f"{key}.") or key.startswith(f"{other}.")
        if inside or (other == key and known != value):
            outer, name = (other, known) if key.startswith(f"{other}.") else (key, value)
            both = f", or a name and what differs: --set {outer}.{PRESET}={name}" if isinstance(name, str) else ""
            raise PlanError(
                f"--set {key}={value}: contradicts --set {other}={known}. Give one of them{both if inside else ''}."
            )


def _assign_all(values: dict[str, Any], given: Mapping[str, Any]) -> None:
    for key in sorted(given, key=_turn):
        _assign(values, key, given[key])


def _turn(key: str) -> tuple[bool, bool]:
    """Names first, then what differs from them; networks last, since that of a name follows from the patch."""
    return f".{_NETWORK}" in key, not key.endswith(f".{PRESET}")


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    """Put a value in its place; keys that no record knows are found when the plan is checked."""
    *path, last = key.split(".")
    place: Any = values
    for step in path:
        if isinstance(place, dict) and step not in place and place is not values["configurations"]:
            place[step] = {}  # inherited, or left out of files while it holds its default
        place = _below(place, step, key)
    if isinstance(place, list):
        _below(place, last, key)
        place[int(last)] = value
        return
    is_new = isinstance(value, Mapping) and KEY in value
    if place is values["configurations"] and not is_new:
        _below(place, last, key)
    if path and last == PRESET:
        named = _network_of(value, values["configurations"], key) if path[-1] == _NETWORK else {PRESET: value}
        place.clear()  # a name stands for every value
        place.update(named)
        return
    place[last] = value


def _network_of(preset: str, configurations: dict[str, Any], key: str) -> dict[str, Any]:
    """The network that a preset makes of the strides, kernels, voxels and patch of a configuration."""
    where = f"--set {key}={preset}"
    try:
        values = complete_configurations(configurations)[key.split(".")[1]]
    except ValueError as fault:
        raise PlanError(f"{where}: {fault}.") from None
    configuration = Configuration.parse(values, where)
    network, n_axes = configuration.network, configuration.network.n_axes
    if len(network.features) < 2:
        raise PlanError(f"{where}: the network has 1 stage, expected 2 or more. Choose another configuration.")
    spacing_mm = tuple(edge or 0.0 for edge in configuration.spacing_mm[-n_axes:])
    patch = configuration.patch_zyx[-n_axes:]
    found = Topology(network.strides_zyx, network.kernels_zyx, patch, network.divisors_zyx, spacing_mm)
    return find_preset(preset).network(found).model_dump(mode="json")


def _below(place: Any, step: str, key: str) -> Any:
    known = list(place) if isinstance(place, dict) else [str(number) for number in range(len(place))]
    if step not in known:
        raise PlanError(f"--set {key}: the plan has no {step!r}.{did_you_mean(step, known)}")
    return place[step] if isinstance(place, dict) else place[int(step)]


def completions(text: str) -> list[tuple[str, str]]:
    """Continue what was typed behind `--set`: with keys, or behind an equals sign with names and what each does.

    Example:
        >>> completions("training.sched")
        [('training.schedule=', '')]
        >>> completions("training.schedule=cos")
        [('training.schedule=cosine', 'falls along half a cosine')]
    """
    key, equals, start = text.partition("=")
    fields = dict(_fields_in(Plan, ""))
    if not equals:
        return [(f"{name}=", "") for name in fields if name.startswith(text)]
    names = _names_for(fields[key]) if key in fields else {}
    return [(f"{key}={name}", does) for name, does in names.items() if name.startswith(start)]


def _fields_in(record: type[Record], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    """Every key of a record and of the records in it; a completion has no plan to ask for its configurations."""
    for name, field in record.model_fields.items():
        yield f"{prefix}{name}", field
        inner, kind = _record_in(field.annotation), get_origin(field.annotation)
        if inner is None:
            continue
        for place in CONFIGURATIONS if kind is dict else _USUAL_CHANNELS if kind is tuple else (None,):
            yield from _fields_in(inner, f"{prefix}{name}." if place is None else f"{prefix}{name}.{place}.")


def _record_in(annotation: Any) -> type[Record] | None:
    parts = (annotation, *get_args(annotation))
    return next((part for part in parts if isinstance(part, type) and issubclass(part, Record)), None)


def _names_for(field: FieldInfo) -> dict[str, str]:
    """Names that a value may be, each with what it does."""
    record = _record_in(field.annotation)
    if record is not None and issubclass(record, Presettable):
        return dict.fromkeys(record.NAMES, "")
    if get_origin(field.annotation) is dict:  # its keys are names, not its value
        return {}
    annotations = (*field.metadata, field.annotation, *get_args(field.annotation))
    table = next((found for part in annotations if (found := table_of(part)) is not None), None)
    if table is not None:
        return {name: row.does for name, row in table.items()}
    literals = [name for part in annotations if get_origin(part) is Literal for name in get_args(part)]
    return dict.fromkeys(["true", "false"] if field.annotation is bool else map(str, literals), "")
