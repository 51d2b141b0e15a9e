// A stream of the WebAssembly library, one channel: chunks of any length in, what is ready out.
const OPTIONS_BYTES = 48; // struct udse_options of a 32-bit machine: sample_rate is its second word
const ERROR_BYTES = 256;

async function readPrior(udse, bytes) {
  const memory = udse._malloc(bytes.length), error = udse._malloc(ERROR_BYTES);
  udse.HEAPU8.set(bytes, memory);
  const prior = udse._udse_parse_prior(memory, bytes.length, error);
  udse._free(memory);
  if (!prior) throw new Error(errorText(udse, error));
  udse._free(error);
  return prior;
}

function errorText(udse, error) {
  const text = udse.HEAPU8.subarray(error + 4, error + ERROR_BYTES);
  return new TextDecoder().decode(text.slice(0, text.indexOf(0)));
}

class UdseStream {
  constructor(udse, prior, sampleRate) {
    const options = udse._malloc(OPTIONS_BYTES), error = udse._malloc(ERROR_BYTES);
    udse._udse_default_options(options);
    udse.HEAPU32[options / 4 + 1] = sampleRate;
    this.udse = udse;
    this.stream = udse._udse_open_with(prior, options, error);
    if (!this.stream) throw new Error(errorText(udse, error));
    udse._free(options);
    udse._free(error);
    this.room = 0;
  }

  get latency() {
    return Number(this.udse._udse_latency(this.stream));
  }

  makeRoom(samples) {
    if (samples <= this.room) return;
    if (this.room) this.udse._free(this.input), this.udse._free(this.output);
    this.room = samples;
    this.input = this.udse._malloc(4 * samples);
    this.output = this.udse._malloc(4 * samples);
  }

  process(chunk) {
    const most = Number(this.udse._udse_most(this.stream, BigInt(chunk.length)));
    this.makeRoom(Math.max(most, chunk.length));
    this.udse.HEAPF32.set(chunk, this.input / 4);
    const frames = BigInt(chunk.length), capacity = BigInt(this.room);
    return this.taken(this.udse._udse_process(this.stream, this.input, frames, this.output, capacity));
  }

  flush() {
    this.makeRoom(Number(this.udse._udse_remaining(this.stream)) + 1);
    return this.taken(this.udse._udse_flush(this.stream, this.output, BigInt(this.room)));
  }

  taken(count) {
    if (count < 0) throw new Error(`udse: code ${count}`);
    return this.udse.HEAPF32.slice(this.output / 4, this.output / 4 + Number(count));
  }

  close() {
    this.udse._udse_close(this.stream);
    if (this.room) this.udse._free(this.input), this.udse._free(this.output);
  }
}

if (typeof module !== "undefined") module.exports = { readPrior, UdseStream };
