// The code player: the codebook of a class as a grid, one code open, its places in the clip, and the triplet player to hear it with.
// Used twice: as an anywidget (`render`) and in static pages (`mount`, `upgrade`). All text from data is set as text.
import { mount as mountPlayer } from "./player.js";

// ---- sound: FLAC in, what the player reads out

const base64 = bytes => { let text = ""; for (let k = 0; k < bytes.length; k += 0x8000) text += String.fromCharCode(...bytes.subarray(k, k + 0x8000)); return btoa(text); };

// The very samples of the file: at its own rate nothing is resampled
async function samples(url, rate) {
  const bytes = Uint8Array.from(atob(url.slice(url.indexOf(",") + 1)), c => c.charCodeAt(0));
  return (await new OfflineAudioContext(1, 1, rate).decodeAudioData(bytes.buffer)).getChannelData(0);
}

function wav(wave, rate) {
  const view = new DataView(new ArrayBuffer(44 + 2 * wave.length)), text = (at, s) => [...s].forEach((c, k) => view.setUint8(at + k, c.charCodeAt(0)));
  text(0, "RIFF"); text(8, "WAVEfmt "); text(36, "data");
  for (const [at, value] of [[4, 36 + 2 * wave.length], [16, 16], [24, rate], [28, 2 * rate], [40, 2 * wave.length]]) view.setUint32(at, value, true);
  for (const [at, value] of [[20, 1], [22, 1], [32, 2], [34, 16]]) view.setUint16(at, value, true);
  wave.forEach((x, k) => view.setInt16(44 + 2 * k, Math.round(32768 * x), true));
  return `data:audio/wav;base64,${base64(new Uint8Array(view.buffer))}`;
}

// ---- pictures: colour where something is heard, grey elsewhere, in the proportion of the mask

async function image(url) { const found = new Image(); found.src = url; await found.decode(); return found; }

