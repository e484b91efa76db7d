"""``fleet.provisioning.kits``: every party gets what it needs and nothing more, once."""

import json
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_client.keys import (
    COHORT_FILE,
    OPERATOR_KEY_FILE,
    PLAN_FILE,
    ROSTER_FILE,
    SEAL_FILE,
    SIGN_FILE,
    CohortSecret,
    load_kit,
    load_operator_key,
    load_operator_kit,
)
from fleet.provisioning.kits import (
    AGGREGATOR,
    OPERATOR,
    kit_name,
    plan_from_toml,
    provision,
    write_operator_keys,
    write_operator_public,
    write_roster,
)
from protocol.errors import ConfigError
from protocol.plan import Plan
from protocol.roster import OPERATOR_PUBLIC_FILE, Roster, load_roster

PLAN = Plan()
ROOT = Path(__file__).parents[3]
NODES = 4


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("provisioned") / "deep" / "kits"
    provision(folder, NODES, PLAN)
    return folder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_there_is_a_kit_for_every_party(kits: Path) -> None:
    assert files(kits) == {"node-0", "node-1", "node-2", "node-3", AGGREGATOR, OPERATOR}
    for node in range(NODES):
        own = {COHORT_FILE, SIGN_FILE, SEAL_FILE, PLAN_FILE}
        assert files(kits / kit_name(node)) == own | {ROSTER_FILE, OPERATOR_PUBLIC_FILE}


def test_the_aggregator_gets_the_public_keys_and_the_operator_the_secret(kits: Path) -> None:
    assert files(kits / AGGREGATOR) == {ROSTER_FILE, OPERATOR_PUBLIC_FILE}
    assert files(kits / OPERATOR) == {COHORT_FILE, OPERATOR_KEY_FILE, OPERATOR_PUBLIC_FILE}
    secret = bytes.fromhex((kits / OPERATOR / COHORT_FILE).read_text())
    assert CohortSecret(secret).id == load_roster(kits / AGGREGATOR / ROSTER_FILE).cohort_id
    assert secret.hex() not in (kits / AGGREGATOR / ROSTER_FILE).read_text()


def test_every_party_has_the_public_key_by_which_the_operator_signs_and_nobody_else_the_private_one(kits: Path) -> None:
    key = load_operator_key(kits / OPERATOR)
    public = key.public_key().public_bytes_raw().hex()
    assert {(party / OPERATOR_PUBLIC_FILE).read_text() for party in kits.iterdir()} == {public}
    assert len({path.read_bytes() for path in kits.rglob(ROSTER_FILE)}) == 1
    roster = kits / AGGREGATOR / ROSTER_FILE
    assert load_operator_kit(kits / OPERATOR, roster).roster == load_roster(roster)
    assert load_roster(roster).serial == 1
    assert [path.parent.name for path in kits.rglob(OPERATOR_KEY_FILE)] == [OPERATOR]
    private = key.private_bytes_raw()
    for path in kits.rglob("*"):
        if path.is_file() and path.name != OPERATOR_KEY_FILE:
            assert private not in path.read_bytes()
            assert private.hex() not in path.read_text()


def test_every_client_can_load_its_kit_under_its_own_number(kits: Path) -> None:
    loaded = [load_kit(kits / kit_name(node)) for node in range(NODES)]
    assert [kit.node for kit in loaded] == list(range(NODES))
    assert {kit.plan for kit in loaded} == {PLAN.digest}
    assert len({kit.secret.id for kit in loaded}) == 1
    assert all(kit.roster == load_roster(kits / AGGREGATOR / ROSTER_FILE) for kit in loaded)
    assert all(a.pair_secret(b.node) == b.pair_secret(a.node) for a in loaded for b in loaded if a is not b)


def test_no_two_nodes_have_a_key_in_common(kits: Path) -> None:
    roster = load_roster(kits / AGGREGATOR / ROSTER_FILE)
    public = [key for node in roster.nodes.values() for key in (node.sign, node.seal)]
    assert len(set(public)) == 2 * NODES
    private = [(kits / kit_name(n) / name).read_bytes() for n in range(NODES) for name in (SIGN_FILE, SEAL_FILE)]
    assert len(set(private)) == 2 * NODES


def test_two_federations_have_nothing_in_common(kits: Path, tmp_path: Path) -> None:
    roster = provision(tmp_path / "other", NODES, PLAN)
    first = load_roster(kits / AGGREGATOR / ROSTER_FILE)
    assert roster.cohort_id != first.cohort_id
    assert {n.sign for n in roster.nodes.values()} & {n.sign for n in first.nodes.values()} == set()


