// Sends what the microphone hears to the worker, and plays what comes back; silence where it is late.
class Enhancer extends AudioWorkletProcessor {
  constructor() {
    super();
    this.waiting = [];
    this.at = 0;
    this.port.onmessage = ({ data }) => {
      this.worker = data;
      this.worker.onmessage = ({ data }) => this.waiting.push(data);
    };
  }

  process(inputs, outputs) {
    const input = inputs[0][0], output = outputs[0][0];
    if (input && this.worker) this.worker.postMessage(input.slice());
    for (let i = 0; i < output.length && this.waiting.length; ++i) {
      output[i] = this.waiting[0][this.at];
      if (++this.at === this.waiting[0].length) this.waiting.shift(), (this.at = 0);
    }
    return true;
  }
}

registerProcessor("udse-enhancer", Enhancer);
