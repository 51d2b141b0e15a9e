const element = (id) => document.getElementById(id);
const RATE = 16000; // of the prior: recordings are enhanced at it
const SHOWN_SECONDS = 6; // of the microphone
const worker = new Worker("worker.js");
const say = (text) => (element("status").textContent = text);
let live = null; // the microphone's context, and the last seconds heard and enhanced

const events = {
  ready() {
    say("Ready.");
    for (const id of ["file", "microphone"]) element(id).disabled = false;
  },
  error: ({ text }) => say(`Something went wrong: ${text}`),
  progress: ({ share }) => say(`Enhancing: ${Math.round(100 * share)} %`),
  load: ({ load }) => showLoad(load),
  started: ({ latency }) => say(`Live, ${Math.round(1000 * latency)} ms of the algorithm behind.`),
  live({ noisy, speech }) {
    if (live) keep(live.noisy, noisy), keep(live.speech, speech);
  },
  enhanced({ samples, load }) {
    showLoad(load);
    show(samples, "after", "speech");
    say(`Done: ${load.toFixed(2)} seconds of computing for a second of audio.`);
  },
};
worker.onmessage = ({ data }) => events[data.kind](data);

function showLoad(load) {
  element("load").value = load;
  element("percent").textContent = `${Math.round(100 * load)} %`;
}

function settings() {
  const [steps, samples] = element("quality").value.split(",").map(Number);
  return { steps, samples };
}

// 16-bit, one channel
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

function show(samples, canvas, audio) {
  drawSpectrogram(samples, RATE, element(canvas));
  URL.revokeObjectURL(element(audio).src);
  element(audio).src = URL.createObjectURL(wav(samples));
}

async function enhance(file) {
  await stopLive();
  const decoded = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await file.arrayBuffer());
  const samples = decoded.getChannelData(0).slice();
  show(samples, "before", "noisy");
  worker.postMessage({ kind: "recording", samples, rate: RATE, settings: settings() });
}

function keep(last, samples) {
  last.copyWithin(0, samples.length);
  last.set(samples, last.length - samples.length);
}

async function startLive() {
  const constraints = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
  const microphone = await navigator.mediaDevices.getUserMedia({ audio: constraints });
  const context = new AudioContext(), { port1, port2 } = new MessageChannel(), rate = context.sampleRate;
  await context.audioWorklet.addModule("worklet.js");
  const node = new AudioWorkletNode(context, "udse-enhancer", { outputChannelCount: [1] });
  node.port.onmessage = () => say("Late: choose a faster quality.");
  node.port.postMessage(port1, [port1]);
  worker.postMessage({ kind: "live", rate, port: port2, settings: settings() }, [port2]);
  context.createMediaStreamSource(microphone).connect(node).connect(context.destination);
  const [noisy, speech] = [0, 0].map(() => new Float32Array(SHOWN_SECONDS * rate));
  const redraw = () => {
    drawSpectrogram(noisy, rate, element("before"));
    drawSpectrogram(speech, rate, element("after"));
  };
  live = { context, microphone, noisy, speech, timer: setInterval(redraw, 400) };
  element("microphone").textContent = "Stop";
}

async function stopLive() {
  if (!live) return;
  const { context, microphone, timer } = live;
  live = null;
  clearInterval(timer);
  microphone.getTracks().forEach((track) => track.stop());
  worker.postMessage({ kind: "stop" });
  await context.close();
  element("microphone").textContent = "Use the microphone (with headphones)";
  say("Stopped.");
}

const guarded = (action) => Promise.resolve(action()).catch((error) => say(String(error)));
const first = (files) => files.length && guarded(() => enhance(files[0]));
const drop = element("drop");
element("file").onchange = () => first(element("file").files);
drop.ondragover = (event) => (event.preventDefault(), drop.classList.add("over"));
drop.ondragleave = () => drop.classList.remove("over");
drop.ondrop = (event) => (event.preventDefault(), drop.classList.remove("over"), first(event.dataTransfer.files));
element("microphone").onclick = () => guarded(() => (live ? stopLive() : startLive()));
