"""The page that a run leaves behind: complete, self-contained, and safe against the names in it."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from aggregator.records import PhaseSeconds, Record
from fleet.results.figures import PALETTE, LayerDensity
from fleet.results.report import write_report
from fleet.results.summary import Summary, Verified
from tests.factories import record

pytestmark = pytest.mark.slow

_VOID = {"meta", "br", "hr", "img", "input", "link"}
_FIGURES = ("Accuracy and sparsity", "Uplink", "Density by tensor", "Time and cohort")
_HOSTILE = "<script>alert(1)</script>&\"'$x$-->]]>\n层"


class _Page(HTMLParser):
    """Reads a page as a browser's strictest reader would: every element that opens is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], "elements are left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def values(self, attribute: str) -> list[str]:
        return [value or "" for name, value in self.attributes if name == attribute]


def _metrics(rounds: int, **changes: Any) -> list[Record]:
    seconds = PhaseSeconds(train=2.0, contribute=1.0, release=0.5, add=0.25, other=0.0)
    return [
        record(
            number,
            **{
                "cohort": 10 if number != 2 else 8,
                "dropped": 0 if number != 2 else 2,
                "accuracy": 1 - 0.8 / number,
                "loss": 2 / number,
                "sparsity": 0.9 * number / rounds,
                "kept": 10_000 // number,
                "uplink_bytes": 200_000 // number,
                "downlink_bytes": 400_000 // number,
                "attempts": 1 if number != 2 else 2,
                "seconds": seconds,
            }
            | changes,
        )
        for number in range(1, rounds + 1)
    ]


SUMMARY = Summary(
    pruneseal="0.1.0",
    method="fedsparsify-global",
    model="cnn",
    data="digits",
    partition="iid",
    clients=10,
    rounds=5,
    parameters=10_000,
    kept=1_000,
    sparsity=0.9,
    accuracy=0.8765,
    onnx_accuracy=0.8764,
    onnx_max_abs_diff=3.6e-7,
    onnx_bytes=5_000,
    dense_onnx_bytes=50_000,
    int8_onnx_bytes=2_500,
    int8_accuracy=0.8712,
    int8_refused=None,
    recommended="model.int8.onnx",
    onnx_speed=1.5,
    int8_speed=2.25,
    multiply_accumulates_left=0.123,
    uplink_bytes=500_000,
    uplink_value_bytes=400_000,
    uplink_vote_bytes=0,
    downlink_bytes=900_000,
    dense_fedavg_uplink_bytes=2_000_000,
    uplink_bytes_per_value=2.1667,
    bits=16,
    ring_degree=4096,
    coeff_modulus_bits=60,
    plain_modulus_bits=49,
    security_level=128,
    seconds=163.4,
    verified=Verified(equal=True, rounds=5, rounds_with_lost_clients=0, values=123_456),
    plan={"learning-rate": 0.05, "model": "cnn", "schedule": "1-32", "verify": True},
)


_DENSITY = [LayerDensity("fc.weight", 500, 9_990), LayerDensity("fc.bias", 5, 10)]


def _report(
    folder: Path,
    metrics: list[Record] | None = None,
    density: list[LayerDensity] | None = None,
    **changes: Any,
) -> tuple[str, _Page]:
    path = folder / "report.html"
    write_report(path, metrics or _metrics(5), SUMMARY.model_copy(update=changes), density or _DENSITY)
    text = path.read_text(encoding="utf-8")
    return text, _Page(text)


def test_the_page_is_well_formed_and_has_every_figure_and_table(tmp_path: Path) -> None:
    _, page = _report(tmp_path)
    assert page.tags["svg"] == len(_FIGURES)
    assert page.tags["table"] == 4
    labels = page.values("aria-label")
    assert tuple(labels) == _FIGURES


def test_the_header_and_the_tiles_give_the_verdict(tmp_path: Path) -> None:
    _, page = _report(tmp_path)
    for text in (
        "Accuracy 0.876, sparsity 0.900, 4.0× less uplink",
        "fedsparsify-global · cnn on digits (iid)",
        "10 clients, 5 rounds in 0:02:43",
        "✓ sums verified in 5 rounds, 123,456 values",
        "1,000 of 10,000 kept",
        "outputs within 3.6e-07",
        "500.0 kB",
    ):
        assert text in page.text


def test_the_text_of_the_figures_stays_text(tmp_path: Path) -> None:
    _, page = _report(tmp_path)
    for text in ("fc.weight", "0.050 · 500 of 9,990", "dense FedAvg", "2.0 MB", "train", "lost"):
        assert text in page.texts


