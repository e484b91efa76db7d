"""Every error that PruneSeal raises, as one tree.

::

    PruneSealError
    ├── ConfigError            our own settings cannot work together
    │   ├── HeadroomError      the sum of a full cohort would not decrypt
    │   └── RosterRefused      the roster's file is none, not signed by the operator, or an old one
    ├── KeyFileError           a key file is absent, exposed or not a key; never generated instead
    ├── DataError              this node has no data that it could train on
    ├── TrainingError          local training diverged
    ├── CheckpointError        a checkpoint file cannot be used
    ├── LedgerLost             this node cannot know what it has helped to open, and sits out a round
    ├── StorageError           the disk does not take what must be kept
    ├── DeploymentError        a process of a deployment does not do its part
    ├── PeerError              the *other* end's mistake; abstract
    │   ├── MalformedMessage   the bytes do not parse
    │   │   ├── VersionRefused the message is of another version of the protocol
    │   │   └── Spoiled        an aggregate parses, but is no sum of contributions
    │   ├── SignatureRefused   parses, but is not signed by whom it names
    │   ├── PeerMismatch       parses, but belongs to another run, round, plan, …
    │   ├── Duplicate          this node has already answered
    │   ├── CohortRefused      the announced cohort, or a sum of it, would expose a member
    │   ├── ShareError         a member has dealt shares that do not fit together
    │   └── BundleRefused      the Flower app bundle is not one that this node accepts
    ├── AgreementError         nodes derived different models, and none has a majority
    ├── QuorumError            too few clients to release a sum
    ├── VerificationError      a decrypted sum is not the clear sum; raised by `pruneseal run --verify` alone
    ├── ExportError
    │   └── ParityError        ONNX and torch disagree
    ├── ModelError             an ONNX file cannot be served
    └── RequestRefused         an inference request is not answered; abstract
        ├── BadRequest         it does not fit the model
        ├── UnknownModel       no such model or version is loaded
        ├── TooLarge           it exceeds a limit of this server
        ├── Overloaded         the queue is full
        └── InferenceError     the model itself failed on it

Our mistake and the peer's mistake are different types: a bad contribution is refused and counted, a bad plan stops
the process. ``public`` is the one sentence about an error that may leave a node; the full text, which can name paths
or data, stays there.
"""

from typing import ClassVar

from protocol import VERSION


class PruneSealError(Exception):
    """The root of the tree; never raised itself."""

    public: ClassVar[str] = "the node failed; its own log says why"
    code: ClassVar[int] = 100
    """The number that travels in a Flower error reply."""


class ConfigError(PruneSealError):
    """Settings or plan values that cannot work together."""

    public = "this node refuses the plan"
    code = 101


class HeadroomError(ConfigError):
    """The decryption of a full cohort's sum could not be proved exact."""


class RosterRefused(ConfigError):
    """A roster that is absent, no roster, not signed by the operator, or older than one that was accepted."""

    public = "this node refuses its roster"
    code = 108


class KeyFileError(PruneSealError):
    """A key file is absent, readable by others, or not a key."""

    public = "this node's keys are missing or exposed"
    code = 102


class DataError(PruneSealError):
    """The node has no data that it could train on."""

    public = "this node has no usable data"
    code = 103


class TrainingError(PruneSealError):
    """Local training diverged: a loss or a weight is not finite."""

    public = "local training diverged"
    code = 104


class CheckpointError(PruneSealError):
    """A checkpoint or a saved state cannot be used."""

    public = "this node's saved state cannot be used"
    code = 105


class LedgerLost(PruneSealError):
    """The node's record of the sums that it took part in is absent or damaged: it sits out this round."""

    public = "this node's ledger was lost; it joins with the next round"
    code = 109


class StorageError(PruneSealError):
    """The disk does not take what must be kept: it is full, broken or read-only."""

    public = "this node cannot write to its disk"
    code = 106


class DeploymentError(PruneSealError):
    """A process of a deployment does not start, or a deployed run has failed."""

    public = "a process of the deployment failed"
    code = 107


class PeerError(PruneSealError):
    """The other end's mistake. Catch this to refuse a message and go on."""

    public = "this node refuses the message"
    code = 110


class MalformedMessage(PeerError):
    """The bytes are not a message of this protocol version."""

    public = "the message does not parse"
    code = 111


class VersionRefused(MalformedMessage):
    """The message is of another version of the protocol.

    Attributes:
        theirs: The peer's version.
    """

    public = f"this node speaks protocol version {VERSION}: install the same PruneSeal on every machine"
    code = 117

    def __init__(self, theirs: int) -> None:
        super().__init__(
            f"the message is of protocol version {theirs}, and this program speaks version {VERSION}: install the "
            "same PruneSeal on every machine of the federation, and provision the nodes again"
        )
        self.theirs = theirs