async function paint(colour, grey, veil, boxes) {
  const [width, height] = [colour.naturalWidth, colour.naturalHeight], [base, layer] = [0, 1].map(() => Object.assign(document.createElement("canvas"), { width, height }));
  const ink = layer.getContext("2d"), ground = base.getContext("2d");
  ink.imageSmoothingEnabled = true;
  if (boxes) { ink.beginPath(); boxes.forEach(([x, y, right, bottom]) => ink.rect(x * width, y * height, (right - x) * width, (bottom - y) * height)); ink.clip(); }
  ink.drawImage(colour, 0, 0);
  ink.globalCompositeOperation = "destination-in";
  ink.drawImage(veil, 0, 0, width, height);
  ground.drawImage(grey, 0, 0);
  ground.drawImage(layer, 0, 0);
  return base.toDataURL();
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

// The border of the places as a path: a side is drawn where the neighbour is not one of them
function outline(map, fires) {
  const at = (i, j) => map.codes[i]?.[j] !== undefined && fires(map.codes[i][j]), sides = [];
  map.codes.forEach((line, i) => line.forEach((code, j) => {
    if (!at(i, j)) return;
    const [left, right, first, end] = [map.x[j], map.x[j + 1], map.y[i], map.y[i + 1]];
    if (!at(i - 1, j)) sides.push(`M${left} ${first}H${right}`);
    if (!at(i + 1, j)) sides.push(`M${left} ${end}H${right}`);
    if (!at(i, j - 1)) sides.push(`M${left} ${first}V${end}`);
    if (!at(i, j + 1)) sides.push(`M${right} ${first}V${end}`);
  }));
  return sides.join("");
}

const boxes = (map, row) => map.codes.flatMap((line, i) => line.flatMap((code, j) => code === row ? [[map.x[j], Math.min(map.y[i], map.y[i + 1]), map.x[j + 1], Math.max(map.y[i], map.y[i + 1])]] : []));

// ---- the code player

export function mount(el, data, report = () => {}) {
  const root = make("section", { class: "lmac-codes", tabindex: "-1", "data-lm-suppress-shortcuts": "true" }), self = {};
  let row = null, player = null, place, tiles = [], panel, status, hint, common, now = -1, turn = 0;

  const code = () => data.codes.find(c => c.row === row);
  const sounds = () => data.sample_rate !== null;
  const total = () => data.map.codes.flat().length;

  // ---- the grid

  const states = { here: c => `fires at ${c.places} of ${total()} positions`, elsewhere: () => `not in this ${data.thing}`, "not here": () => `not in this ${data.thing}`, dead: () => `dead: never in ${data.counted}, and not in this ${data.thing}` };
  const spoken = c => `code ${c.row}${c.shared ? ", shared" : ""}, ${states[c.state](c)}${c.share && c.state !== "dead" ? `, ${c.share} of the choices` : ""}`;
  const most = () => Math.max(...data.codes.map(c => c.part ?? 0), 1e-9);

  function tile(c) {
    const written = c.state === "here" ? `${c.places}×` : c.state === "dead" ? "dead" : "–";
    return make("button", { type: "button", class: `code ${c.state.replace(" ", "-")}`, "data-row": c.row, "aria-label": spoken(c), "aria-pressed": "false", tabindex: "-1", onclick: () => press(c.row) },
      make("span", { class: "patch" }, make("img", { src: data.media[`patch-${c.row}`], alt: "", draggable: "false" })),
      make("span", { class: "line" }, make("b", {}, String(c.row)), make("span", {}, written)),
      c.share && make("span", { class: "use" }, make("i", { style: `width:${(100 * c.part / most()).toFixed(1)}%` })), c.share && make("small", {}, c.share));
  }

  function keys(event) {
    const here = tiles.indexOf(event.target.closest?.(".code"));
    if (here < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const box = t => t.getBoundingClientRect(), from = box(tiles[here]);
    const beyond = down => tiles.filter(t => (box(t).top - from.top) * down > 4).sort((a, b) => Math.abs(box(a).top - from.top) - Math.abs(box(b).top - from.top) || Math.abs(box(a).left - from.left) - Math.abs(box(b).left - from.left))[0];
    const moves = { ArrowRight: () => tiles[here + 1], ArrowLeft: () => tiles[here - 1], ArrowDown: () => beyond(1), ArrowUp: () => beyond(-1), Home: () => tiles[0], End: () => tiles.at(-1) };
    if (moves[event.key]) { const next = moves[event.key](); if (next) focus(next); }
    else if (sounds() && event.key >= "1" && event.key <= "4") player?.select(event.key - 1);
    else return;
    event.preventDefault(); event.stopPropagation();
  }
  const focus = next => { tiles.forEach(t => t.setAttribute("tabindex", t === next ? "0" : "-1")); next.focus(); };

  // ---- the open code

  const ramp = () => data.draws === "mask" ? make("span", { class: "ramp" }, "mask 0", make("i", { class: "mask", "aria-hidden": "true" }), "1") : sounds() ? make("span", { class: "ramp" }, "quiet", make("i", { class: "level", "aria-hidden": "true" }), "loud") : null;
  function draw() {
    const c = code(), of = data.groups.find(g => g.shared === c.shared).title.replace(/^Codes/, "one of the codes");
    tiles.forEach(t => { const on = Number(t.dataset.row) === row; t.setAttribute("aria-pressed", String(on)); t.setAttribute("tabindex", on ? "0" : "-1"); });
    const seen = (name, text, centre) => make("figure", {}, make("span", { class: `patch${centre ? " centre" : ""}` }, make("img", { src: data.media[name], alt: `code ${row}: ${text}` })), make("figcaption", {}, text));
    panel.replaceChildren(make("h4", {}, `Code ${row}`, make("span", {}, ` ${of}`)),
      make("div", { class: "seen" }, seen(`patch-${row}`, "said everywhere"), c.places > 0 && seen(`drawn-${row}`, "drawn around its places, mean", true), make("p", { class: "scale" }, data.span && make("span", {}, `${data.span}`), ramp())),
      make("dl", {}, c.facts.flatMap(([name, text]) => [make("dt", {}, name), make("dd", {}, text)])));
    mark();
  }

  // Outline the places of the open code on the picture of the player, which is new after each update
  function mark() {
    place.querySelector(".places")?.remove();
    const on = place.querySelector(".picture") ?? place.querySelector("figure.track");
    if (!on) return;
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg"), path = outline(data.map, k => k === row);
    for (const [name, value] of Object.entries({ class: "places", viewBox: "0 0 1 1", preserveAspectRatio: "none", role: "img", "aria-label": spoken(code()) })) svg.setAttribute(name, value);
    if (!sounds()) svg.style.aspectRatio = data.aspect;
    for (const kind of ["under", "over"]) { const line = document.createElementNS("http://www.w3.org/2000/svg", "path"); line.setAttribute("class", kind); line.setAttribute("d", path); svg.append(line); }
    on.append(svg);
  }

  async function load() {
    const mine = ++turn, c = code(), { media } = data, names = { original: "Original", kept: "Kept", here: "Where it fires", everywhere: "Said everywhere" };
    const tracks = [...data.tracks, ...c.tracks].map(t => ({ ...t, label: names[t.name], method: null }));
    let shown = { title: `Code ${row}`, target: data.title, note: [], tracks: tracks.map(t => ({ ...t, image: media[t.image] })) };
    if (sounds()) {
      const rate = data.sample_rate, silence = () => new Float32Array(Math.round(rate * data.duration));
      const heard = async t => wav(t.sound ? await samples(media[t.sound], rate) : silence(), rate);
      common ??= { colour: await image(media.colour), grey: await image(media.grey), kept: await image(media["mask-kept"]), wav: await Promise.all(data.tracks.map(heard)) };
      common.png ??= [media.colour, await paint(common.colour, common.grey, common.kept)];
      const pictures = [...common.png, await paint(common.colour, common.grey, common.kept, boxes(data.map, row)), await paint(common.colour, common.grey, await image(media[`mask-${row}`]))];
      const waves = [...common.wav, ...await Promise.all(c.tracks.map(heard))];
      shown = { ...shown, sample_rate: rate, duration: data.duration, gain_db: data.gain_db, picture: { png: media.colour, khz_ticks: data.khz_ticks, floor_db: data.floor_db }, tracks: tracks.map((t, k) => ({ ...t, silent: !t.sound, wav: waves[k], png: pictures[k] })) };
    }
    if (mine !== turn) return;                             // another code was opened meanwhile
    if (player) player.update(shown); else { player = mountPlayer(place, shown, heed); if (sounds()) player.select("here"); }
    mark();
  }

  self.choose = next => {
    if (next === row || !data.codes.some(c => c.row === next)) return self.ready;
    row = next;
    draw(); report({ row });
    status.textContent = spoken(code());
    return self.ready = load();
  };

  // A press opens a code and plays it where it fires; a press on the open one plays or pauses
  async function press(next) {
    const again = next === row;
    await self.choose(next);
    if (!sounds() || row !== next) return;
    if (again) return player.toggle();
    const c = code(), columns = data.map.codes.flatMap(line => line.flatMap((k, j) => k === next ? [j] : []));
    if (!c.tracks[0].sound) return player.pause();         // nothing to hear here
    player.select("here");
    player.seek(data.duration * data.map.x[Math.min(...columns)]);
    player.play();
  }

  // ---- while it plays: the codes at the playhead

  const heed = ({ playing }) => { if (playing) follow(); };
  function follow() {
    const { playing, time } = player.state(), at = data.map.x.findLastIndex(x => x <= time / data.duration);
    const column = playing ? Math.min(Math.max(at, 0), data.map.x.length - 2) : -1;
    if (column !== now) { now = column; const said = new Set(data.map.codes.map(line => line[column])); tiles.forEach(t => t.classList.toggle("now", column >= 0 && said.has(Number(t.dataset.row)))); }
    if (playing && root.isConnected) requestAnimationFrame(follow);
  }

  // ---- the picture: which code is under the pointer

  function under(event) {
    const svg = place.querySelector(".places"), box = svg?.getBoundingClientRect(), x = (event.clientX - box?.left) / box?.width, y = (event.clientY - box?.top) / box?.height;
    const within = (edges, at) => edges.slice(1).findIndex((end, k) => Math.min(end, edges[k]) <= at && at < Math.max(end, edges[k]));
    const [i, j] = [within(data.map.y, y), within(data.map.x, x)];
    return svg && i >= 0 && j >= 0 ? { i, j, code: data.map.codes[i][j] } : null;
  }
  function look(event) {
    const spot = event.type === "pointerleave" ? null : under(event), { seconds, khz } = data.map;
    tiles.forEach(t => t.classList.toggle("under", spot !== null && Number(t.dataset.row) === spot.code));
    hint.textContent = spot ? `code ${spot.code}${seconds ? `, ${seconds[spot.j].toFixed(2)}–${seconds[spot.j + 1].toFixed(2)} s, ${khz[spot.i].toFixed(2)}–${khz[spot.i + 1].toFixed(2)} kHz` : ""}; double-click opens it` : "";
  }

  // ---- all of it

  self.update = next => {
    const before = row, group = g => [make("h4", {}, `${g.title}:`, make("span", {}, ` ${g.count}`)), make("div", { class: "grid", role: "group", "aria-label": g.title }, data.codes.filter(c => c.shared === g.shared).map(tile))];
    data = next; row = null; common = null; turn++;
    player?.destroy(); player = null;
    panel = make("div", { class: "panel" });
    place = make("div", { class: "place", onpointermove: look, onpointerleave: look, ondblclick: event => { const spot = under(event); if (spot) self.choose(spot.code); } });
    status = make("p", { class: "unseen", role: "status" });
    hint = make("p", { class: "hint", "aria-hidden": "true" });
    root.setAttribute("aria-label", `${data.title} ${data.subtitle}`);
    root.replaceChildren(make("h3", {}, data.title, make("span", {}, ` ${data.subtitle}`)), ...data.note.map(text => make("p", { class: "note" }, text)), ...data.groups.flatMap(group), make("p", { class: "foot" }, data.legend), status, panel, place, hint, make("p", { class: "foot" }, data.foot));
    tiles = [...root.querySelectorAll(".code")];
    return self.choose(data.codes.some(c => c.row === before) ? before : data.open);
  };
  self.state = () => ({ row, player: player && sounds() ? player.state() : null });
  self.destroy = () => { turn++; player?.destroy(); root.remove(); };
  Object.defineProperty(self, "player", { get: () => player });

  root.addEventListener("keydown", keys);
  el.append(root);
  self.update(data);
  root.codes = self;
  return self;
}

// ---- static pages: the plain list that stands there without a script becomes the code player

export function upgrade(root = document) {
  for (const spot of root.querySelectorAll("[data-lmac-codes]:not([data-upgraded])")) {
    spot.setAttribute("data-upgraded", "");
    const data = JSON.parse(spot.querySelector("script").textContent), plain = spot.querySelector(".plain");
    for (const element of plain.querySelectorAll("[data-media]")) data.media[element.dataset.media] = element.src;
    mount(spot, data);
    plain.remove();
  }
}

// ---- the widget

function render({ model, el }) {
  const view = mount(el, model.get("data"), ({ row }) => { if (model.get("row") !== row) { model.set("row", row); model.save_changes(); } });
  const obey = { data: () => view.update(model.get("data")), row: () => view.choose(model.get("row")) };
  for (const [name, act] of Object.entries(obey)) model.on(`change:${name}`, act);
  el.append(make("style", {}, `[data-beside="${model.get("beside")}"] { display: none; }`));   // for as long as this view is there
  return view.destroy;
}

export default { render };
