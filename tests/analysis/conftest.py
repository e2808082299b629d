"""What the tests of the analysis share: a browser for the report's page."""

import pytest

from tests.browser import CHROMIUM, DRIVER, Browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A browser; without Chromium, its driver and Selenium the test is skipped."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("no browser: the Debian packages chromium and chromium-driver bring it")
    pytest.importorskip("selenium", reason='no selenium: pip install "crate_mm[test]" brings it')
    started = Browser(tmp_path_factory.mktemp("browser"))
    yield started
    started.driver.quit()
