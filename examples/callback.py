"""A stream inside the callback of an audio library: microphone to loudspeaker with PortAudio (`sounddevice`).

The callback runs on the sound card's clock and must return within its buffer. A callback of BUFFER samples costs a
causal stream one block of computing, or two, so it can be called right there; `stream.last_seconds` tells how close
that comes. (`udse-fast live` computes in a thread of its own and counts underruns: more buffering, more patience.)
"""

import numpy as np

import udse_fast

RATE, BUFFER = 16000, 1024


class Callback:
    """Fills the output with what is ready, after as much silence as the stream needs to get going."""

    def __init__(self, stream: udse_fast.Stream) -> None:
        self.stream = stream
        self.ready = np.zeros(stream.latency_samples + BUFFER, np.float32)  # the delay of the whole chain
        self.worst = 0.0  # share of the time of a buffer that computing took

    def __call__(self, heard: np.ndarray, played: np.ndarray, frames: int, time: object, status: object) -> None:
        """PortAudio's: `heard` and `played` are (frames, 1) float32."""
        self.ready = np.concatenate([self.ready, self.stream.process(heard[:, 0])])
        played[:, 0], self.ready = self.ready[:frames], self.ready[frames:]
        self.worst = max(self.worst, self.stream.last_seconds * RATE / frames)


def main() -> None:
    """Until Enter is pressed."""
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # the package, or the PortAudio library that it needs
        raise SystemExit(
            f"callback.py needs sounddevice with PortAudio ({error}): pip install udse-fast[live]"
        ) from None

    callback = Callback(udse_fast.Enhancer().open_stream(RATE))
    with sounddevice.Stream(samplerate=RATE, blocksize=BUFFER, channels=1, dtype="float32", callback=callback):
        input("speak; Enter ends ")
    print(f"slowest callback: {callback.worst:.0%} of its time")


if __name__ == "__main__":
    main()
