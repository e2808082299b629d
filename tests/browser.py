"""Headless Chromium, controlled by Selenium, to test pages."""

import json
import shutil
import time
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"]
OPTIONS += [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]


class Browser:
    """Open a page in Chromium, use its controls, and read its text."""

    def __init__(self, profile: Path) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for option in (*OPTIONS, f"--user-data-dir={profile}"):
            options.add_argument(option)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        options.add_experimental_option("prefs", {"download.default_directory": str(profile)})
        service = webdriver.ChromeService(DRIVER)
        self.driver = webdriver.Chrome(options=options, service=service)
        self.downloads = profile
        self.view()

    def view(self, width: int = 1280, height: int = 900, dark: bool = False, media: str = "") -> None:
        """Set the window's size, the color scheme and the media type."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": scheme})

    def open(self, page: Path, address: str = "") -> None:
        """Open a file and wait until the page is drawn."""
        self.driver.get("about:blank")
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)
        self.driver.get(page.resolve().as_uri() + address)
        self.wait()

    def wait(self, seconds: float = 30) -> None:
        """Wait until the page has finished drawing."""
        end = time.monotonic() + seconds
        while self.run("return document.body.getAttribute('aria-busy')") != "false":
            assert time.monotonic() < end, f"the page is not drawn in {seconds} s: {self.errors()}"
            time.sleep(0.05)

    def run(self, script: str, *args):
        return self.driver.execute_script(script, *args)

    def find(self, selector: str):
        return self.driver.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        """Return the text of an element."""
        return self.find(selector).get_attribute("textContent")

    def texts(self, selector: str) -> list[str]:
        return [e.get_attribute("textContent") for e in self.driver.find_elements("css selector", selector)]

    def click(self, selector: str, x: float = 0.5, y: float = 0.5) -> None:
        """Click an element at ``x`` and ``y``, given as fractions of its width and height."""
        from selenium.webdriver import ActionChains

        element = self.find(selector)
        self.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
        box = self.run("const b = arguments[0].getBoundingClientRect(); return [b.width, b.height]", element)
        dx, dy = round((x - 0.5) * box[0]), round((y - 0.5) * box[1])
        ActionChains(self.driver).move_to_element_with_offset(element, dx, dy).click().perform()
        self.wait()

    def press(self, selector: str, *keys: str) -> None:
        """Press keys while an element has the focus."""
        element = self.find(selector)
        self.run("arguments[0].focus()", element)
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)
            self.wait()

    def choose(self, selector: str, text: str) -> None:
        """Choose an option of a list by its text."""
        from selenium.webdriver.support.ui import Select

        Select(self.find(selector)).select_by_visible_text(text)
        self.wait()

    def errors(self) -> list[str]:
        """Return the console's errors and warnings since the page was opened or the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]

    def requests(self) -> list[str]:
        """Return the addresses requested since the page was opened or the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]

    def check_quiet(self) -> None:
        """Assert that the console has no errors and that the page made no network request."""
        assert self.errors() == []
        asked = [url for url in self.requests() if not url.startswith(("file:", "data:", "blob:"))]
        assert asked == []
