"""Make the demo page and the animation of the front page: .github/demo.html and .github/demo.gif.

python tools/site/show.py

Chromium, its driver and selenium must be installed. `crate-mm demo` writes the page; the animation scrolls through it.
"""

import io
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.browser import Browser  # noqa: E402

WIDTH, HEIGHT = 980, 620  # of the browser's window, in pixels
SHOWN = 700  # width of the picture
MAX_BYTES = 2e6  # of each file
FOUR = [[(0.56, 0.2), (0.44, 0.4), (0.32, 0.6), (0.5, 0.6), (0.7, 0.6)], [(0.58, 0.42), (0.58, 0.6), (0.58, 0.8)]]


class Film(Browser):
    """Screenshots of a page in a headless browser, with the display time of each."""

    def __init__(self, page: Path, profile: str) -> None:
        super().__init__(Path(profile))
        self.view(WIDTH, HEIGHT)
        self.open(page)
        self.frames: list[Image.Image] = []
        self.times: list[int] = []

    def show(self, selector: str) -> None:
        """Scroll a section to the top, below the toolbar."""
        top = "document.querySelector(arguments[0]).getBoundingClientRect().top + scrollY"
        self.run(f"window.scrollTo({{top: {top} - 60, behavior: 'instant'}})", selector)
        self.wait()

    def click_key(self, key: str) -> None:
        self.run('document.querySelector(`[data-key="${arguments[0]}"]`).click()', key)
        self.wait()

    def draw(self, ink: str) -> None:
        """Set the strokes of the drawing in the page's URL."""
        self.run(
            "const parts = new URLSearchParams(location.hash.slice(1)); parts.set('ink', arguments[0]);"
            "history.replaceState(null, '', '#' + parts); dispatchEvent(new PopStateEvent('popstate'))",
            ink,
        )
        self.wait()

    def take(self, milliseconds: int) -> None:
        picture = Image.open(io.BytesIO(self.driver.get_screenshot_as_png())).convert("RGB")
        self.frames.append(picture.resize((SHOWN, SHOWN * HEIGHT // WIDTH), Image.LANCZOS))
        self.times.append(milliseconds)

    def save(self, file: Path) -> None:
        height = self.frames[0].height
        every = Image.new("RGB", (SHOWN, height * len(self.frames)))
        for i, frame in enumerate(self.frames):
            every.paste(frame, (0, height * i))
        palette = every.quantize(200, method=Image.Quantize.FASTOCTREE)  # of all frames; median cut loses the blue
        frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in self.frames]
        frames[0].save(file, save_all=True, append_images=frames[1:], duration=self.times, loop=0, optimize=True)


def to_ink(strokes: list[list[tuple[float, float]]]) -> str:
    """Encode strokes as the page's URL does: two letters per point, 64 steps per axis."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return ".".join("".join(letters[round(v * 63)] for point in stroke for v in point) for stroke in strokes)


def main() -> None:
    folder = ROOT / ".github"
    page = folder / "demo.html"
    command = [sys.executable, "-m", "crate_mm", "demo", "--out", str(page)]
    subprocess.run(command, check=True, cwd=ROOT)
    with tempfile.TemporaryDirectory() as profile:
        film = Film(page, profile)
        film.take(1800)
        film.show("#draw")
        drawn: list[list[tuple[float, float]]] = []
        for stroke in FOUR:
            drawn.append([])
            for point in stroke:
                drawn[-1].append(point)
                film.draw(to_ink(drawn))
                film.show("#draw")
                film.take(300)
        film.times[-1] = 2200
        film.click_key("off-layer-3")
        film.show("#draw details")
        film.take(2800)
        film.show("#layer")
        for step in (1, 2, 3, 6, 8):
            film.click_key(f"stage-{step}")
            film.take(1300)
        film.show("#look")
        film.take(2200)
        film.show("#directions")
        film.take(2800)
        film.driver.quit()
    film.save(folder / "demo.gif")
    for file in (page, folder / "demo.gif"):
        size = file.stat().st_size
        print(f"{file.relative_to(ROOT)}: {size / 1e6:.2f} MB")
        if size > MAX_BYTES:
            sys.exit(f"{file.name} has more than {MAX_BYTES / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
