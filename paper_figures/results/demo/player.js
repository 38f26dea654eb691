(() => {
// The triplet player: sounds of one item at one gain, heard at one position. Used twice: as an anywidget (`render`) and in
// static pages (`mount`, `upgrade`). All text from data is set as text.

// ---- sound

const FADE = 0.005;                                      // s; long enough not to click, too short to be heard as a fade
const contexts = globalThis.lmacPiqContexts ??= new Map(); // one audio context for each sample rate, however many players and copies of this module a page has
const STARTED = "lmac-piq-started";                      // said on the document by the player that starts, so that all others stop

// The samples of a 16-bit mono WAV, in a data URL or as a DataView, as they are: no normalisation and, unlike decodeAudioData, no resampling
function decode(wav) {
  const view = typeof wav === "string" ? bytesOf(wav) : wav;
  let at = 12;
  while (view.getUint32(at) !== 0x64617461) at += 8 + view.getUint32(at + 4, true);   // the chunk named "data"
  const samples = new Float32Array(view.getUint32(at + 4, true) / 2);
  for (let k = 0; k < samples.length; k++) samples[k] = view.getInt16(at + 8 + 2 * k, true) / 32768;
  return samples;
}

function bytesOf(url) {
  const text = atob(url.slice(url.indexOf(",") + 1)), bytes = new Uint8Array(text.length);
  for (let k = 0; k < bytes.length; k++) bytes[k] = text.charCodeAt(k);
  return new DataView(bytes.buffer);
}

function contextAt(rate) {
  if (!contexts.has(rate)) {
    try { contexts.set(rate, new AudioContext({ sampleRate: rate })); }   // the browser resamples once, at its way out
    catch { contexts.set(rate, new AudioContext()); }
  }
  return contexts.get(rate);
}

// Start all waves together at one position, one of them open and the others shut. Switching moves gains only, so no sample is skipped or repeated.
function start(context, waves, rate, { at, from = 0, loop = [], open = 0 }) {
  at = Math.ceil(at * context.sampleRate) / context.sampleRate;   // on a sample, at both ends, or the browser interpolates
  from = Math.round(from * rate) / rate;
  const voices = waves.map((wave, k) => {
    const buffer = context.createBuffer(1, wave.length, rate);
    buffer.copyToChannel(wave, 0);
    const gain = new GainNode(context, { gain: k === open ? 1 : 0 });
    const source = new AudioBufferSourceNode(context, { buffer, loop: loop.length > 0, loopStart: loop[0] ?? 0, loopEnd: loop[1] ?? 0 });
    source.connect(gain).connect(context.destination);
    source.start(at, from);
    return { source, gain: gain.gain };
  });
  const ramp = (gain, value, when) => {
    gain.cancelScheduledValues(when);
    gain.setValueAtTime(gain.value, when);
    gain.linearRampToValueAtTime(value, when + FADE);
  };
  return {
    at, from, ended: voices[0].source,
    open: (track, when = context.currentTime) => voices.forEach(({ gain }, k) => ramp(gain, k === track ? 1 : 0, when)),
    stop: (when = context.currentTime) => voices.forEach(({ source, gain }) => { source.onended = null; ramp(gain, 0, when); source.stop(when + FADE); }),
  };
}

// ---- elements

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter(child => child !== null && child !== undefined && child !== false));
  return element;
}

const seconds = value => value.toFixed(2);

function ticks(duration) {
  const rough = duration / 6, ten = 10 ** Math.floor(Math.log10(rough)), step = ten * [1, 2, 5, 10].find(k => k * ten >= rough);
  return Array.from({ length: Math.floor(duration / step + 1e-6) + 1 }, (_, k) => Number((k * step).toFixed(6)));
}

const bars = top => make("ul", { class: "bars" }, top.map(({ name, p, text, target }) =>
  make("li", { class: target ? "target" : null }, make("span", { class: "name", title: name }, name),
    make("span", { class: "bar", "aria-hidden": "true" }, make("i", { style: `width:${(100 * p).toFixed(1)}%` })), make("span", { class: "share" }, text ?? `${Math.round(100 * p)} %`))));

const heading = ({ title, subtitle }) => make("h3", {}, title, subtitle && make("span", {}, ` ${subtitle}`));
const notes = ({ note = [] }) => note.map(text => make("p", { class: "note" }, text));

