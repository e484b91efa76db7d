"""The self-check of `pruneseal run --verify`: every decrypted sum against the same integers, added in the clear.

It lives at the operator's desk, where all clients of a local run keep their waiting updates in folders of this machine;
no code of the clients or of the aggregator knows of it. The clear sum takes none of the steps under test: no packing,
blinding, encryption, addition of ciphertexts or decryption.
"""

from pathlib import Path

import numpy as np

from aggregator.summation import MaskedSum
from edge_client.keys import load_kit
from edge_client.round import dither_of, figures_of, quantised
from edge_client.state import load_pending
from edge_client.sums import open_sum
from fleet.provisioning.kits import kit_name
from fleet.results.summary import Verified
from protocol.call import Call
from protocol.documents import Count, Part
from protocol.errors import Spoiled, StorageError, VerificationError
from protocol.figures import NOTHING
from protocol.files import replace_file
from protocol.layout import Layout
from protocol.openings import Nodes, unspoiled
from protocol.plan import Plan

VERIFIED_FILE = "verified.jsonl"


class VerifiedSum(Part):
    """A line of ``verified.jsonl``: a sum that was equal, of so many clients, without so many invited, and integers."""

    round: Count
    clients: Count
    lost: Count
    values: Count


class Verifier:
    """Checks the sums of one local run and keeps count in its folder.

    Args:
        out: The run's folder.
        kits: The folder of its kits.
        plan: Its plan.
        layout: The layout of its model.
    """

    def __init__(self, out: Path, kits: Path, plan: Plan, layout: Layout) -> None:
        self._path, self._kits, self._plan, self._layout = out / VERIFIED_FILE, kits, plan, layout

    def check(self, round_: int, total: MaskedSum, aggregate: bytes) -> None:
        """Compare one sum, or those of the groups of a divided cohort; one that is spoiled is left out, as by clients.

        Raises:
            VerificationError: An integer differs.
            StorageError: The disk does not take the line; those before are as they were.
        """
        call = Call(total.cohort.members[0].run, round_, total.attempt)
        kit = load_kit(self._kits / kit_name(min(total.nodes)))
        try:
            opened = open_sum(aggregate, call.run, round_, kit, self._plan, self._layout)
        except Spoiled:
            return
        nodes = sorted(Nodes().union(*unspoiled(total.sets, opened.told.spoiled)))
        values, votes, figures = np.zeros_like(opened.values), np.zeros_like(opened.votes), NOTHING
        for node in nodes:
            pending = load_pending(self._kits / kit_name(node) / "state")
            dither = dither_of(self._plan, call, node, pending.values.size)
            integers, clipped = quantised(pending, total.cohort, node, self._plan, dither)
            values, votes = values + integers, votes + pending.votes
            figures += figures_of(pending.measured, clipped, total.cohort, node, self._plan)
        wrong = int((values != opened.values).sum() + (votes != opened.votes).sum())
        if wrong or figures != opened.told.figures or opened.clients != len(nodes):
            raise VerificationError(
                f"round {round_}: {wrong} of {values.size + votes.size} decrypted integers differ from the clear sum"
            )
        if not values.size:  # the sum of figures after the last round
            return
        lost = len(total.invited) - len(nodes)
        line = VerifiedSum(round=round_, clients=opened.clients, lost=lost, values=values.size + votes.size)
        before = self._path.read_bytes() if self._path.exists() else b""
        try:
            replace_file(self._path, before + line.to_json() + b"\n")
        except OSError as error:
            raise StorageError(
                f"{self._path} cannot be written: {error.strerror}. Free space or fix the disk, then resume the run."
            ) from error

    def summary(self) -> Verified:
        """In how many rounds and values the sums were equal; a repeated round counts once.

        Raises:
            CheckpointError: A line is damaged.
        """
        lines = self._path.read_bytes().splitlines() if self._path.exists() else []
        by_round = {one.round: one for one in (VerifiedSum.parse(line, f"a line of {self._path}") for line in lines)}
        return Verified(
            equal=True,
            rounds=len(by_round),
            rounds_with_lost_clients=sum(one.lost > 0 for one in by_round.values()),
            values=sum(one.values for one in by_round.values()),
        )
