"""The report in headless Chromium: sorting, filtering, hovering, and what it must not do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mergeforget.run import Run

selenium = pytest.importorskip("selenium", reason="selenium is not installed (group dev)")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver (apt-get install both)"
)


@pytest.fixture(scope="module")
def page(reported: Run) -> Path:
    return reported.report


@pytest.fixture(scope="module")
def browser(page: Path) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_window_size(1600, 1000)
    driver.get(page.as_uri())
    yield driver
    driver.quit()


def column(browser: Any, number: int) -> list[str]:
    script = (
        "return [...document.querySelectorAll('.sortable tbody tr')].filter(r => !r.hidden)"
        ".map(r => r.cells[arguments[0]].dataset.value ?? r.cells[arguments[0]].textContent)"
    )
    return list(browser.execute_script(script, number))


def test_the_page_loads_without_errors_or_network_requests(browser: Any, page: Path) -> None:
    """First, before anything else writes into the logs."""
    import json

    assert browser.get_log("browser") == []
    messages = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    asked = [
        m["params"]["request"]["url"]
        for m in messages
        if m["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in asked if not url.startswith("data:")] in ([], [page.as_uri()])


def test_hostile_text_creates_no_html_element(browser: Any) -> None:
    count = browser.execute_script(
        "return document.querySelectorAll('img[src=x], body script').length"
    )
    assert count == 1  # the page's own
    assert "<script>alert('x')</script>" in browser.find_element("id", "answers").text


def test_rows_are_sorted_by_a_number_in_both_directions(browser: Any) -> None:
    button = browser.find_elements("css selector", ".sortable thead button")[4]
    button.click()
    rising = [float(v) for v in column(browser, 4)]
    assert rising == sorted(rising) and len(rising) == 23
    button.click()
    assert [float(v) for v in column(browser, 4)] == sorted(rising, reverse=True)


def test_rows_without_a_value_are_sorted_last(browser: Any) -> None:
    browser.find_elements("css selector", ".sortable thead button")[3].click()
    density = column(browser, 3)
    assert density[-3:] == ["", "", ""] and density[0] == "0.1"


def test_the_filter_hides_rows_that_do_not_match(browser: Any) -> None:
    box = browser.find_element("id", "filter")
    box.send_keys("ties d0.7")
    assert len(column(browser, 0)) == 1
    assert browser.find_element("id", "count").text == "1 of 23"
    box.clear()
    box.send_keys(" ")
    assert len(column(browser, 0)) == 23


@pytest.mark.parametrize(
    ("figure", "told"), [("density-mia-auc", "n 30"), ("pareto-knowledge", "forgotten")]
)
def test_hovering_over_a_point_shows_its_figures(browser: Any, figure: str, told: str) -> None:
    from selenium.webdriver import ActionChains

    mark = browser.find_element("css selector", f"#{figure} .plot i")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", mark)
    ActionChains(browser).move_to_element(mark).perform()
    tip = browser.find_element("id", "tip")
    assert tip.is_displayed() and told in tip.text


@pytest.mark.parametrize("width", [400, 1600])
def test_no_element_is_wider_than_the_window(browser: Any, width: int) -> None:
    """Chromium's window is at least 500 wide, so the width is set for the page itself."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    inner, content = browser.execute_script(
        "return [innerWidth, document.documentElement.scrollWidth]"
    )
    assert inner == width and content <= width


def test_without_scripts_the_tables_and_figures_remain(browser: Any, page: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(page.as_uri())
        assert len(browser.find_elements("css selector", ".sortable tbody tr")) == 23
        assert len(browser.find_elements("css selector", "figure img")) > 10
        assert not browser.find_element("id", "filter").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
