"""``protocol.errors``: one tree, and nothing private in the sentence that leaves a node."""

import inspect
import re

import pytest

from protocol import errors
from protocol.errors import (
    AgreementError,
    BundleRefused,
    Duplicate,
    ExportError,
    ParityError,
    PeerError,
    PeerMismatch,
    PruneSealError,
    ShareError,
    SignatureRefused,
    VerificationError,
)

TREE = [
    error
    for _, error in inspect.getmembers(errors, inspect.isclass)
    if issubclass(error, PruneSealError) and error.__module__ == "protocol.errors"
]


def drawn() -> dict[str, str]:
    """Each error of the module docstring's tree and the one that it hangs from."""
    parents, path = {}, ["Exception"]
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"    (?P<branch>[ │├└─]*)(?P<name>[A-Z]\w+)( |$)", line):
            depth = len(match["branch"]) // 4 + 1
            parents[match["name"]] = path[depth - 1]
            path[depth:] = [match["name"]]
    return parents


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    assert drawn() == {error.__name__: error.__base__.__name__ for error in TREE if error.__base__ is not None}


def test_every_error_says_when_it_is_raised() -> None:
    assert [error for error in TREE if not error.__doc__] == []


def test_no_two_errors_share_a_code_or_a_sentence() -> None:
    codes = [vars(error)["code"] for error in TREE if "code" in vars(error)]
    sentences = [vars(error)["public"] for error in TREE if "public" in vars(error)]
    assert len(codes) == len(set(codes)) > 10
    assert len(sentences) == len(set(sentences)) == len(codes)


def test_the_codes_never_change() -> None:
    assert {error.__name__: error.code for error in TREE} == {
        "PruneSealError": 100,
        "ConfigError": 101,
        "HeadroomError": 101,
        "RosterRefused": 108,
        "KeyFileError": 102,
        "DataError": 103,
        "TrainingError": 104,
        "CheckpointError": 105,
        "StorageError": 106,
        "LedgerLost": 109,
        "DeploymentError": 107,
        "PeerError": 110,
        "MalformedMessage": 111,
        "SignatureRefused": 112,
        "PeerMismatch": 113,
        "Duplicate": 114,
        "CohortRefused": 115,
        "ShareError": 118,
        "BundleRefused": 116,
        "VersionRefused": 117,
        "Spoiled": 119,
        "AgreementError": 120,
        "QuorumError": 121,
        "VerificationError": 100,
        "ExportError": 100,
        "ParityError": 100,
        "ModelError": 100,
        "RequestRefused": 100,
        "BadRequest": 100,
        "UnknownModel": 100,
        "TooLarge": 100,
        "Overloaded": 100,
        "InferenceError": 100,
    }


def test_the_peers_mistake_can_be_told_from_ours() -> None:
    peers = {error.__name__ for error in TREE if issubclass(error, PeerError)}
    assert peers == {
        "PeerError",
        "MalformedMessage",
        "VersionRefused",
        "Spoiled",
        "SignatureRefused",
        "PeerMismatch",
        "Duplicate",
        "CohortRefused",
        "ShareError",
        "BundleRefused",
    }


def test_an_error_carries_its_data() -> None:
    refused, duplicate = SignatureRefused(7, "not on the roster"), Duplicate(7, "attendance")
    mismatch = PeerMismatch("plan", bytes(range(32)), b"\xff" * 32)
    disagreement, parity = AgreementError("model", (3, 5)), ParityError(0.5, 0.001)
    assert BundleRefused("ab" * 32).digest == "ab" * 32
    assert (refused.node, duplicate.node, disagreement.nodes, ShareError(7).node) == (7, 7, (3, 5), 7)
    assert (mismatch.field, mismatch.ours, mismatch.theirs) == ("plan", bytes(range(32)), b"\xff" * 32)
    assert (disagreement.field, parity.worst, parity.tolerance) == ("model", 0.5, 0.001)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (SignatureRefused(7, "not on the roster"), "node 7: not on the roster"),
        (Duplicate(7, "attendance"), "node 7 has already sent its attendance"),
        (BundleRefused("0123456789abcdef" * 4), "the app bundle 0123456789abcdef is not on this node's list; if the"),
        (ShareError(7), "node 7 has dealt shares that do not give back what it has signed for"),
        (PeerMismatch("round", 3, 4), "round: ours is 3, the peer's is 4"),
        (
            PeerMismatch("plan", bytes(range(32)), b"\xff" * 32),
            "plan: ours is 0001020304050607, the peer's is ffffffffffffffff",
        ),
        (AgreementError("model", (3, 5)), "nodes 3 and 5 report different values of the model."),
        (ParityError(0.5, 0.001), "ONNX Runtime and torch differ by 0.5, more than the 0.001 allowed"),
    ],
)
def test_the_text_names_both_sides(error: PruneSealError, text: str) -> None:
    assert str(error).startswith(text)


def test_what_leaves_a_node_does_not_depend_on_the_text() -> None:
    error = PeerMismatch("model", "a secret path", "another")
    assert error.public == PeerMismatch.public
    assert "secret" not in error.public


def test_errors_of_the_export_are_caught_together() -> None:
    assert issubclass(ParityError, ExportError)
    assert not issubclass(VerificationError, ExportError)
