// Sends what the microphone hears to the worker, in pieces of 10 ms, and plays what comes back. Where that is late,
// silence is played until a buffer is in hand again.
const PIECE_SECONDS = 0.01, BUFFER_SECONDS = 0.1;

class Enhancer extends AudioWorkletProcessor {
  constructor() {
    super();
    this.piece = new Float32Array(Math.round(PIECE_SECONDS * sampleRate));
    this.filled = 0;
    this.ready = [];
    this.readySamples = this.at = 0;
    this.playing = false;
    this.port.onmessage = ({ data }) => {
      this.worker = data;
      this.worker.onmessage = ({ data }) => (this.ready.push(data), (this.readySamples += data.length));
    };
  }

  hear(input) {
    for (const sample of input) {
      this.piece[this.filled++] = sample;
      if (this.filled < this.piece.length) continue;
      this.worker.postMessage(this.piece);
      this.filled = 0;
    }
  }

  play(output) {
    if (!this.playing) this.playing = this.readySamples >= BUFFER_SECONDS * sampleRate;
    if (this.playing && this.readySamples < output.length) {
      this.playing = false;
      this.port.postMessage("late");
    }
    if (!this.playing) return;
    for (let i = 0; i < output.length; ++i) {
      output[i] = this.ready[0][this.at];
      if (++this.at === this.ready[0].length) this.ready.shift(), (this.at = 0);
    }
    this.readySamples -= output.length;
  }

  process(inputs, outputs) {
    if (this.worker && inputs[0][0]) this.hear(inputs[0][0]);
    this.play(outputs[0][0]);
    return true;
  }
}

registerProcessor("udse-enhancer", Enhancer);
