"""What stands in ``summary.json``: a run as a whole."""

from fleet.results.exported import INT8_FILE, MODEL_FILE, Export
from protocol.documents import Count, Document, Part, Seconds, Table


class ModelFigures(Part):
    """What became of the model; where every client has its own, means over them, and the worst of what is proved.

    Attributes:
        parameters: How many it has.
        kept: How many of them are not zero.
        sparsity: The share of those that are.
        accuracy: Of the torch model on the test rows.
        onnx_accuracy: Of the exact ONNX file.
        onnx_max_abs_diff: How far its outputs are from torch's.
        onnx_bytes: Its size.
        dense_onnx_bytes: The size of the dense float file.
        int8_onnx_bytes: The size of the int8 file; None where there is none.
        int8_accuracy: Its accuracy.
        int8_refused: Why there is none.
        recommended: The name of the file to run.
        onnx_speed: How many times as fast as the dense file the exact one is, at batch 1 on one thread.
        int8_speed: How many times the int8 file is.
        multiply_accumulates_left: The share of the work that is left; None where it cannot be counted.
    """

    parameters: Count
    kept: Count
    sparsity: float
    accuracy: float | None
    onnx_accuracy: float | None
    onnx_max_abs_diff: float | None
    onnx_bytes: Count
    dense_onnx_bytes: Count
    int8_onnx_bytes: Count | float | None
    int8_accuracy: float | None
    int8_refused: str | None
    recommended: str
    onnx_speed: float
    int8_speed: float | None
    multiply_accumulates_left: float | None


def figures_of(parameters: int, kept: int, accuracy: float, export: Export) -> ModelFigures:
    """The figures of one model and of its export with data.

    Args:
        parameters: How many it has.
        kept: How many of them are not zero.
        accuracy: Of the torch model on the test rows.
        export: Its export.
    """
    exact, int8, first = export.files[MODEL_FILE], export.files.get(INT8_FILE), export.latency[0].files
    return ModelFigures(
        parameters=parameters,
        kept=kept,
        sparsity=1 - kept / parameters,
        accuracy=accuracy,
        onnx_accuracy=exact.accuracy,
        onnx_max_abs_diff=exact.max_abs_diff,
        onnx_bytes=exact.bytes,
        dense_onnx_bytes=export.dense_bytes,
        int8_onnx_bytes=int8.bytes if int8 else None,
        int8_accuracy=int8.accuracy if int8 else None,
        int8_refused=export.int8_refused,
        recommended=export.recommended,
        onnx_speed=first[MODEL_FILE].speed,
        int8_speed=first[INT8_FILE].speed if int8 else None,
        multiply_accumulates_left=export.multiply_accumulates_left,
    )


class Verified(Part):
    """What `pruneseal run --verify` found.

    Attributes:
        equal: Whether every sum was equal to the clear sum.
        rounds: In how many rounds.
        rounds_with_lost_clients: How many of them took more than one attempt.
        values: How many integers were compared.
    """

    equal: bool
    rounds: Count
    rounds_with_lost_clients: Count
    values: Count


class Summary(ModelFigures, Document):
    """The content of ``summary.json``.

    Attributes:
        pruneseal: The version of PruneSeal that wrote it.
        method: The plan's method.
        model: The plan's network.
        data: The plan's data.
        partition: How they were divided.
        clients: Among how many clients.
        rounds: Complete rounds.
        own_models: How many models there are where every client has its own; else None.
        uplink_bytes: Bytes of all frames from the clients, with signatures and sealed terms; Flower's own envelope is
            not ours.
        uplink_value_bytes: Those of contributions without votes.
        uplink_vote_bytes: Those of votes.
        downlink_bytes: Bytes of all frames to the clients.
        dense_fedavg_uplink_bytes: What plaintext dense float32 FedAvg with the same cohorts would send.
        uplink_bytes_per_value: The uplink, by the values that travelled.
        bits: Of the grid of the sum.
        ring_degree: Of the encryption.
        coeff_modulus_bits: Of its ciphertext modulus.
        plain_modulus_bits: Of its plaintext modulus.
        security_level: In bits.
        seconds: Of all rounds together.
        verified: What was found when every sum was checked; None where none was.
        plan: The plan.
    """

    format: str = "pruneseal-summary"
    version: str = "1.0"
    pruneseal: str
    method: str
    model: str
    data: str
    partition: str
    clients: Count
    rounds: Count
    own_models: Count | None = None
    uplink_bytes: Count
    uplink_value_bytes: Count
    uplink_vote_bytes: Count
    downlink_bytes: Count
    dense_fedavg_uplink_bytes: Count
    uplink_bytes_per_value: float
    bits: Count
    ring_degree: Count
    coeff_modulus_bits: Count
    plain_modulus_bits: Count
    security_level: Count
    seconds: Seconds
    verified: Verified | None
    plan: Table[str | int | float | bool]
