// A microphone as raw samples: mono, at the rate of the audio context, no echo or noise processing. Nothing leaves the page but through `done`.

const TAP = `registerProcessor("tap", class extends AudioWorkletProcessor {
  process([input]) { if (input[0]) this.port.postMessage(input[0].slice()); return true; }
});`;

const REASONS = {
  NotAllowedError: "the browser was not allowed to use the microphone: allow it beside the address, or upload a file",
  NotFoundError: "this computer has no microphone: upload a file instead",
};

// recorder({done, failed, level, seconds}) -> {toggle, stop}; `done(Float32Array, rate)`, `failed(text)`, `level(0..1, seconds so far)`; stops by itself after `seconds`.
export function recorder({ done, failed, level = () => {}, seconds = 30 }) {
  let context = null, stream = null, chunks = [], samples = 0, starting = false;

  async function start() {
    if (!navigator.mediaDevices) throw new Error("the browser gives the microphone only to https or localhost: upload a file instead");
    stream = await navigator.mediaDevices.getUserMedia({ audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: false } });
    context = new AudioContext();
    const code = URL.createObjectURL(new Blob([TAP], { type: "text/javascript" }));
    await context.audioWorklet.addModule(code);
    URL.revokeObjectURL(code);
    const tap = new AudioWorkletNode(context, "tap", { numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit" });
    chunks = []; samples = 0;
    tap.port.onmessage = ({ data }) => {
      if (!context) return;   // a last block that was on its way
      chunks.push(data); samples += data.length;
      level(Math.max(...data.map(Math.abs)), samples / context.sampleRate);
      if (samples > seconds * context.sampleRate) stop();
    };
    context.createMediaStreamSource(stream).connect(tap);
    await context.resume();
  }

  function close() {
    stream?.getTracks().forEach((track) => track.stop());
    context?.close();
    context = stream = null;
    level(0, 0);
  }

  function stop() {
    if (!context) return;
    const rate = context.sampleRate, wave = new Float32Array(samples);
    let at = 0;
    for (const chunk of chunks) { wave.set(chunk, at); at += chunk.length; }
    close();
    done(wave, rate);
  }

  async function toggle() {
    if (context) return stop();
    if (starting) return;
    starting = true;
    try { await start(); } catch (error) { close(); failed(REASONS[error.name] ?? error.message); }
    starting = false;
  }

  return { toggle, close };
}
