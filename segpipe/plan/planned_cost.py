"""What a configuration will take, as a record: for tables, reports and JSON."""

from __future__ import annotations

from segpipe.core.records import Record


class PlannedCost(Record):
    """What a configuration of a plan will take.

    Args:
        configuration: Its name.
        memory: `GPU` or `CPU`, whose memory is meant.
        training_gb: Predicted peak of training, GiB.
        prediction_gb: Predicted peak of predicting one patch, GiB.
        tera_macs_per_step: Multiplications with addition of a training step, in 10¹².
        seconds_per_step: About how long a step takes on this machine; None if the plan is for another one.
        parameters: Of the network.
        prepared_gb: Disk space of the prepared cases, GiB, about.
    """

    configuration: str
    memory: str
    training_gb: float
    prediction_gb: float
    tera_macs_per_step: float
    seconds_per_step: float | None
    parameters: int
    prepared_gb: float
