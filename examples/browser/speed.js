// Real-time factor of the library in WebAssembly, on one core, without the time of other programs:
//     node speed.js NOISY.f32 > table.md
// NOISY.f32: raw float samples at 16 kHz.
const fs = require("fs"), path = require("path");
const { Udse, UdseStream } = require("./stream.js");

const RATE = 16000, CHUNK = RATE / 100;
const read = (name) => fs.readFileSync(path.join(__dirname, name));

async function main() {
  const file = fs.readFileSync(process.argv[2]), noisy = new Float32Array(file.buffer.slice(file.byteOffset), 0, file.length >> 2);
  const network = (name) => new Uint8Array(read(`${name}.safetensors`));
  const udse = await Udse.open(read("udse.wasm"), network("causal"), network("posterior_causal"));
  console.log("| steps | samples | audio, s | real-time factor |\n| --- | --- | --- | --- |");
  for (const [steps, samples] of [[3, 1], [6, 1], [6, 2]]) {
    const stream = new UdseStream(udse, { sampleRate: RATE, steps, samples }), started = process.cpuUsage();
    for (let at = 0; at < noisy.length; at += CHUNK) stream.process(noisy.subarray(at, at + CHUNK));
    const seconds = process.cpuUsage(started).user / 1e6, audio = noisy.length / RATE;
    console.log(`| ${steps} | ${samples} | ${audio.toFixed(1)} | ${(seconds / audio).toFixed(2)} |`);
    stream.close();
  }
}

main();
