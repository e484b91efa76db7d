"""How a client consents to the opening of sums: what it is asked is checked, and answered with shares.

No I/O happens here.
"""

from edge_client.keys import Kit
from edge_client.round import require_attempt
from edge_client.state import Pending
from edge_client.sums import voucher
from protocol.call import Call
from protocol.cohort import Cohort, read_cohort, require_groups, require_quorum
from protocol.errors import CohortRefused, PeerMismatch
from protocol.frame import signed
from protocol.openings import Nodes, require_openable
from protocol.plan import Plan
from protocol.release import Consent, Release, encode_consent
from protocol.sharing import SECRET_BYTES


def admit_release(release: Release, pending: Pending, call: Call, kit: Kit, plan: Plan) -> Cohort:
    """Check what a node is asked to consent to; the cohort that it has contributed to.

    Raises:
        PeerMismatch: It is of another attempt or cohort than the node's contribution.
        CohortRefused: It leaves this node out, is of too few, or its sums must not follow earlier ones.
    """
    require_attempt(pending, call)
    cohort = read_cohort(pending.cohort) if pending.cohort else None
    digest = cohort.digest(call.attempt) if cohort else b""
    if cohort is None or digest != release.cohort:
        raise PeerMismatch("cohort", digest, release.cohort)
    if kit.node not in release.nodes or not release.nodes <= cohort.nodes:
        raise CohortRefused("the sum that is to be opened is not one of this node and others of its cohort")
    groups = parts_of(release, cohort)
    if groups != sorted({*groups}) or not all(
        inside <= cohort.parts[group] for group, inside in zip(groups, release.sets, strict=True)
    ):
        raise CohortRefused("the sums that are to be opened are not one of each of some groups of the cohort")
    require_quorum(len(release.nodes), len(pending.invited), plan)
    require_groups(release.sets, plan)
    require_openable(cohort.memory, pending.invited, release.sets, plan.colluders)
    return cohort


def parts_of(release: Release, cohort: Cohort) -> list[int]:
    """The place of each sum's group among the parts of the cohort."""
    return [cohort.part_of(min(inside)) for inside in release.sets]


def consent(release: Release, cohort: Cohort, call: Call, kit: Kit, plan: Plan, pending: Pending) -> bytes:
    """The signed consent to a release.

    Of each member in a sum it has a share of its seed, of each other member of the same group one of its key, and of
    members whose group's sum is not opened nothing.
    """
    groups, weights = parts_of(release, cohort), cohort.weights(plan.max_share)
    needed = Nodes().union(*(cohort.parts[group] for group in groups))
    shares = []
    for member, dealt in zip(cohort.members, pending.shares, strict=True):
        both = dealt if dealt is not None and member.node in needed else bytes(2 * SECRET_BYTES)
        shares.append(both[SECRET_BYTES:] if member.node in release.nodes else both[:SECRET_BYTES])
    vouchers = [
        voucher(
            kit.secret,
            cohort.members[0],
            release.cohort,
            group,
            (len(inside), len(cohort.members)),
            (sum(weights[node] for node in inside), sum(weights.values())),
        )
        for group, inside in zip(groups, release.sets, strict=True)
    ]
    body = encode_consent(
        Consent(
            run=call.run,
            round=call.round,
            attempt=call.attempt,
            node=kit.node,
            members=len(cohort.members),
            cohort=release.cohort,
            vouchers=tuple(vouchers),
            shares=tuple(shares),
            sealed=pending.sealed if release.terms else b"",
        )
    )
    return signed(body, kit.sign(body))
