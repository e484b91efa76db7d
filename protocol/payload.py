"""The pair pack_payload / unpack_payload: all that a client gives to a sum, as slots, and what a sum of them holds.

Law: ``unpack_payload(sum_k pack_payload(x_k, v_k, f_k, key), K, n, m, key) == (sum_k x_k, sum_k v_k, sum_k f_k)``, with
slots added modulo t; whatever is no such sum of K clients is refused.

The values come first, then the count, which is 1 from each client, and the digits of the figures, filled up with zeros
to whole slots; then the votes, likewise; then the tag of all of them (`protocol/tag.py`).
"""

import numpy as np

from protocol.errors import Spoiled
from protocol.figures import Figures, decode_figures, encode_figures
from protocol.grid import Integers
from protocol.lanes import Slots, pack, unpack
from protocol.parameters import Parameters
from protocol.tag import tag


def pack_payload(integers: Integers, votes: Integers, figures: Figures, key: bytes, parameters: Parameters) -> Slots:
    """One client's integers, votes and figures -> u64[slots] below t.

    Args:
        integers: The quantised values, i64[n].
        votes: 0 or 1 each, i64[n] or i64[0].
        figures: What it has measured.
        key: The key of the tag, 64 bytes.
        parameters: The plan's parameters.
    """
    counted = np.concatenate([integers, np.ones(1, np.int64), encode_figures(figures, parameters.grid)])
    tags = tag(np.concatenate([counted, votes]), 1, key, parameters)
    return np.concatenate([pack(counted, parameters.values), pack(votes, parameters.votes), tags])


def unpack_payload(
    slots: Slots, clients: int, values: int, votes: int, key: bytes, parameters: Parameters
) -> tuple[Integers, Integers, Figures]:
    """The slots of a sum -> the summed integers, i64[values], the summed votes, i64[votes], and the summed figures.

    Args:
        slots: As decrypted, u64[slots] below t, as many as these sizes take.
        clients: How many clients' sum it must be.
        values: How many values it holds.
        votes: How many votes.
        key: The key of the tag, 64 bytes.
        parameters: The plan's parameters.

    Raises:
        Spoiled: It is not the sum of so many clients' payloads under this key.
    """
    p, counted = parameters, values + parameters.trailing
    packed, voted, tags = np.split(slots, [p.values.slots(counted), slots.size - p.tags])
    lanes, ballots = (
        unpack(packed, packed.size * p.fields, p.values),
        unpack(voted, voted.size * p.votes.per_slot, p.votes),
    )
    integers, chosen = lanes[:counted], ballots[:votes]
    whole = (
        integers[values] == clients
        and np.abs(integers).max() <= p.grid.reach
        and (chosen <= clients).all()
        and not lanes[counted:].any()
        and not ballots[votes:].any()
    )
    if not whole or not np.array_equal(tags, tag(np.concatenate([integers, chosen]), clients, key, p)):
        raise Spoiled(
            "the aggregate does not decrypt to the sum of its clients: a contribution was left out or added twice, or "
            "was made with other keys, or something else was added to it"
        )
    return integers[:values], chosen, decode_figures(integers[values + 1 :], p.grid)