// Images have nothing to play: the parts side by side
const gallery = data => make("div", { class: "tracks" }, data.tracks.map(t => make("figure", { class: "track" },
  make("img", { src: t.image, alt: `${t.label}, ${data.title}` }), make("figcaption", {}, make("b", {}, t.label), t.method && make("small", {}, t.method), make("small", {}, t.detail ?? "")), bars(t.top ?? []))));

// ---- the player

function mount(el, data, report = () => {}) {
  const state = { track: 0, time: 0, playing: false, loop: [] }, self = {};
  const root = make("section", { class: "lmac-player", tabindex: "-1", "data-lm-suppress-shortcuts": "true" });   // a press anywhere gives it the keys, and JupyterLab keeps its own to itself
  let waves = [], run = null, frame = 0, reported = 0, view = {};

  // ---- time

  const context = () => contextAt(data.sample_rate);
  const clamp = time => Math.min(Math.max(time, 0), data.duration);
  const now = () => {
    if (!run) return state.time;
    const [a, b] = state.loop, time = run.from + Math.max(0, context().currentTime - run.at);
    return state.loop.length && time > b ? a + (time - a) % (b - a) : clamp(time);
  };
  const say = text => { view.status.textContent = text; };
  const tell = (...names) => report(Object.fromEntries(names.map(name => [name, name === "track" ? data.tracks[state.track].name : state[name]])));

  function silence() { run?.stop(); run = null; }
  function restart() {
    const [a, b] = state.loop;
    if (state.loop.length && !(state.time >= a && state.time < b)) state.time = a;
    if (!state.loop.length && state.time >= data.duration - 1e-3) state.time = 0;
    silence();
    run = start(context(), waves, data.sample_rate, { at: context().currentTime + 0.01, from: state.time, loop: state.loop, open: state.track });
    run.ended.onended = () => { silence(); state.playing = false; state.time = data.duration; draw(); tell("playing", "time"); };
  }
  function follow() {
    if (!state.playing) return;
    if (!root.isConnected) return self.pause();
    state.time = now();
    drawTime();
    if (performance.now() - reported > 250) { reported = performance.now(); tell("time"); }
    frame = requestAnimationFrame(follow);
  }

  self.play = () => {
    if (state.playing || !waves.length) return;
    state.playing = true;
    document.dispatchEvent(new CustomEvent(STARTED, { detail: root }));
    context().resume();
    restart(); draw(); follow(); tell("playing");
  };
  self.pause = () => {
    if (!state.playing) return;
    state.time = now(); state.playing = false;
    silence(); cancelAnimationFrame(frame); draw(); tell("playing", "time");
  };
  self.toggle = () => state.playing ? self.pause() : self.play();
  self.seek = time => { state.time = clamp(time); if (state.playing) restart(); draw(); tell("time"); };
  self.select = track => {
    const k = typeof track === "string" ? data.tracks.findIndex(t => t.name === track) : track;
    if (k === state.track || !data.tracks[k]) return;
    state.track = k;
    run?.open(k); draw(); tell("track");
    say(`${spoken(data.tracks[k])}${data.tracks[k].silent ? ", silence" : ""}`);
  };
  self.loop = (range = []) => {
    const [a, b] = [...range].sort((x, y) => x - y).map(clamp), next = b - a >= 0.02 ? [a, b] : [];   // a region that short is a click
    if (String(next) === String(state.loop)) return;
    state.time = now(); state.loop = next;
    if (state.playing) restart();
    draw(); tell("loop");
    say(next.length ? `loop from ${seconds(a)} to ${seconds(b)} seconds` : "no loop");
  };

  // ---- what is seen

  const spoken = t => t.method ? `${t.label}, ${t.method}` : t.label;
  const across = time => `${100 * time / data.duration}%`;
  function drawTime() {
    view.head.style.left = across(state.time);
    view.clock.textContent = `${seconds(state.time)} / ${seconds(data.duration)} s`;
    view.picture.setAttribute("aria-valuenow", seconds(state.time));
    view.picture.setAttribute("aria-valuetext", `${seconds(state.time)} of ${seconds(data.duration)} seconds`);
  }
  function draw() {
    drawTime();
    view.play.setAttribute("aria-label", state.playing ? "Pause" : "Play");
    view.play.classList.toggle("playing", state.playing);
    view.images.forEach((image, k) => image.classList.toggle("on", k === state.track));
    view.buttons.forEach((button, k) => button.setAttribute("aria-pressed", String(k === state.track)));
    view.region.hidden = view.clear.hidden = !state.loop.length;
    if (!state.loop.length) return;
    const [a, b] = state.loop;
    Object.assign(view.region.style, { left: across(a), width: across(b - a) });
    view.clear.firstChild.textContent = `Loop ${seconds(a)}–${seconds(b)} s`;
  }

  function stage() {
    const { png, khz_ticks = [] } = data.picture;
    view.images = data.tracks.map(t => make("img", { src: t.png ?? png, alt: "", draggable: "false" }));
    view.region = make("div", { class: "region", hidden: true });
    view.head = make("div", { class: "head" });
    view.picture = make("div", { class: "picture", role: "slider", tabindex: "0", "aria-label": "Position in the spectrogram", "aria-valuemin": "0", "aria-valuemax": seconds(data.duration),
      "aria-keyshortcuts": "Space ArrowLeft ArrowRight Home End Escape", onpointerdown: drag }, view.images, view.region, view.head);
    return make("div", { class: "stage" },
      make("div", { class: "khz", "aria-hidden": "true" }, khz_ticks.map(([khz, up]) => make("span", { style: `bottom:${100 * up}%` }, String(khz))), make("em", {}, "kHz")),
      view.picture,
      make("div", { class: "time", "aria-hidden": "true" }, ticks(data.duration).map(t => make("span", { style: `left:${across(t)}` }, String(t))), make("em", {}, "s")));
  }

  // A press is a place to go to; a press that is drawn along is a region to loop
  function drag(press) {
    const box = view.picture.getBoundingClientRect(), at = event => clamp(data.duration * (event.clientX - box.left) / box.width);
    if (press.button > 0) return;
    const moved = event => Math.abs(event.clientX - press.clientX) > 4;
    const move = event => { if (moved(event)) { const [a, b] = [at(press), at(event)].sort((x, y) => x - y); view.region.hidden = false; Object.assign(view.region.style, { left: across(a), width: across(b - a) }); } };
    const up = event => {
      view.picture.removeEventListener("pointermove", move); view.picture.removeEventListener("pointerup", up); view.picture.removeEventListener("pointercancel", up);
      if (event.type === "pointercancel") return draw();
      if (moved(event)) self.loop([at(press), at(event)]);
      else if (at(event) < state.loop[0] || at(event) > state.loop[1]) self.loop();   // a press outside leaves the loop
      self.seek(moved(event) ? state.loop[0] ?? at(event) : at(event));
    };
    view.picture.setPointerCapture(press.pointerId);
    view.picture.addEventListener("pointermove", move); view.picture.addEventListener("pointerup", up); view.picture.addEventListener("pointercancel", up);
  }

  function transport() {
    view.play = make("button", { type: "button", class: "play", "aria-keyshortcuts": "Space", onclick: self.toggle });
    view.clock = make("span", { class: "clock" });
    view.clear = make("button", { type: "button", class: "clear", hidden: true, "aria-keyshortcuts": "Escape", onclick: () => { self.loop(); view.picture.focus({ preventScroll: true }); } }, make("span"), make("span", { "aria-hidden": "true" }, " ✕"), make("span", { class: "unseen" }, ", clear"));
    view.status = make("span", { class: "unseen", role: "status" });
    const keys = [["space", "play"], [`1–${data.tracks.length}`, "switch"], ["← →", "move"], ["drag", "loop"]];
    return make("div", { class: "transport" }, view.play, view.clock, view.clear, view.status,
      make("span", { class: "keys", "aria-hidden": "true" }, keys.map(([key, does]) => make("span", {}, make("kbd", {}, key), ` ${does}`))));
  }

  function tracks() {
    view.buttons = data.tracks.map((t, k) => make("button", { type: "button", "aria-pressed": "false", "aria-keyshortcuts": String(k + 1), onclick: () => self.select(k) },
      make("img", { src: t.png ?? data.picture.png, alt: "", draggable: "false" }),
      make("b", {}, t.label, t.method && make("small", {}, ` ${t.method}`), make("kbd", { "aria-hidden": "true" }, String(k + 1))), make("small", {}, t.detail ?? (t.silent ? "silence" : ""))));
    return make("div", { class: "tracks", role: "group", "aria-label": "Sound heard" }, data.tracks.map((t, k) => make("div", { class: `track ${t.name.split(":")[0]}` }, view.buttons[k], bars(t.top ?? []))));
  }

  function keys(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !waves.length) return;
    const step = data.duration / 20, last = data.tracks.length - 1, { key } = event;
    const moves = { ArrowLeft: () => self.seek(now() - step), ArrowRight: () => self.seek(now() + step), Home: () => self.seek(state.loop[0] ?? 0), End: () => self.seek(data.duration),
      ArrowUp: () => self.select(Math.max(0, state.track - 1)), ArrowDown: () => self.select(Math.min(last, state.track + 1)), Escape: () => self.loop(),
      "[": () => self.loop([now(), state.loop[1] ?? data.duration]), "]": () => self.loop([state.loop[0] ?? 0, now()]), " ": self.toggle };
    const act = moves[key] ?? (key >= "1" && key <= String(last + 1) ? () => self.select(key - 1) : null);
    if (!act || (key === " " && event.target === view.clear)) return;
    event.preventDefault(); event.stopPropagation();
    if (event.type === "keydown") act();
  }

  // Show other data in place: position, loop, track and whether it plays stay as they are
  self.update = next => {
    const name = data.tracks?.[state.track]?.name, focused = root.contains(document.activeElement) ? document.activeElement.className : null;
    if (state.playing) state.time = now();
    data = next;
    silence();
    waves = data.tracks.every(t => t.wav) ? data.tracks.map(t => decode(t.wav)) : [];
    state.track = Math.max(0, data.tracks.findIndex(t => t.name === name));
    root.setAttribute("aria-label", `${data.title}, explained`);
    if (!waves.length) { self.pause(); return root.replaceChildren(heading(data), ...notes(data), gallery(data)); }
    state.time = clamp(state.time);
    state.loop = state.loop[1] <= data.duration ? state.loop : [];
    root.replaceChildren(heading(data), ...notes(data), stage(), transport(), tracks(),
      make("div", { class: "foot" }, make("p", {}, `One gain for all sounds, ${data.gain_db >= 0 ? "+" : "−"}${Math.abs(data.gain_db).toFixed(1)} dB. Colour is what you hear, grey is what you do not.`),
        make("p", { class: "level" }, `${data.picture.floor_db}`.replace("-", "−"), make("span", { class: "ramp", "aria-hidden": "true" }), "0 dB re loudest bin")));
    if (focused) root.querySelector(`.${focused}`)?.focus({ preventScroll: true });
    draw();
    if (state.playing) restart();
  };
  const yieldTo = ({ detail }) => { if (detail !== root) self.pause(); };
  self.destroy = () => { self.pause(); document.removeEventListener(STARTED, yieldTo); root.remove(); };
  self.state = () => ({ ...state, time: now(), track: data.tracks[state.track].name });

  document.addEventListener(STARTED, yieldTo);
  root.addEventListener("keydown", keys);
  root.addEventListener("keyup", event => { if (event.key === " ") keys(event); });   // Firefox presses a button when the key comes up
  self.update(data);
  el.append(root);
  root.player = self;
  return self;
}

