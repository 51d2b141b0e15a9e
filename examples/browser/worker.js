// Enhances in a thread of its own: a whole recording, or what an audio worklet sends.
importScripts("udse.js", "stream.js");

const ready = (async () => {
  const udse = await makeUdse();
  const prior = await readPrior(udse, new Uint8Array(await (await fetch("prior.safetensors")).arrayBuffer()));
  return { udse, prior };
})();

async function enhanceRecording({ samples, rate }) {
  const { udse, prior } = await ready;
  const stream = new UdseStream(udse, prior, rate), out = new Float32Array(samples.length), chunk = rate / 4;
  const started = performance.now();
  let written = 0;
  const add = (part) => (out.set(part, written), (written += part.length));
  for (let at = 0; at < samples.length; at += chunk) {
    add(stream.process(samples.subarray(at, at + chunk)));
    postMessage({ kind: "progress", share: at / samples.length });
  }
  add(stream.flush());
  stream.close();
  const factor = (performance.now() - started) / 1000 / (samples.length / rate);
  postMessage({ kind: "enhanced", samples: out, factor }, [out.buffer]);
}

async function enhanceLive({ rate, port }) {
  const { udse, prior } = await ready;
  const stream = new UdseStream(udse, prior, rate);
  let busy = 0, heard = 0;
  port.onmessage = ({ data }) => {
    const started = performance.now(), out = stream.process(data);
    busy += performance.now() - started;
    heard += data.length;
    if (out.length) port.postMessage(out, [out.buffer]);
    if (heard >= rate / 2) {
      postMessage({ kind: "load", share: busy / 1000 / (heard / rate) });
      busy = heard = 0;
    }
  };
  postMessage({ kind: "live", latency: stream.latency / rate });
}

onmessage = ({ data }) => (data.kind === "live" ? enhanceLive(data) : enhanceRecording(data));
ready.then(() => postMessage({ kind: "ready" }), (error) => postMessage({ kind: "error", text: String(error) }));