def test_the_tables_show_rounds_settings_and_parameters(tmp_path: Path) -> None:
    _, page = _report(tmp_path)
    assert "2 8 2 0.600 1.000 0.360 5,000 n/a n/a n/a 100.0 kB 0 bytes 200.0 kB 3 0 2 3.8" in page.text
    assert "learning-rate 0.05 model cnn schedule 1-32 verify true" in page.text
    assert "ring degree 4096 ciphertext modulus 60 bits plaintext modulus 49 bits" in page.text
    assert "it learnt no weight, no update, no averaged model" in page.text


def test_the_page_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    text, page = _report(tmp_path)
    without_namespaces = re.sub(r'xmlns(:\w+)?="http://www\.w3\.org/[^"]*"', "", text)
    assert "http" not in without_namespaces
    assert "@import" not in text
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    assert page.tags.keys().isdisjoint({"script", "link", "img", "iframe", "object", "image"})
    assert page.values("src") == []


def test_every_class_of_the_page_has_a_rule_of_its_own_on_any_screen(tmp_path: Path) -> None:
    text, page = _report(tmp_path)
    style = text.partition("<style>")[2].partition("</style>")[0]
    rules = re.sub(r"@media[^{]*\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}", "", style)
    selectors = " ".join(re.findall(r"([^{}]+)\{", rules))
    used = {name for names in page.values("class") for name in names.split()}
    assert used >= {"muted", "seal", "good", "grid", "tiles", "card", "tile", "wide", "pairs"}
    assert used - {"half", "rounds"} <= set(re.findall(r"\.([a-z]+)", selectors))


def test_every_colour_is_known_by_day_and_by_night(tmp_path: Path) -> None:
    text, _ = _report(tmp_path)
    day, night = (re.findall(r"--([a-z]+):(#[0-9a-f]{6});", root) for root in re.findall(r":root\{([^}]*)\}", text))
    assert dict(day) == {name: light for name, (light, _) in PALETTE.items()}
    assert dict(night) == {name: dark for name, (_, dark) in PALETTE.items()}
    assert set(re.findall(r"var\(--([a-z]+)\)", text)) <= PALETTE.keys()


def test_every_identifier_is_unique_and_every_reference_finds_one(tmp_path: Path) -> None:
    text, page = _report(tmp_path)
    identifiers = page.values("id")
    assert len(identifiers) == len(set(identifiers))
    references = re.findall(r"url\(#([^)]*)\)", text)
    references += [value.removeprefix("#") for value in page.values("xlink:href")]
    assert references
    assert set(references) <= set(identifiers)


def test_a_drawing_has_only_the_colours_of_the_page(tmp_path: Path) -> None:
    text, _ = _report(tmp_path)
    drawings = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert re.findall(r"#[0-9a-f]{6}\b", drawings) == []
    assert {"var(--blue)", "var(--teal)"} <= set(re.findall(r"var\(--\w+\)", drawings))


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    assert _report(tmp_path)[0] == _report(tmp_path)[0]


def test_hostile_names_are_text_and_never_markup(tmp_path: Path) -> None:
    metrics = _metrics(3, layer_density={_HOSTILE: 0.5})
    names = ("method", "model", "data", "partition", "pruneseal", "recommended")
    text, page = _report(
        tmp_path,
        metrics,
        [LayerDensity(_HOSTILE, 1, 2)],
        **dict.fromkeys(names, _HOSTILE),
        plan={_HOSTILE: _HOSTILE},
    )
    assert "<script" not in text
    assert page.tags["script"] == 0
    for shown in (_HOSTILE, f"PruneSeal: {_HOSTILE} on {_HOSTILE}"):
        assert " ".join(shown.split()) in page.text


def test_a_run_of_one_round_without_measurements_is_reported(tmp_path: Path) -> None:
    (metrics,) = _metrics(1, accuracy=None, loss=None)
    _, page = _report(tmp_path, [metrics], accuracy=None, onnx_accuracy=None, onnx_max_abs_diff=None, rounds=1)
    assert "Accuracy n/a, sparsity 0.900" in page.text
    assert "accuracy: not measured" in page.texts
    assert page.tags["svg"] == len(_FIGURES)


def test_an_accuracy_measured_in_some_rounds_ends_with_the_last_that_was(tmp_path: Path) -> None:
    metrics = _metrics(5)
    metrics[3:] = [
        one.model_copy(update={"accuracy": known}) for one, known in zip(metrics[3:], (0.4321, None), strict=True)
    ]
    _, page = _report(tmp_path, metrics)
    assert page.texts.count("0.432") == 2, "once at the curve, once in the table"