def test_the_roster_that_is_returned_is_the_one_that_was_written(tmp_path: Path) -> None:
    roster = provision(tmp_path / "kits", 3, PLAN)
    assert isinstance(roster, Roster)
    for folder in (AGGREGATOR, *map(kit_name, range(3))):
        assert load_roster(tmp_path / "kits" / folder / ROSTER_FILE) == roster
    assert json.loads((tmp_path / "kits" / AGGREGATOR / ROSTER_FILE).read_text())["nodes"][2]["name"] == "node-2"


def test_nobody_else_can_read_what_is_secret(kits: Path) -> None:
    for party in kits.iterdir():
        assert mode(party) == 0o700
        for name in files(party) & {COHORT_FILE, SIGN_FILE, SEAL_FILE, OPERATOR_KEY_FILE}:
            assert mode(party / name) == 0o600


@pytest.mark.parametrize("name", ["a kit", ".hidden"])
def test_a_folder_that_holds_anything_is_refused_and_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match="keys are never overwritten"):
        provision(tmp_path, 3, PLAN)
    assert files(tmp_path) == {name}
    assert (tmp_path / name).read_text() == "mine"


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    provision(tmp_path, 3, PLAN)
    assert load_kit(tmp_path / kit_name(2)).node == 2


def test_kits_are_not_made_twice(tmp_path: Path) -> None:
    provision(tmp_path / "kits", 3, PLAN)
    before = {path: path.read_bytes() for path in (tmp_path / "kits" / OPERATOR).iterdir()}
    with pytest.raises(ConfigError):
        provision(tmp_path / "kits", 3, PLAN)
    assert {path: path.read_bytes() for path in (tmp_path / "kits" / OPERATOR).iterdir()} == before


def test_no_key_of_the_operator_is_written_over(tmp_path: Path) -> None:
    provision(tmp_path / "kits", 3, PLAN)
    operator = tmp_path / "kits" / OPERATOR
    key, other = load_operator_key(operator), Ed25519PrivateKey.generate()
    (operator / COHORT_FILE).unlink()
    with pytest.raises(FileExistsError):
        write_operator_keys(operator, bytes(32), other)
    with pytest.raises(FileExistsError):
        write_operator_public(operator, other)
    with pytest.raises(FileExistsError):
        write_roster(tmp_path / "kits" / AGGREGATOR, Roster(bytes(16), {}), other)
    assert load_operator_key(operator).private_bytes_raw() == key.private_bytes_raw()
    assert len(load_roster(tmp_path / "kits" / AGGREGATOR / ROSTER_FILE).nodes) == 3


def test_fewer_clients_than_the_smallest_cohort_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="3 clients can never form a cohort of 4"):
        provision(tmp_path / "kits", 3, Plan(min_cohort=4))
    assert not (tmp_path / "kits").exists()


# --- the plan of an app ------------------------------------------------------------------------------


def test_the_plan_of_this_app_is_the_plan_by_default() -> None:
    assert plan_from_toml(ROOT / "pyproject.toml") == Plan()


def test_a_plan_is_read_from_the_apps_run_config(tmp_path: Path) -> None:
    wanted = Plan(rounds=7, method="fedavg", bits=12, learning_rate=0.25)
    lines = [f"{key} = {json.dumps(value)}" for key, value in wanted.to_config().items()]
    (tmp_path / "app.toml").write_text("\n".join(["[tool.flwr.app.config]", *lines]))
    assert plan_from_toml(tmp_path / "app.toml") == wanted


def test_the_options_of_a_method_are_a_table_of_the_run_config(tmp_path: Path) -> None:
    lines = [f"{key} = {json.dumps(value)}" for key, value in Plan().to_config().items()]
    table = ["[tool.flwr.app.config.options]", "exponent = 2", "allocation = 'erk'"]
    (tmp_path / "app.toml").write_text("\n".join(["[tool.flwr.app.config]", *lines, *table]))
    assert plan_from_toml(tmp_path / "app.toml") == Plan(options=(("allocation", "erk"), ("exponent", 2)))


def test_a_file_that_is_absent_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml cannot be read: No such file"):
        plan_from_toml(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    "text", ["", "[tool.flwr.app]", "[tool", 'tool = "x"', "[tool.flwr]\napp = 3", "[tool.flwr.app]\nconfig = 3"]
)
def test_a_file_without_a_run_config_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "app.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"holds no \[tool\.flwr\.app\.config\]|is not a TOML file"):
        plan_from_toml(tmp_path / "app.toml")


def test_a_run_config_that_is_no_plan_is_refused(tmp_path: Path) -> None:
    (tmp_path / "app.toml").write_text("[tool.flwr.app.config]\nrounds = 7\nspeed = 1\n")
    with pytest.raises(ConfigError, match="unknown keys: speed"):
        plan_from_toml(tmp_path / "app.toml")
