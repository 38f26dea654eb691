// A listening study as its participant meets it. The kernel says what is on the page, and all of it is shown as text. Each answer goes to the kernel
// at once and counts when the kernel says that it is on the disk. Of the sounds no more is known here than their letters.
// `player` stands before this file: the parts of player.js that make sound and elements.

const { contextAt, decode, make, start } = player;
const PATIENCE = 8000;    // ms to wait for the kernel

// All sounds of a trial run at one position; to switch is to move gains.
class Deck {
  constructor(sounds, rate, changed) {
    Object.assign(this, { sounds, rate, changed, current: 0, heard: new Set(), repeat: true, at: 0, run: null });
    this.waves = sounds.map(({ wav }) => decode(wav));
    this.seconds = this.waves[0].length / rate;
  }

  get playing() { return this.run !== null; }
  get name() { return this.sounds[this.current].name; }
  get position() {
    if (!this.run) return this.at;
    const time = this.run.from + Math.max(0, contextAt(this.rate).currentTime - this.run.at);
    return this.repeat ? time % this.seconds : Math.min(time, this.seconds);
  }

  play() {
    const context = contextAt(this.rate);
    context.resume();
    this.run?.stop();
    if (this.at >= this.seconds - 1e-3) this.at = 0;
    this.run = start(context, this.waves, this.rate, { at: context.currentTime + 0.01, from: this.at, loop: this.repeat ? [0, this.seconds] : [], open: this.current });
    this.run.ended.onended = () => { this.at = 0; this.run = null; this.changed(); };
    this.heard.add(this.name);
    this.changed();
  }

  pause() { this.at = this.position; this.run?.stop(); this.run = null; this.changed(); }
  seek(seconds) { this.at = seconds; if (this.run) this.play(); else this.changed(); }
  again(repeat) { const at = this.position; this.repeat = repeat; this.seek(at); }

  choose(name) {
    this.current = this.sounds.findIndex((sound) => sound.name === name);
    if (this.run) { this.heard.add(name); this.run.open(this.current); }
    this.changed();
  }
}

// Questions to the kernel, each with its answer or, after a while, with none.
class Kernel {
  constructor(model, silent) {
    Object.assign(this, { model, silent, waiting: new Map(), last: 0, tag: Math.random().toString(36).slice(2) });
    this.hear = (message) => {
      const answer = this.waiting.get(message.id);
      if (!answer) return;
      this.waiting.delete(message.id);
      if (!this.waiting.size) this.silent(false);
      answer(message.error);
    };
    model.on("msg:custom", this.hear);
  }

  ask(message) {
    const id = `${this.tag}-${++this.last}`;
    setTimeout(() => { if (this.waiting.has(id)) this.silent(true); }, PATIENCE);
    return new Promise((answer) => { this.waiting.set(id, answer); this.model.send({ id, ...message }); });
  }

  close() { this.model.off("msg:custom", this.hear); this.waiting.clear(); }
}