def test_rounds_without_times_have_no_legend_of_phases(tmp_path: Path) -> None:
    _, page = _report(
        tmp_path, _metrics(2, seconds=PhaseSeconds(train=0.0, contribute=0.0, release=0.0, add=0.0, other=0.0))
    )
    assert "seconds" in page.texts
    assert "train" not in page.texts


@pytest.mark.parametrize(
    ("verified", "kind", "text"),
    [
        (None, "seal", "sums not verified in this run"),
        (
            Verified(rounds=2, values=9, equal=True, rounds_with_lost_clients=0),
            "seal good",
            "✓ sums verified in 2 rounds",
        ),
        (
            Verified(rounds=2, values=9, equal=False, rounds_with_lost_clients=0),
            "seal bad",
            "✗ sums differ in 2 rounds",
        ),
    ],
)
def test_the_seal_says_whether_the_sums_were_verified(
    tmp_path: Path, verified: Verified | None, kind: str, text: str
) -> None:
    _, page = _report(tmp_path, verified=verified)
    assert kind in page.values("class")
    assert text in page.text


def test_more_uplink_than_dense_is_not_sold_as_a_saving(tmp_path: Path) -> None:
    _, page = _report(tmp_path, dense_fedavg_uplink_bytes=250_000)
    assert "2.0× more uplink" in page.text


def test_of_very_many_tensors_the_largest_are_shown(tmp_path: Path) -> None:
    density = [LayerDensity(f"layer{n}.{'weight' * 10}", n, n) for n in range(1, 101)]
    _, page = _report(tmp_path, density=density)
    names = [text for text in page.texts if text.startswith("layer")]
    assert len(names) == 40
    assert names[0] == "layer100.weightweigh…htweightweightweight"
    assert "40 of 100 tensors, largest first" in page.text


def test_a_density_is_the_fraction_kept() -> None:
    assert LayerDensity("fc.weight", 1, 4).density == 0.25


@pytest.mark.parametrize(("kept", "size"), [(-1, 4), (5, 4), (0, 0)])
def test_an_impossible_density_is_refused(kept: int, size: int) -> None:
    with pytest.raises(ValueError, match=r"'fc\.weight' cannot keep"):
        LayerDensity("fc.weight", kept, size)


@pytest.mark.parametrize(("metrics", "density"), [([], _DENSITY), (_metrics(1), [])])
def test_a_report_of_nothing_is_refused_and_leaves_no_file(
    tmp_path: Path, metrics: list[Record], density: list[LayerDensity]
) -> None:
    with pytest.raises(ValueError, match="at least one completed round"):
        write_report(tmp_path / "report.html", metrics, SUMMARY, density)
    assert list(tmp_path.iterdir()) == []


def test_the_export_stands_beside_the_sparsity(tmp_path: Path) -> None:
    _, page = _report(tmp_path)
    assert "0.123 of the multiply-accumulates left" in page.text
    assert "recommended model.int8.onnx" in page.text
    assert "5.0 kB, 10.0× smaller than dense, 1.50× as fast" in page.text
    assert "2.5 kB, 20.0× smaller, 2.25× as fast, accuracy 0.871" in page.text


def test_a_refused_int8_file_is_told_with_its_reason(tmp_path: Path) -> None:
    _, page = _report(tmp_path, int8_onnx_bytes=None, int8_refused="too bad", multiply_accumulates_left=None)
    assert "model.int8.onnx none: too bad" in page.text
    assert "work left cannot be counted" in page.text


def test_what_the_operator_sees_of_the_masks_is_in_the_table_and_a_figure(tmp_path: Path) -> None:
    seen = {"work_left": 0.25, "regrown": 1234, "agreement": 0.875, "vote_bytes": 20_000}
    densities = {"fc1.weight": 0.25, "fc2.weight": 0.5, "elsewhere": 1.0}
    path = tmp_path / "report.html"
    bars = [LayerDensity("fc1.weight", 1, 4), LayerDensity("fc2.weight", 1, 2)]
    write_report(path, _metrics(3, **seen, layer_density=densities), SUMMARY, bars)
    page = _Page(path.read_text())
    assert "0.250 1,234 0.875 100.0 kB 20.0 kB 200.0 kB" in page.text
    assert page.tags["svg"] == len(_FIGURES) + 1
    assert "Density by round" in page.text