// ---- static pages: the plain sounds that stand there without a script become the player

function upgrade(root = document) {
  for (const place of root.querySelectorAll("[data-lmac-piq]:not([data-upgraded])")) {
    place.setAttribute("data-upgraded", "");
    const data = JSON.parse(place.querySelector("script").textContent), plain = place.querySelector(".plain");
    const figures = [...plain.querySelectorAll("figure")];
    data.tracks.forEach((t, k) => {
      const sound = figures[k].querySelector("audio"), image = figures[k].querySelector("img");
      if (sound) { t.wav = sound.src; t.png = image?.src; } else t.image = image.src;
    });
    mount(place, data);
    plain.remove();
  }
}

// ---- the widget

let telling = false;   // true while a view writes to its model: what it wrote is no command to itself or to another view

function render({ model, el }) {
  const whole = () => { const data = model.get("data"); return { ...data, tracks: data.tracks.map((t, k) => k ? t : { ...t, ...model.get("first") }) }; };
  const player = mount(el, whole(), state => {
    telling = true;
    for (const [name, value] of Object.entries(state)) model.set(name, value);
    telling = false;
    model.save_changes();
  });
  const obey = { data: () => player.update(whole()), track: player.select, loop: player.loop, time: time => telling || player.seek(time), playing: on => telling || (on ? player.play() : player.pause()) };
  for (const [name, act] of Object.entries(obey)) model.on(`change:${name}`, () => act(model.get(name)));
  for (const name of ["track", "loop", "time"]) obey[name](model.get(name));
  el.append(make("style", {}, `[data-beside="${model.get("beside")}"] { display: none; }`));   // for as long as this view is there
  return player.destroy;
}



window.mountPlayer = mount;
})();
