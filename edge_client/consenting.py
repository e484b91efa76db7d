"""How a client consents to the opening of a sum: what it is asked is checked, and answered with shares.

No I/O happens here.
"""

from edge_client.keys import Kit
from edge_client.round import require_attempt
from edge_client.state import Pending
from edge_client.sums import voucher
from protocol.call import Call
from protocol.cohort import Cohort, read_cohort, require_quorum
from protocol.errors import CohortRefused, PeerMismatch
from protocol.frame import signed
from protocol.openings import require_openable
from protocol.plan import Plan
from protocol.release import Consent, Release, encode_consent
from protocol.sharing import SECRET_BYTES


def admit_release(release: Release, pending: Pending, call: Call, kit: Kit, plan: Plan) -> Cohort:
    """Check what a node is asked to consent to; the cohort that it has contributed to.

    Raises:
        PeerMismatch: It is of another attempt or cohort than the node's contribution.
        CohortRefused: It leaves this node out, is of too few, or its sum must not follow earlier ones.
    """
    require_attempt(pending, call)
    cohort = read_cohort(pending.cohort) if pending.cohort else None
    digest = cohort.digest(call.attempt) if cohort else b""
    if cohort is None or digest != release.cohort:
        raise PeerMismatch("cohort", digest, release.cohort)
    if kit.node not in release.nodes or not release.nodes <= cohort.nodes:
        raise CohortRefused("the sum that is to be opened is not one of this node and others of its cohort")
    require_quorum(len(release.nodes), len(pending.invited), plan)
    require_openable(cohort.memory, pending.invited, (release.nodes,), plan.colluders)
    return cohort


def consent(release: Release, cohort: Cohort, call: Call, kit: Kit, plan: Plan, pending: Pending) -> bytes:
    """The signed consent to a release: of each member in the sum a share of its seed, of each other one of its key."""
    weights = cohort.weights(plan.max_share)
    inside = sum(weights[node] for node in release.nodes)
    shares = []
    for member, both in zip(cohort.members, pending.shares, strict=True):
        key, seed = (bytes(SECRET_BYTES),) * 2 if both is None else (both[:SECRET_BYTES], both[SECRET_BYTES:])
        shares.append(seed if member.node in release.nodes else key)
    body = encode_consent(
        Consent(
            run=call.run,
            round=call.round,
            attempt=call.attempt,
            node=kit.node,
            members=len(cohort.members),
            cohort=release.cohort,
            voucher=voucher(
                kit.secret,
                cohort.members[0],
                release.cohort,
                (len(release.nodes), len(cohort.members)),
                (inside, sum(weights.values())),
            ),
            shares=tuple(shares),
            sealed=pending.sealed if release.terms else b"",
        )
    )
    return signed(body, kit.sign(body))
