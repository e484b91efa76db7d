"""The page at ``/``, in headless Chromium: what a person drops, sees, and is told."""

import json
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.expected_conditions import visibility_of_element_located
from selenium.webdriver.support.ui import WebDriverWait

from tests.serve.serving import LABELS, Server, expected, labelled, rows

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver (Debian: chromium, chromium-driver)"
    ),
]
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1200,900",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: webdriver.Chrome, server: Server) -> webdriver.Chrome:
    browser.get(f"http://{server.http}/")
    WebDriverWait(browser, 20).until(visibility_of_element_located((By.CSS_SELECTOR, "#about")))
    return browser


def text(page: webdriver.Chrome, selector: str) -> str:
    """The text of an element, once it is shown."""
    return str(WebDriverWait(page, 20).until(visibility_of_element_located((By.CSS_SELECTOR, selector))).text)


def png(file: Path, grey: list[list[int]]) -> Path:
    """Write a grey image."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", len(grey[0]), len(grey), 8, 0, 0, 0, 0)
    lines = b"".join(b"\0" + bytes(line) for line in grey)
    file.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    )
    return file


def test_the_models_and_their_provenance_are_shown(page: webdriver.Chrome) -> None:
    assert text(page, "#state") == "serves 4 models"
    assert [one.text for one in page.find_elements(By.CSS_SELECTOR, ".model strong")] == ["linear", *["versioned"] * 3]
    about = text(page, "#properties")
    for told in ("0123abcd", "0.950000", "input: FP32, n × 1 × 4 × 4", "zero, one, two, three"):
        assert told in about


def test_an_image_is_scaled_to_the_input_and_its_prediction_shown(page: webdriver.Chrome, tmp_path: Path) -> None:
    grey = [[(16 * row + 4 * column) % 256 for column in range(4)] for row in range(4)]
    page.find_element(By.ID, "file").send_keys(str(png(tmp_path / "sample.png", grey)))
    wanted = expected(labelled(), np.array([[grey]], np.float32))[0]
    assert text(page, "#winner") == LABELS[int(wanted.argmax())]
    assert "ms, there and back · linear version 1" in text(page, "#facts")
    bars = page.find_elements(By.CSS_SELECTOR, "#bars li")
    assert [bar.text.splitlines()[0] for bar in bars] == [LABELS[k] for k in wanted.argsort()[::-1]]
    assert page.find_element(By.ID, "seen").is_displayed()


def test_a_row_of_numbers_is_predicted_by_keyboard_alone(page: webdriver.Chrome) -> None:
    row = rows(1, seed=4)
    area = page.find_element(By.ID, "row")
    area.send_keys(json.dumps(row[0].reshape(-1).tolist()))
    area.send_keys(Keys.TAB + Keys.ENTER)
    assert text(page, "#winner") == LABELS[int(expected(labelled(), row)[0].argmax())]


def test_another_model_is_chosen_by_keyboard(page: webdriver.Chrome) -> None:
    page.find_element(By.CSS_SELECTOR, ".model input").send_keys(Keys.ARROW_DOWN)
    assert "logits: FP32, n × 4" in text(page, "#properties")
    assert "0123abcd" not in text(page, "#properties")


def test_a_file_that_is_no_image_is_told_so(page: webdriver.Chrome, tmp_path: Path) -> None:
    bad = tmp_path / "notes.png"
    bad.write_text("no image")
    page.find_element(By.ID, "file").send_keys(str(bad))
    assert "“notes.png” is not an image that this browser can read" in text(page, "#error")
    assert not page.find_element(By.ID, "result").is_displayed()


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("hello", "That is not JSON"),
        ("{}", "The row must be a list of numbers"),
        ("[1, 2]", "(400): the data of 'input' are 2 values, not those of the shape [1, 1, 4, 4]"),
        ('["a"]', "The server refused this (400)"),
    ],
)
def test_a_bad_row_is_told_what_is_wrong(page: webdriver.Chrome, row: str, told: str) -> None:
    page.find_element(By.ID, "row").send_keys(row)
    page.find_element(By.ID, "predict").click()
    assert told in text(page, "#error")


def test_nothing_breaks_the_page_s_own_policy(page: webdriver.Chrome) -> None:
    log: list[dict[str, str]] = page.get_log("browser")  # type: ignore[no-untyped-call]
    assert [line for line in log if "Content Security Policy" in line["message"]] == []
