// Enhances in a thread of its own: a whole recording, or what the audio worklet sends.
importScripts("stream.js");

const read = async (name) => (await fetch(name)).arrayBuffer();
const network = async (name) => new Uint8Array(await read(`${name}.safetensors`));
const ready = (async () => Udse.open(await read("udse.wasm"), await network("causal"), await network("posterior_causal")))();
let live = null;

async function enhanceRecording({ samples, rate, settings }) {
  const stream = new UdseStream(await ready, { sampleRate: rate, ...settings });
  const out = new Float32Array(samples.length), chunk = rate >> 2, started = performance.now();
  let written = 0;
  const add = (part) => (out.set(part, written), (written += part.length));
  for (let at = 0; at < samples.length; at += chunk) {
    add(stream.process(samples.subarray(at, at + chunk)));
    postMessage({ kind: "progress", share: at / samples.length });
  }
  add(stream.flush());
  stream.close();
  const load = (performance.now() - started) / 1000 / (samples.length / rate);
  postMessage({ kind: "enhanced", samples: out, load }, [out.buffer]);
}

async function startLive({ rate, port, settings }) {
  stopLive();
  const stream = new UdseStream(await ready, { sampleRate: rate, ...settings });
  live = { stream, port };
  let busy = 0, heard = 0;
  port.onmessage = ({ data }) => {
    const started = performance.now(), speech = stream.process(data);
    busy += performance.now() - started;
    heard += data.length;
    postMessage({ kind: "live", noisy: data, speech: speech.slice() });
    if (speech.length) port.postMessage(speech, [speech.buffer]);
    if (heard < rate / 2) return;
    postMessage({ kind: "load", load: busy / 1000 / (heard / rate) });
    busy = heard = 0;
  };
  postMessage({ kind: "started", latency: stream.latency / rate });
}

function stopLive() {
  if (!live) return;
  live.port.close(), live.stream.close();
  live = null;
}

const actions = { recording: enhanceRecording, live: startLive, stop: stopLive };
const fail = (error) => postMessage({ kind: "error", text: String(error.message ?? error) });
onmessage = async ({ data }) => {
  try {
    await actions[data.kind](data);
  } catch (error) {
    fail(error);
  }
};
ready.then(() => postMessage({ kind: "ready" }), fail);