function render({ model, el }) {
  const root = make("section", { class: "lmac-study", tabindex: -1, "aria-label": "listening study", "data-lm-suppress-shortcuts": "true" });
  const lost = make("p", { class: "lost", role: "alert", hidden: true });
  const body = make("div");
  root.append(lost, body);
  el.append(root);
  let deck = null, keys = {}, refresh = () => {}, frame = 0;

  const kernel = new Kernel(model, (silent) => {
    lost.hidden = !silent;
    lost.replaceChildren(...(silent ? ["The last answer is NOT stored: the study does not answer. Everything that was stored before is kept. ",
      make("button", { type: "button", onclick: () => location.reload() }, "Reload this page"), " and go on with your code."] : []));
  });

  // -- the first page and the last

  function entry(page) {
    const alert = make("p", { class: "said", role: "alert" });
    const code = make("input", { type: "text", autocomplete: "off", autocapitalize: "characters", spellcheck: "false", size: 8, maxlength: 8, "aria-describedby": "lmac-study-code",
      onkeydown: (event) => { if (event.key === "Enter") enter(code.value); } });
    const enter = async (text) => { alert.textContent = await kernel.ask({ do: "enter", value: text.trim().toUpperCase() }); };
    const door = make("p", {}, make("label", {}, "Participant code ", code), " ", make("button", { type: "button", class: "go", onclick: () => enter(code.value) }, "Begin"));
    body.replaceChildren(make("h2", {}, page.title), make("p", {}, page.question),
      make("ul", {}, ...page.hints.map((hint) => make("li", {}, hint))), door, make("p", { class: "soft", id: "lmac-study-code" }, page.codes), alert);
    const given = new URLSearchParams(location.search).get("code");     // a link, or a reload
    if (given && !page.left) { code.value = given; enter(given); }
  }

  function end(page) {
    body.replaceChildren(make("div", { class: "end", role: "status" }, make("p", { class: "tick", "aria-hidden": "true" }, "✓"),
      make("h2", {}, "Finished. Thank you!"), make("p", {}, `All ${page.total} trials of ${page.code} are answered and stored. You may close this page.`)),
      make("p", { class: "soft" }, make("button", { type: "button", onclick: () => kernel.ask({ do: "previous" }) }, "Back to the last trial")));
  }

  // -- a trial

  function trial(page) {
    const letters = page.sounds.slice(1).map((sound) => sound.name), reference = page.sounds[0].name, mushra = page.kind === "mushra";
    const given = () => model.get("given");
    const said = make("p", { class: "said", role: "alert" }), stored = make("span", { class: "soft", role: "status" });
    const tell = (text) => { said.textContent = ""; said.textContent = text; };
    const answer = async (message, done) => {
      stored.textContent = "storing…";
      const error = await kernel.ask({ page: page.place, ...message });
      stored.textContent = error ? "" : done;
      tell(error);
      refresh();
    };
    const listened = (name) => {
      if (deck.heard.has(name) || name in given().values) return true;
      tell(`Listen to sound ${name} before you answer.`);
      return false;
    };

    deck = new Deck(page.sounds, page.sample_rate, () => refresh());
    const play = make("button", { type: "button", class: "play", onclick: () => (deck.playing ? deck.pause() : deck.play()) });
    const seek = make("input", { type: "range", class: "seek", min: 0, max: deck.seconds, step: 0.01, value: 0, "aria-label": "position", oninput: () => deck.seek(Number(seek.value)) });
    const time = make("output", { class: "time" });
    const repeat = make("input", { type: "checkbox", checked: true, onchange: () => deck.again(repeat.checked) });
    const button = (name) => make("button", { type: "button", class: "sound", "data-sound": name, "aria-label": name === reference ? name : `sound ${name}`,
      onclick: () => { const again = deck.playing && deck.name === name; deck.choose(name); if (again) deck.pause(); else if (!deck.playing) play.click(); } }, name);
    const buttons = Object.fromEntries(page.sounds.map(({ name }) => [name, button(name)]));

    const sliders = {}, readouts = {};
    const row = (name) => {
      const set = () => { if (listened(name)) answer({ do: "rate", sound: name, value: Number(slider.value) }, `${name}: ${slider.value} stored`); else refresh(); };
      const slider = sliders[name] = make("input", { type: "range", min: 0, max: 100, step: 1, "aria-label": `rating of sound ${name}`, onchange: set,
        onfocus: () => deck.choose(name), oninput: () => { readouts[name].textContent = slider.value; },
        onpointerup: () => { if (!(name in given().values) && slider.value === "50") set(); },               // a click that moves nothing is an answer too
        onkeydown: (event) => { if (event.key === "Enter") set(); } });
      readouts[name] = make("output", { "aria-hidden": "true" });
      return make("div", { class: "row", role: "group", "aria-label": `sound ${name}` }, buttons[name], slider, readouts[name]);
    };
    const choices = { A: "A", "": "no difference", B: "B" }, radios = {};
    const choice = ([value, text]) => make("label", {}, radios[value] = make("input", { type: "radio", name: `better-${kernel.tag}`, value,
      onchange: () => { if (letters.every(listened)) answer({ do: "choose", sound: value || null }, "stored"); else refresh(); } }), text);

    const note = make("input", { type: "text", maxlength: 2000, value: given().remark, placeholder: "no names, please", onchange: () => answer({ do: "comment", value: note.value }, "remark stored") });
    const step = async (to) => tell(await kernel.ask({ do: to, page: page.place }));
    const previous = make("button", { type: "button", disabled: page.place === 1, onclick: () => step("previous") }, "Previous");
    const next = make("button", { type: "button", class: "go", onclick: () => step("next") }, page.place === page.total ? "Finish" : "Next");
    const progress = make("progress", { max: page.total, "aria-label": "trials answered" });

    const asked = mushra ? [make("div", { class: "row" }, buttons[reference], make("span", { class: "soft" }, "compare the others with this one")),
      make("div", { class: "row scale", "aria-hidden": "true" }, make("span"), make("span", { class: "ticks" }, ...[0, 20, 40, 60, 80, 100].map((n) => make("i", {}, `${n}`))), make("span")), ...letters.map(row)]
      : [make("div", { class: "pair" }, ...page.sounds.map(({ name }) => buttons[name])), make("fieldset", {}, make("legend", {}, "Which is better?"), ...Object.entries(choices).map(choice))];
    body.replaceChildren(make("header", {}, make("h2", { tabindex: -1 }, page.title), make("p", { class: "soft" }, `${page.code} · trial ${page.place} of ${page.total}`), progress),
      make("p", {}, page.question), make("div", { class: "transport" }, play, seek, time, make("label", {}, repeat, " repeat")), ...asked,
      make("label", { class: "note" }, make("span", { class: "soft" }, "Remark "), note), said, make("footer", {}, previous, next, stored),
      make("p", { class: "soft keys" }, `Keys: space plays and pauses; R, ${letters.join(", ")} choose a sound; ${mushra ? "the arrows move its slider" : "Tab and the arrows reach the answers"}. Each answer is stored as you give it.`));

    keys = { " ": () => play.click(), r: () => { deck.choose(reference); buttons[reference].focus(); } };
    for (const name of letters) keys[name.toLowerCase()] = () => { deck.choose(name); (sliders[name] ?? buttons[name]).focus(); };

    refresh = () => {
      const { values, done } = given();
      play.textContent = deck.playing ? "Pause" : "Play";
      for (const [name, node] of Object.entries(buttons)) {
        node.setAttribute("aria-pressed", deck.name === name);
        node.classList.toggle("on", deck.playing && deck.name === name);
      }
      for (const name of mushra ? letters : []) {
        const there = name in values;
        if (document.activeElement !== sliders[name] || !there) sliders[name].value = there ? values[name] : 50;
        sliders[name].classList.toggle("unset", !there);
        sliders[name].setAttribute("aria-valuetext", there ? `${values[name]}` : "not rated yet");
        readouts[name].textContent = there ? values[name] : "–";
      }
      if (!mushra) for (const [value, node] of Object.entries(radios)) node.checked = "A" in values && (values.A > values.B ? "A" : values.A < values.B ? "B" : "") === value;
      progress.value = done;
      tick();
    };
    const tick = () => {
      cancelAnimationFrame(frame);
      const at = deck.position;
      seek.value = at;
      seek.setAttribute("aria-valuetext", `${at.toFixed(1)} seconds`);
      time.textContent = `${at.toFixed(1)} of ${deck.seconds.toFixed(1)} s`;
      if (deck.playing) frame = requestAnimationFrame(tick);
    };
    refresh();
  }

  function draw() {
    const page = model.get("page"), first = !body.childElementCount;
    cancelAnimationFrame(frame);
    deck?.pause();
    deck = null; keys = {}; refresh = () => {};
    ({ entry, end, mushra: trial, ab: trial })[page.kind]?.(page);
    if (page.code) remember(page.code);
    if (!first) { root.scrollIntoView({ block: "nearest" }); root.querySelector("h2")?.focus(); }
  }

  // A reload finds the code in the address. JupyterLab's address is its own, and its kernel remembers.
  function remember(code) {
    if (/\/(lab|doc|notebooks|tree)\b/.test(location.pathname)) return;
    const address = new URL(location.href);
    if (address.searchParams.get("code") === code) return;
    address.searchParams.set("code", code);
    history.replaceState(null, "", address);
  }

  // Enter on a button and arrows on a slider or a choice are a browser's own, but JupyterLab takes them away from whatever stands in an output
  function swallowed({ key, target }) {
    const radios = [...root.querySelectorAll("[type=radio]")], right = { ArrowRight: 1, ArrowLeft: -1 }[key], up = right ?? { ArrowUp: 1, ArrowDown: -1 }[key];
    if (key === "Enter" && target.matches("button")) target.click();
    else if (up && target.matches("[type=range]")) {
      target.value = Number(target.value) + up * (target.className === "seek" ? target.max / 20 : 1);
      for (const kind of ["input", "change"]) target.dispatchEvent(new Event(kind));
    } else if (up && radios.includes(target)) {
      const next = radios.at((radios.indexOf(target) + (right ?? -up)) % radios.length);
      next.focus(); next.click();
    } else return false;
    return true;
  }

  root.addEventListener("keydown", (event) => {
    if (swallowed(event)) return event.preventDefault();
    const typing = event.target.matches("input[type=text]"), own = event.target.matches("button, [type=radio], [type=checkbox]") && event.key === " ";
    if (typing || own || event.ctrlKey || event.metaKey || event.altKey) return;
    const act = keys[event.key.toLowerCase()];
    if (act) { event.preventDefault(); act(); }
  });
  const again = () => refresh();
  model.on("change:page", draw);
  model.on("change:given", again);
  draw();
  return () => { model.off("change:page", draw); model.off("change:given", again); kernel.close(); deck?.pause(); };
}

export default { render };
