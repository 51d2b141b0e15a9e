"""Tries the page in a headless Chromium, with a file and with a fake microphone: `python check.py [PICTURE.png]`.

Needs the page built (`build.sh`), `pip install playwright`, and Chromium: `CHROMIUM` names it where Playwright has none
of its own. The microphone is Chromium's, which plays the file again and again.
"""

from __future__ import annotations

import functools
import http.server
import os
import sys
import threading
import wave
from pathlib import Path

import numpy as np
import soundfile
from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).parent
NOISY = HERE.parents[1] / "udse_fast" / "examples" / "noisy.flac"
CLEAN = NOISY.with_name("clean.flac")
SAMPLES = """async () => {
  const bytes = await (await fetch(document.getElementById('speech').src)).arrayBuffer();
  return Array.from(new Int16Array(bytes.slice(44)));
}"""
BRIGHT = """() => ['before', 'after'].map((id) => {
  const canvas = document.getElementById(id);
  const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  return data.filter((_, i) => i % 4 === 0).reduce((a, b) => a + b, 0) / (data.length / 4);
})"""


def si_sdr(clean: np.ndarray, estimate: np.ndarray) -> float:
    """dB."""
    target = clean * (clean @ estimate) / (clean @ clean)
    return float(10 * np.log10((target @ target) / ((estimate - target) @ (estimate - target))))


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Says nothing about what was asked."""

    def log_message(self, *_: object) -> None:
        pass


def serve() -> str:
    """The folder of the page; nothing else is reached."""
    handler = functools.partial(Quiet, directory=str(HERE))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/"


def status(page: Page, start: str, seconds: float = 300) -> str:
    """What the page says, once it starts like this."""
    page.wait_for_function(
        "start => document.getElementById('status').textContent.startsWith(start)", arg=start, timeout=1000 * seconds
    )
    return page.locator("#status").inner_text()


def check_file(page: Page) -> None:
    """A recording comes out better, of the same length, and is seen."""
    noisy, clean = (soundfile.read(path, dtype="float32")[0] for path in (NOISY, CLEAN))
    for quality in ("6,2", "6,1", "3,1"):
        page.locator("#quality").select_option(quality)
        page.locator("#file").set_input_files([])
        page.locator("#file").set_input_files(NOISY)
        status(page, "Enhancing")
        print(f"steps, samples {quality}: {status(page, 'Done')}")
        speech = np.array(page.evaluate(SAMPLES), np.float32) / 32767
        assert len(speech) == len(noisy), (len(speech), len(noisy))
        gain = si_sdr(clean, speech) - si_sdr(clean, noisy)
        print(f"  SI-SDR {gain:+.1f} dB, load meter {page.locator('#percent').inner_text()}")
        assert gain > 1
    before, after = page.evaluate(BRIGHT)
    assert before > after > 0, (before, after)


def check_microphone(page: Page) -> None:
    """Live: both spectrograms are drawn, the meter moves, and it ends."""
    page.locator("#quality").select_option("3,1")
    page.locator("#microphone").click()
    print(f"microphone: {status(page, 'Live', 60)}")
    page.wait_for_timeout(8000)
    before, after = page.evaluate(BRIGHT)
    print(f"  load meter {page.locator('#percent').inner_text()}, {page.locator('#status').inner_text()}")
    assert before > after > 0, (before, after)
    page.locator("#microphone").click()
    status(page, "Stopped", 30)


def main() -> None:
    microphone = HERE / "microphone.wav"
    samples, rate = soundfile.read(NOISY, dtype="int16")
    with wave.open(str(microphone), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", "not compressed"))
        file.writeframes(samples.tobytes())
    flags = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream", "--no-sandbox"]
    flags += [f"--use-file-for-fake-audio-capture={microphone}", "--autoplay-policy=no-user-gesture-required"]
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=os.environ.get("CHROMIUM"), args=flags)
            page, address = browser.new_page(viewport={"width": 900, "height": 760}), serve()
            asked: list[str] = []
            page.on("request", lambda request: asked.append(request.url))
            page.on("pageerror", lambda error: sys.exit(f"the page failed: {error}"))
            page.goto(address)
            status(page, "Ready")
            check_file(page)
            if len(sys.argv) > 1:
                page.wait_for_timeout(500)
                page.screenshot(path=sys.argv[1])
            check_microphone(page)
            assert all(url.startswith((address, "blob:")) for url in asked), asked  # nothing leaves the machine
            browser.close()
    finally:
        microphone.unlink()
    print("the page: ok")


if __name__ == "__main__":
    main()