class Spoiled(MalformedMessage):
    """What was decrypted is not the sum of its clients: one of them, or the aggregator, has spoiled it."""

    public = "the sum is spoiled"
    code = 119


class SignatureRefused(PeerError):
    """The message is not signed by the node that it names.

    Attributes:
        node: The number of the node that the message names.
    """

    public = "the signature is not valid"
    code = 112

    def __init__(self, node: int, reason: str) -> None:
        super().__init__(f"node {node}: {reason}")
        self.node = node


class PeerMismatch(PeerError):
    """A well-formed message that belongs somewhere else.

    Attributes:
        field: The first field that differs.
        ours: Our value of it.
        theirs: The peer's value of it.
    """

    public = "the message belongs to another run, round, cohort, support, plan or key"
    code = 113

    def __init__(self, field: str, ours: object, theirs: object) -> None:
        super().__init__(f"{field}: ours is {_short(ours)}, the peer's is {_short(theirs)}")
        self.field, self.ours, self.theirs = field, ours, theirs


class Duplicate(PeerError):
    """The node has already answered; the second message is refused.

    Attributes:
        node: The number of that node.
    """

    public = "this message was already answered"
    code = 114

    def __init__(self, node: int, what: str) -> None:
        super().__init__(f"node {node} has already sent its {what}")
        self.node = node


class CohortRefused(PeerError):
    """An announced cohort, or the sum of a part of it, would expose a member."""

    public = "this node refuses the announced cohort"
    code = 115


class ShareError(PeerError):
    """A member has dealt shares that do not give back what it has signed for.

    Attributes:
        node: Its number.
    """

    public = "the shares do not fit together"
    code = 118

    def __init__(self, node: int) -> None:
        super().__init__(f"node {node} has dealt shares that do not give back what it has signed for")
        self.node = node


class BundleRefused(PeerError):
    """A Flower app bundle that is not on this node's list.

    Attributes:
        digest: Its SHA-256 in hex.
    """

    public = "this node does not accept the app bundle"
    code = 116

    def __init__(self, digest: str) -> None:
        super().__init__(
            f"the app bundle {digest[:16]} is not on this node's list; if the change is intended, add its SHA-256"
        )
        self.digest = digest


class AgreementError(PruneSealError):
    """Nodes derived different models from what should be the same bytes, and none of them has a majority.

    Attributes:
        field: What differs.
        nodes: The numbers of the nodes, two or more.
    """

    public = "the nodes do not agree on the model"
    code = 120

    def __init__(self, field: str, nodes: tuple[int, ...]) -> None:
        super().__init__(
            f"nodes {', '.join(map(str, nodes[:-1]))} and {nodes[-1]} report different values of the {field}. Every "
            "client must derive the same one from the same bytes: look for different versions of PruneSeal or torch, "
            "or a tampered message."
        )
        self.field, self.nodes = field, nodes


class QuorumError(PruneSealError):
    """Too few clients answered to release a sum: a privacy limit, not a nuisance."""

    public = "too few clients"
    code = 121


class VerificationError(PruneSealError):
    """A decrypted sum differs from the sum of the same integers in the clear."""


class ExportError(PruneSealError):
    """A model cannot be exported."""


class ParityError(ExportError):
    """The exported model does not compute what the trained one does.

    Attributes:
        worst: The largest absolute difference of two outputs.
        tolerance: The largest that is allowed.
    """

    def __init__(self, worst: float, tolerance: float) -> None:
        super().__init__(
            f"ONNX Runtime and torch differ by {worst:.3g}, more than the {tolerance:.3g} allowed; the file is not "
            "written. An operator is exported wrongly: try another opset or simplify the model."
        )
        self.worst, self.tolerance = worst, tolerance


class ModelError(PruneSealError):
    """An ONNX file, or a folder of them, cannot be served."""


class RequestRefused(PruneSealError):
    """An inference request is not answered; the text is for the one who asked, and names no path."""


class BadRequest(RequestRefused):
    """The request does not parse, or does not fit the model."""


class UnknownModel(RequestRefused):
    """No model of this name, or no such version of it, is loaded."""


class TooLarge(RequestRefused):
    """The request exceeds a limit of this server, so that it would be refused again."""


class Overloaded(RequestRefused):
    """The queue is full now; the same request can succeed later."""


class InferenceError(RequestRefused):
    """The model failed on a well-formed request."""


def _short(value: object) -> str:
    return value.hex()[:16] if isinstance(value, bytes) else str(value)
