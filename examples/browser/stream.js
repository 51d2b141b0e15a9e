// The C interface in WebAssembly: `Udse` is the library with its networks, `UdseStream` one channel of a stream.

// What the standard library asks of the system: nothing that a stream needs.
const SYSTEM = { get: (_, name) => (name === "proc_exit" ? (code) => { throw new Error(`udse: exit ${code}`); } : () => 0) };
const ERROR_BYTES = 256;
// struct udse_options on a 32-bit machine, in bytes
const OPTIONS = { bytes: 64, sampleRate: 4, blockFrames: 32, steps: 36, samples: 40 };

class Udse {
  // prior, posterior: bytes of the two networks
  static async open(module, prior, posterior) {
    const imports = { env: new Proxy({}, SYSTEM), wasi_snapshot_preview1: new Proxy({}, SYSTEM) };
    const udse = new Udse((await WebAssembly.instantiate(module, imports)).instance.exports);
    udse.library._initialize?.();
    const { malloc, free, udse_parse_networks: parse } = udse.library, error = malloc(ERROR_BYTES);
    const at = [prior, posterior].map((file) => {
      const bytes = malloc(file.length);
      udse.bytes.set(file, bytes);
      return bytes;
    });
    udse.prior = parse(at[0], prior.length, at[1], posterior.length, error);
    at.forEach((bytes) => free(bytes));
    if (!udse.prior) throw new Error(udse.text(error));
    free(error);
    return udse;
  }

  constructor(library) {
    this.library = library;
  }

  // Views are made anew: the memory may have grown.
  get bytes() {
    return new Uint8Array(this.library.memory.buffer);
  }

  floats(at, count) {
    return new Float32Array(this.library.memory.buffer, at, count);
  }

  text(error) {
    const text = this.bytes.slice(error + 4, error + ERROR_BYTES);
    return new TextDecoder().decode(text.subarray(0, text.indexOf(0)));
  }
}

class UdseStream {
  // settings: of `OPTIONS`, 0 leaves a choice to the prior
  constructor(udse, settings) {
    const { library } = udse, options = library.malloc(OPTIONS.bytes), error = library.malloc(ERROR_BYTES);
    library.udse_default_options(options);
    const view = new DataView(library.memory.buffer);
    for (const [name, value] of Object.entries(settings)) view.setUint32(options + OPTIONS[name], value, true);
    this.udse = udse;
    this.stream = library.udse_open_with(udse.prior, options, error);
    const text = this.stream ? "" : udse.text(error);
    library.free(options), library.free(error);
    if (text) throw new Error(text);
    this.room = 0;
  }

  // Frames that must follow one before it is given, at most
  get latency() {
    return Number(this.udse.library.udse_latency(this.stream));
  }

  process(chunk) {
    const { library } = this.udse, frames = BigInt(chunk.length);
    this.makeRoom(Math.max(chunk.length, Number(library.udse_most(this.stream, frames))));
    this.udse.floats(this.input, chunk.length).set(chunk);
    return this.taken(library.udse_process(this.stream, this.input, frames, this.output, BigInt(this.room)));
  }

  // The rest; the stream starts anew afterwards
  flush() {
    this.makeRoom(Number(this.udse.library.udse_remaining(this.stream)) + 1);
    return this.taken(this.udse.library.udse_flush(this.stream, this.output, BigInt(this.room)));
  }

  close() {
    this.udse.library.udse_close(this.stream);
    if (this.room) this.udse.library.free(this.input), this.udse.library.free(this.output);
  }

  makeRoom(samples) {
    if (samples <= this.room) return;
    if (this.room) this.udse.library.free(this.input), this.udse.library.free(this.output);
    this.room = samples;
    this.input = this.udse.library.malloc(4 * samples);
    this.output = this.udse.library.malloc(4 * samples);
  }

  taken(count) {
    if (count < 0) throw new Error(`udse: code ${count}`);
    return this.udse.floats(this.output, Number(count)).slice();
  }
}

if (typeof module !== "undefined") module.exports = { Udse, UdseStream };
