"""Browser for tests of the report's page."""

import pytest

from tests.browser import CHROMIUM, DRIVER, Browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Start a browser, or skip the test unless Chromium, its driver and Selenium are installed."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("no browser: install the Debian packages chromium and chromium-driver")
    pytest.importorskip("selenium", reason='no selenium: pip install "crate_mm[test]"')
    started = Browser(tmp_path_factory.mktemp("browser"))
    yield started
    started.driver.quit()
