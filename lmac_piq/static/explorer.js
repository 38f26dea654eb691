// The explorer's panel. It draws `state` and sends what was pressed; every decision is made in Python. Text goes in as text, never as HTML.
// `recorder` comes from recorder.js, which stands before this file in the same module.

const LARGEST = 7e6;   // bytes of an upload: a notebook server closes the connection at about ten million
const SVG = ["svg", "polyline", "line"];

function make(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG.includes(tag) ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml", tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (name === "text") element.textContent = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// Children are made anew only when what they show has changed, so that focus and open lists survive a move of the dial.
function fill(element, shown, children) {
  const key = JSON.stringify(shown);
  if (element.shown === key) return;
  const focused = [...element.children].indexOf(document.activeElement);
  element.shown = key;
  element.replaceChildren(...children());
  if (focused >= 0) element.children[focused]?.focus();
}

// Actions go out one at a time. While the kernel works, a newer turn of the dial takes the place of one that still waits.
function mailbox(model, busy) {
  const view = Math.random().toString(36).slice(2);
  let count = 0, sent = null, waiting = [];
  function next() {
    if (sent || !waiting.length) return;
    const { name, value, buffers } = waiting.shift();
    sent = `${view}-${++count}`;
    busy(true);
    model.send({ id: sent, do: name, value }, undefined, buffers);
  }
  return {
    ask(name, value = null, buffers = []) {
      if (name === "turn") waiting = waiting.filter((w) => w.name !== "turn");
      waiting.push({ name, value, buffers });
      next();
    },
    answered(id) {
      if (id !== sent) return;
      sent = null;
      busy(waiting.length > 0);
      next();
    },
    idle: () => !sent,
  };
}

// A row of buttons of which one or several are pressed.
function choice(label, press) {
  const group = make("div", { class: "choice", role: "group", "aria-label": label });
  return {
    element: group,
    show(options) {   // [{value, text, pressed, colour, title}]
      fill(group, options, () => options.map(({ value, text, pressed, colour, title }) => make("button",
        { type: "button", "aria-pressed": Boolean(pressed), click: () => press(value), ...(title && { title }), ...(colour && { style: `--c: ${colour}`, class: "method" }) }, text)));
    },
  };
}

function row(label, ...children) { return make("div", { class: "row" }, make("span", { class: "label", text: label }), make("div", { class: "what" }, ...children)); }

// ---- the sound: an item, a path, an upload, the microphone

function soundRow(ask, complain) {
  const items = make("select", { "aria-label": "sound", change: () => ask("item", items.value) });
  const path = make("input", { type: "text", placeholder: "path of a sound file", "aria-label": "path of a sound file", keydown: (e) => e.key === "Enter" && open() });
  const open = () => path.value.trim() && ask("open", path.value.trim());
  const file = make("input", { type: "file", accept: "audio/*,.flac,.aiff", hidden: "", "aria-label": "sound file to upload", change: upload });
  const level = make("i", { class: "level", "aria-hidden": "true" });
  const record = make("button", { type: "button", class: "record", click: () => mic.toggle() }, level, make("span", { text: "Record" }));
  const mic = recorder({
    done: (wave, rate) => ask("record", rate, [wave.buffer]),
    failed: complain,
    level(peak, seconds) {
      level.style.width = `${100 * Math.min(1, peak)}%`;
      record.lastChild.textContent = seconds ? `Stop (${seconds.toFixed(1)} s)` : "Record";
    },
  });
  async function upload() {
    const [chosen] = file.files;
    file.value = "";
    if (!chosen) return;
    if (chosen.size > LARGEST) return complain(`${chosen.name}: ${(chosen.size / 1e6).toFixed(0)} MB is more than can be sent to the kernel: give its path instead`);
    ask("upload", chosen.name, [await chosen.arrayBuffer()]);
  }
  const paths = make("span", { class: "path" }, path, make("button", { type: "button", click: open }, "Open"));
  const element = row("Sound", items, paths, make("button", { type: "button", click: () => file.click() }, "Upload…"), file, record);
  return {
    element, close: mic.close,
    show(s) {
      fill(items, s.items, () => s.items.map((name) => make("option", { value: name, text: name })));
      items.value = s.title;
      items.hidden = !s.items.length;
      paths.hidden = !s.files;
    },
  };
}

// ---- the dial: the curve, drawn once, over a slider of the same width

function dial(ask) {
  const plot = make("svg", { class: "curve", viewBox: "0 0 100 100", preserveAspectRatio: "none", "aria-hidden": "true" });
  const slider = make("input", { type: "range", min: 0, step: 1, input: () => ask("turn", stops[slider.value]) });
  const cursor = make("div", { class: "cursor" }), ticks = make("div", { class: "ticks", "aria-hidden": "true" });
  const title = make("div", { class: "title" }), legend = make("div", { class: "legend" });
  let stops = [];
  const points = (values) => values.map((p, k) => `${(100 * k) / (values.length - 1)},${100 - 100 * p}`).join(" ");
  const line = (values, look, colour) => make("polyline", { points: points(values), class: look, style: `--c: ${colour}` });
  const key = (look, text, colour) => make("span", {}, make("i", { class: look, style: `--c: ${colour}` }), text);
  return {
    element: make("div", { class: "dial" }, title, make("div", { class: "plot" }, make("span", { class: "top", text: "1" }), make("span", { class: "bottom", text: "0" }), plot, cursor), slider, ticks, legend),
    show(s, idle) {
      stops = s.stops;
      title.textContent = `probability of ${s.asked}`;
      fill(plot, [s.curves, s.whole], () => [make("line", { x1: 0, x2: 100, y1: 100 - 100 * s.whole, y2: 100 - 100 * s.whole, class: "whole" }),
        ...s.curves.flatMap((c) => [...(c.null ? [line(c.null, "null", c.colour)] : []), line(c.removed, "removed", c.colour), line(c.kept, "kept", c.colour)])]);
      const colour = s.curves.length === 1 ? s.curves[0].colour : "currentColor";   // several methods have their colours on their buttons
      fill(legend, [colour, s.nullName], () => [key("kept", "kept", colour), key("removed", "removed", colour), ...(s.nullName ? [key("null", `kept by ${s.nullName}`, "currentColor")] : []), key("whole", "whole sound", "currentColor")]);
      fill(ticks, s.ticks, () => s.ticks.map(([at, text]) => make("span", { style: `left: ${100 * at}%`, text })));
      slider.max = stops.length - 1;
      if (idle) slider.value = Math.round(s.fraction * (stops.length - 1));   // else the hand is ahead of the kernel
      slider.setAttribute("aria-label", s.form);
      slider.setAttribute("aria-valuetext", s.reading);
      cursor.style.left = `${100 * s.fraction}%`;
    },
  };
}

// ---- the whole panel

function render({ model, el }) {
  const panel = make("div", { class: "lmac-explorer" });
  const error = make("p", { class: "remark error", role: "alert" }), notes = make("div", { role: "status" });
  const complain = (text) => { error.textContent = text; error.hidden = !text; };
  const mail = mailbox(model, (working) => panel.classList.toggle("busy", working));
  const ask = (...message) => { complain(""); mail.ask(...message); };

  const sound = soundRow(ask, complain), turn = dial(ask);
  const models = choice("classifier", (name) => ask("model", name)), methods = choice("methods", (name) => ask("method", name));
  const forms = choice("how the mask is turned", (name) => ask("form", name)), nulls = choice("in the place of the mask", (name) => ask("null", name));
  const classes = make("select", { "aria-label": "class to explain", change: () => ask("choose", Number(classes.value)) });
  const whyNot = make("button", { type: "button", click: () => ask("why_not") });
  const answer = make("span", { class: "answer" }), reading = make("output", { class: "reading" });
  const rows = {
    models: row("Classifier", models.element), answer: row("Answer", answer), question: row("Explain", classes, whyNot), methods: row("Method", methods.element),
    turn: row("Mask", make("div", { class: "turn" }, forms.element, reading), turn.element), nulls: row("Null", nulls.element, make("span", { class: "hint", text: "the same values elsewhere" })),
    keep: row("Keep", make("button", { type: "button", click: () => ask("export") }, "Export to a folder"), make("button", { type: "button", click: () => ask("page") }, "Download as a page")),
  };
  panel.append(sound.element, error, rows.models, rows.answer, rows.question, rows.methods, notes, rows.turn, rows.nulls, rows.keep);

  function draw() {
    const s = model.get("state");
    mail.answered(s.answered);
    complain(s.error ?? "");
    fill(notes, s.notes, () => s.notes.map((text) => make("p", { class: "remark", text })));
    sound.show(s);
    rows.models.hidden = s.models.length < 2;
    models.show(s.models);
    for (const name of ["answer", "question", "methods", "turn", "nulls", "keep"]) rows[name].hidden = !s.title;
    methods.show(s.methods);
    if (!s.title) return;
    fill(answer, s.classes, () => s.classes.slice(0, 3).map(({ name, share }, k) => make(k ? "span" : "b", {}, `${name} ${share}`)));
    fill(classes, s.classes, () => s.classes.map(({ index, name, share }) => make("option", { value: index, text: `${name}, ${share}` })));
    classes.value = s.index;
    whyNot.textContent = `Why not ${s.runnerUp}?`;
    forms.show(s.forms); nulls.show(s.nulls); turn.show(s, mail.idle());
    reading.textContent = s.reading;
    rows.turn.classList.toggle("empty", !s.curves.length);
  }

  const download = (message) => {
    if (!message.page) return;
    const link = make("a", { href: URL.createObjectURL(new Blob([message.page], { type: "text/html" })), download: message.name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  // Plain keys belong to what has the focus (an arrow to the slider, a letter to the list), Ctrl+S and its like to JupyterLab, which looks for this mark on that very element.
  const keys = (event) => panel.contains(event.target) && event.target.toggleAttribute("data-lm-suppress-shortcuts", !(event.ctrlKey || event.metaKey));
  window.addEventListener("keydown", keys, true);
  model.on("change:state", draw);
  model.on("msg:custom", download);
  draw();
  el.append(panel);
  return () => { sound.close(); window.removeEventListener("keydown", keys, true); model.off("change:state", draw); model.off("msg:custom", download); };
}

export default { render };
