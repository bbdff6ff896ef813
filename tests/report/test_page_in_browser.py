"""The page as somebody uses it, in headless Chromium: sorting, filtering, opening, hovering, on a phone."""

import json
import shutil

import pytest
from fake_runs import found_run

from st3.overview import overview

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install '.[dev]'")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium"),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A page of three rows: two seeds of ST-3 at 80 and at 90 %, and a run that died and was evaluated again."""
    folder = tmp_path_factory.mktemp("runs")
    for sparsity in ("0.8", "0.9"):
        for seed in (0, 1):
            name = f"{sparsity}-{seed}"
            found_run(folder / name, f"sparsity={sparsity}", f"seed={seed}", top1=75 + seed - 10 * float(sparsity))
    dead = found_run(folder / "dead", "method=gmp", "sparsity=0.98", top1=10.0, warnings=["dead: </script> & co"])
    (dead / "evaluation").mkdir()
    confusion = {"split": "test", "classes": ["cat", "dog"], "confusion": [[3, 1], [0, 4]]}
    (dead / "evaluation" / "test.json").write_text(json.dumps(confusion))
    overview([folder])
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # tests may run as root
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, written):
    """Opened; nothing may be said on its console, and nothing be asked of a network."""
    page, wrong = browser.new_page(viewport={"width": 1280, "height": 800}), []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: request.url.startswith(("data:", "blob:")) or wrong.append(request.url))
    page.goto(written.as_uri())
    yield page
    page.close()
    assert set(wrong) == {written.as_uri()}


def column(page, number):
    """Of the rows that are shown."""
    return page.locator(f"#rows tbody tr:visible td:nth-child({number})").all_inner_texts()


def test_rows_are_sorted_and_filtered(page):
    assert column(page, 2) == ["98", "80", "90"]
    head = page.get_by_role("button", name="top-1 measured")
    head.click()
    assert [text[:5] for text in column(page, 3)] == ["67.50", "66.50", "10.00"]
    head.click()
    assert [text[:5] for text in column(page, 3)] == ["10.00", "66.50", "67.50"]
    page.locator("#filter").fill("ST3 90")
    assert column(page, 2) == ["90"]
    assert page.locator("#shown").inner_text() == "1 of 3 rows"
    page.locator("#filter").fill("")
    assert len(column(page, 2)) == 3


def test_a_runs_charts_are_drawn_when_its_section_is_opened(page):
    section = page.locator("details", has_text="gmp, 98 %, seed 0").first
    assert section.locator(".main-svg").count() == 0
    page.get_by_role("link", name="s0").first.click()
    section.locator(".main-svg").first.wait_for()
    titles = section.locator("h3").all_inner_texts()
    assert titles == [
        "Loss and accuracy", "Sparsity of each layer; red: 1 wholly zero", "Confusion on test, in % of each true class"
    ]  # fmt: skip
    assert section.locator(".js-plotly-plot").count() == 3
    assert "dead: </script> & co" in section.inner_text()
    assert "method.name=gmp" in section.locator(".settings").inner_text()


def test_hovering_says_what_a_point_is_and_the_legend_hides_a_series(page):
    chart = page.locator('[data-chart="accuracy_over_macs"]')
    chart.scroll_into_view_if_needed()
    box = chart.locator(".scatterlayer .point").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 - 3, box["y"] + box["height"] / 2)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert "top-1 10.00 % (n = 1, no interval)" in chart.locator(".hovertext").text_content()
    points = chart.locator(".scatterlayer .point")
    assert points.count() == 3
    chart.locator(".legendtoggle").last.click()
    page.wait_for_timeout(600)  # a second click within 300 ms would mean something else
    assert points.count() == 1


def test_a_phone_shows_it_without_scrolling_sideways(page):
    page.set_viewport_size({"width": 390, "height": 844})
    page.reload()
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    page.locator("#run-4 .main-svg").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
