const element = (id) => document.getElementById(id);
const RATE = 16000; // of the prior: recordings are shown and enhanced at it
const worker = new Worker("worker.js");
const say = (text) => (element("status").textContent = text);

worker.onmessage = ({ data }) => {
  if (data.kind === "ready") say("Ready."), (element("microphone").disabled = false);
  if (data.kind === "error") say(data.text);
  if (data.kind === "progress") say(`Enhancing: ${Math.round(100 * data.share)} %`);
  if (data.kind === "load") element("load").value = data.share;
  if (data.kind === "live") say(`Live, ${Math.round(1000 * data.latency)} ms behind.`);
  if (data.kind !== "enhanced") return;
  element("load").value = data.factor;
  show(data.samples, "after", "speech");
  say(`Done: ${data.factor.toFixed(2)} seconds of computing for a second of audio.`);
};

function wav(samples) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, string) => [...string].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  text(0, "RIFF"), view.setUint32(4, 36 + 2 * samples.length, true), text(8, "WAVEfmt ");
  view.setUint32(16, 16, true), view.setUint16(20, 1, true), view.setUint16(22, 1, true);
  view.setUint32(24, RATE, true), view.setUint32(28, 2 * RATE, true), view.setUint16(32, 2, true);
  view.setUint16(34, 16, true), text(36, "data"), view.setUint32(40, 2 * samples.length, true);
  samples.forEach((x, i) => view.setInt16(44 + 2 * i, Math.max(-1, Math.min(1, x)) * 32767, true));
  return new Blob([view], { type: "audio/wav" });
}

// A spectrogram of 128 bands by the plain transform, in decibels
function draw(samples, canvas) {
  const size = 256, bands = 128, { width, height } = canvas, context = canvas.getContext("2d");
  const image = context.createImageData(width, bands), window = new Float32Array(size);
  for (let n = 0; n < size; ++n) window[n] = Math.sin((Math.PI * n) / size) ** 2;
  const cosine = Float32Array.from({ length: size }, (_, n) => Math.cos((2 * Math.PI * n) / size));
  for (let x = 0; x < width; ++x) {
    const start = Math.floor((x * Math.max(0, samples.length - size)) / width);
    for (let band = 0; band < bands; ++band) {
      let real = 0, imaginary = 0;
      for (let n = 0; n < size; ++n) {
        const sample = (samples[start + n] || 0) * window[n];
        real += sample * cosine[(n * band) % size];
        imaginary += sample * cosine[(n * band + size / 4) % size];
      }
      const level = Math.max(0, 1 + Math.log10(real ** 2 + imaginary ** 2 + 1e-9) / 6);
      image.data.set([255 * level, 255 * level ** 2, 160 * level * (1 - level), 255], 4 * ((bands - 1 - band) * width + x));
    }
  }
  createImageBitmap(image).then((bitmap) => context.drawImage(bitmap, 0, 0, width, height));
}

function show(samples, canvas, audio) {
  draw(samples, element(canvas));
  element(audio).src = URL.createObjectURL(wav(samples));
}

async function enhance(file) {
  const decoded = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await file.arrayBuffer());
  const samples = decoded.getChannelData(0).slice();
  show(samples, "before", "noisy");
  worker.postMessage({ kind: "recording", samples, rate: RATE });
}

async function live() {
  const constraints = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
  const microphone = await navigator.mediaDevices.getUserMedia({ audio: constraints });
  const context = new AudioContext(), { port1, port2 } = new MessageChannel();
  await context.audioWorklet.addModule("worklet.js");
  const node = new AudioWorkletNode(context, "udse-enhancer", { outputChannelCount: [1] });
  node.port.postMessage(port1, [port1]);
  worker.postMessage({ kind: "live", rate: context.sampleRate, port: port2 }, [port2]);
  context.createMediaStreamSource(microphone).connect(node).connect(context.destination);
}

const first = (files) => files.length && enhance(files[0]).catch((error) => say(String(error)));
element("file").onchange = () => first(element("file").files);
element("drop").ondragover = (event) => event.preventDefault();
element("drop").ondrop = (event) => (event.preventDefault(), first(event.dataTransfer.files));
element("microphone").onclick = () => live().catch((error) => say(String(error)));
