// The companion site: cards that are heard, and the clips behind a cell of a table.
// A plain script, since a page opened from a folder can neither import modules nor fetch files: data lie in scripts that are added when they are wanted.
// `window.mountPlayer` is the synchronous player of player.js. Text from data is only ever set as text.
(() => {
  const store = window.companion ??= {}, wanted = {};

  // The data of one script: each puts its value into the store under its own path
  const load = path => wanted[path] ??= new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = path;
    script.onload = () => done(store[path]);
    script.onerror = () => failed(new Error(`${path} is missing`));
    document.head.append(script);
  });

  // An element with attributes, listeners (on...) and children; what is missing or false is left out
  const make = (tag, attributes = {}, ...children) => {
    const svg = ["svg", "rect", "path"].includes(tag);
    const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value != null && value !== false) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.flat().filter(child => child != null && child !== false));
    return element;
  };

  const number = (value, metric) => typeof value !== "number" ? "–" : value.toFixed(metric.digits).replace(/^-(?=0\.?0*$)/, "").replace("-", "−");
  const withUnit = (value, metric) => number(value, metric) + (metric.unit ? `\u00a0${metric.unit}` : "");
  const formName = form => ({soft: "soft mask", topk: "top-k mask"})[form] ?? form;

  // ---- one clip

  const credit = c => make("li", {}, c.role ? `${c.role}: ` : "", /^https?:/.test(c.url) ? make("a", {href: c.url, rel: "noreferrer"}, c.text) : c.text, c.licence ? `, ${c.licence}` : "");

  function facts(x, clip) {
    const said = `${x.images ? "seen" : "heard"} as ${clip.predicted}, p ${number(clip.p, {digits: 2})}`;
    return make("p", {class: clip.correct === false ? "facts wrong" : "facts"}, clip.label && clip.correct === false ? `labelled ${clip.label}, but ${said}` : said);
  }

  // FLAC -> the 16-bit WAV that the player takes, with the very samples that were packed: a context at the sound's own rate resamples nothing,
  // and whether the browser divides what is positive by 32767 (Chromium) or by 32768 shows in which product is whole.
  async function unpacked(url, rate) {
    const bytes = Uint8Array.from(atob(url.slice(url.indexOf(",") + 1)), c => c.charCodeAt(0));
    const wave = (await new OfflineAudioContext(1, 1, rate).decodeAudioData(bytes.buffer)).getChannelData(0);
    const whole = v => Math.abs(v - Math.round(v)) < 0.01, top = wave.every(v => v <= 0 || whole(32768 * v)) ? 32768 : 32767;
    const wav = new DataView(new ArrayBuffer(44 + 2 * wave.length)), text = (at, word) => [...word].forEach((c, k) => wav.setUint8(at + k, c.charCodeAt(0)));
    text(0, "RIFF"); wav.setUint32(4, 36 + 2 * wave.length, true); text(8, "WAVEfmt "); wav.setUint32(16, 16, true); wav.setUint16(20, 1, true); wav.setUint16(22, 1, true);
    wav.setUint32(24, rate, true); wav.setUint32(28, 2 * rate, true); wav.setUint16(32, 2, true); wav.setUint16(34, 16, true); text(36, "data"); wav.setUint32(40, 2 * wave.length, true);
    wave.forEach((v, k) => wav.setInt16(44 + 2 * k, Math.round(v * (v > 0 ? top : 32768)), true));
    let binary = "";
    for (let k = 0; k < wav.byteLength; k += 8192) binary += String.fromCharCode(...new Uint8Array(wav.buffer, k, Math.min(8192, wav.byteLength - k)));
    return `data:audio/wav;base64,${btoa(binary)}`;
  }

  const tracksOf = script => script.ready ??= Promise.all(script.tracks.map(async t => t.wav ? {...t, wav: await unpacked(t.wav, script.rate)} : t));

  // Data for the player: the original, then what each of these methods keeps and removes
  async function sound(x, item, heard) {
    const paths = [item, ...heard.map(([method, form]) => x.sounds[[item, method, form]].file)].map(file => `sound/${x.name}/${file}.js`);
    const [clip, ...pairs] = await Promise.all(paths.map(load)), many = pairs.length > 1;
    const named = pair => pair.ready.then(tracks => tracks.map(t => many ? {...t, name: `${t.name}: ${pair.method}`, method: pair.method} : t));
    [clip, ...pairs].forEach(script => { script.rate = clip.sample_rate; tracksOf(script); });
    const tracks = (await Promise.all([clip.ready, ...pairs.map(named)])).flat();
    return {...clip, tracks, picture: clip.picture && {...clip.picture, png: tracks[1].png}, subtitle: `explained by ${pairs.map(p => p.method).join(" and ")}`,
      note: pairs.flatMap(p => p.note.map(n => many ? `${p.method}: ${n}` : n))};
  }

  // A clip with a button for every method it can be heard with; the first is opened when the card comes into sight
  function card(x, item, heard, {said = "", eager = false} = {}) {
    const clip = x.clips[item], slot = make("div", {class: "slot"}), buttons = heard.map(button);
    let open = [], player = null;
    const beside = make("input", {type: "checkbox", onchange: () => beside.checked || show([open.at(-1)])});
    async function show(next) {
      open = next;
      buttons.forEach((made, k) => made.setAttribute("aria-pressed", String(open.includes(k))));
      try {
        const data = await sound(x, item, open.map(k => heard[k]));
        if (open !== next) return;                        // another was chosen meanwhile
        if (player) player.update(data); else { slot.replaceChildren(); player = window.mountPlayer(slot, data); }
      } catch (error) { player = null; slot.replaceChildren(make("p", {role: "alert"}, error.message)); }
    }
    function button([method, form], k) {
      const s = x.sounds[[item, method, form]];
      const choose = () => show(!beside.checked ? [k] : !open.includes(k) ? [...open, k].slice(-4) : open.length > 1 ? open.filter(j => j !== k) : open);   // nine tracks have keys
      return make("button", {type: "button", "aria-pressed": "false", onclick: choose}, make("img", {src: `sound/${x.name}/${s.file}.webp`, alt: "", loading: "lazy"}),
        make("span", {}, method), make("small", {}, `AD ${withUnit(s.AD, x.metrics.AD)}${form === "topk" ? ", top-k" : ""}`));
    }
    const element = make("article", {class: x.images ? "clip images" : "clip"},
      make("header", {}, make("h3", {}, clip.title), said && make("p", {}, said), facts(x, clip), clip.credits && make("ul", {class: "credits"}, clip.credits.map(credit))),
      heard.length > 1 && make("ul", {class: "methods", "aria-label": "methods"}, buttons.map(made => make("li", {}, made))),
      heard.length > 1 && !x.images && make("label", {class: "beside"}, beside, " several at once: switch between methods at the same place"), slot);
    if (eager || !("IntersectionObserver" in window)) show([0]);
    else new IntersectionObserver((entries, watch) => { if (entries.some(e => e.isIntersecting)) { watch.disconnect(); show([0]); } }, {rootMargin: "300px"}).observe(element);
    return element;
  }

  // ---- the clips behind a cell

  const chosen = x => {
    const [method, metric, form, order] = location.hash.slice(1).split("/").map(decodeURIComponent);
    const m = x.methods.includes(method) ? method : x.methods[0], f = x.forms.includes(form) ? form : x.forms[0];
    return {method: m, metric: Object.hasOwn(x.metrics, metric) ? metric : "AD", form: f, order: order === "up" ? "up" : "down"};
  };
  const address = ({method, metric, form, order}) => "#" + [method, metric, form, ...(order === "up" ? ["up"] : [])].map(encodeURIComponent).join("/");

  const select = (label, options, value, change) =>
    make("label", {}, label, make("select", {onchange: event => change(event.target.value)}, Object.entries(options).map(([key, text]) => make("option", {value: key, selected: key === value}, text))));

  // The values of a cell from best to worst (or highest to lowest), or the other way up; undefined ones last
  function ordered(values, {form, metric, order}, x) {
    const column = values[form]?.[metric] ?? [], better = (x.metrics[metric].better || 1) * (order === "up" ? -1 : 1);
    const rows = column.map((value, k) => ({item: values[form].items[k], value})).filter(r => r.value !== "");
    const rank = r => typeof r.value !== "number" ? Infinity : better < 0 ? r.value : -r.value;
    return rows.sort((a, b) => rank(a) - rank(b) || a.item - b.item);
  }

  // All values as bars in their order: is the mean made by few clips or by all?
  function bars(rows, metric, heard) {
    const values = rows.map(r => r.value).filter(v => typeof v === "number");
    const low = Math.min(0, ...values), high = Math.max(low + 1e-9, ...values, 0), y = v => 100 * (high - v) / (high - low);
    const bar = (v, k) => make("rect", {x: k + 0.1, width: 0.8, y: Math.min(y(v), y(0)), height: Math.max(0.8, Math.abs(y(v) - y(0))), class: heard(rows[k].item) ? "heard" : null});
    return make("div", {class: "bars", "aria-hidden": "true"}, make("span", {}, withUnit(high, metric)),
      make("svg", {viewBox: `0 0 ${values.length} 100`, preserveAspectRatio: "none"}, values.map(bar)), make("span", {}, withUnit(low, metric)));
  }

  // A row of the list; its card opens below it
  function line(x, r, k, cell) {
    const clip = x.clips[r.item], audible = x.sounds[[r.item, cell.method, cell.form]], row = make("tr"), hear = x.images ? "see" : "hear";
    const toggle = make("button", {type: "button", "aria-expanded": "false", "aria-label": `${hear} ${clip.predicted}, ${clip.title}`}, hear);
    toggle.addEventListener("click", () => {
      const shut = toggle.getAttribute("aria-expanded") === "false";
      toggle.setAttribute("aria-expanded", String(shut));
      if (!shut) return row.nextElementSibling.remove();
      row.after(make("tr", {class: "opened"}, make("td", {colspan: 5}, card(x, r.item, withOthers(x, r.item, cell), {eager: true}))));
    });
    row.append(make("td", {class: "rank"}, String(k + 1)), make("td", {class: "value"}, withUnit(r.value, x.metrics[cell.metric])),
      make("td", {}, make("b", {}, clip.predicted), " ", make("small", {}, clip.title), clip.correct === false && make("small", {class: "wrong"}, ` labelled ${clip.label ?? "another class"}`)),
      make("td", {class: "p"}, number(clip.p, {digits: 2})), make("td", {}, audible ? toggle : ""));
    return row;
  }

  // What the two ends of the list are called
  const words = ({better}, {order}) => (better ? ["Best", "Worst"] : ["Highest", "Lowest"])[order === "up" ? "reverse" : "slice"]();

  // The clip with the method of the cell, then with the others that it can be heard with
  const withOthers = (x, item, {method, form}) => [method, ...x.methods.filter(m => m !== method && x.sounds[[item, m, form]])].map(m => [m, form]);

  function end(x, rows, cell, last) {
    const defined = rows.filter(r => typeof r.value === "number"), audible = defined.filter(r => x.sounds[[r.item, cell.method, cell.form]]);
    const r = audible.at(last ? -1 : 0), word = words(x.metrics[cell.metric], cell)[last ? 1 : 0];
    if (!r || (last && audible.length < 2)) return null;
    const exact = defined.at(last ? -1 : 0).value === r.value, title = exact ? word : `${word} that is ${x.images ? "seen" : "heard"}, ${defined.indexOf(r) + 1} of ${defined.length}`;
    return make("section", {class: "end"}, make("h2", {}, title, ": ", withUnit(r.value, x.metrics[cell.metric])), card(x, r.item, withOthers(x, r.item, cell), {eager: !last}));
  }

  async function cell(main, name) {
    const x = await load(`data/${name}.js`), at = chosen(x), metric = x.metrics[at.metric];
    const values = await load(`data/${name}/${x.methods.indexOf(at.method)}.js`);
    const forms = Object.fromEntries(x.forms.filter(f => values[f]?.[at.metric]).map(f => [f, formName(f)]));
    if (!forms[at.form] && Object.keys(forms).length) at.form = Object.keys(forms)[0];
    const rows = ordered(values, at, x), defined = rows.filter(r => typeof r.value === "number");
    const heard = item => x.sounds[[item, at.method, at.form]], go = change => { location.hash = address({...at, ...change}); };
    const mean = defined.reduce((sum, r) => sum + r.value, 0) / defined.length, undefinedCount = rows.length - defined.length;
    const title = `${metric.label} of ${at.method}`, unit = x.images ? "images" : "clips", seen = x.images ? "seen" : "heard", named = list => Object.fromEntries(list.map(m => [m, m]));
    document.title = `${title}, ${x.title}`;
    main.replaceChildren(
      make("p", {class: "crumb"}, make("a", {href: `${name}.html`}, x.title), ` / the ${unit} behind a cell`),
      make("h1", {tabindex: -1}, title),
      make("p", {class: "lead"}, defined.length ? `Mean ${withUnit(mean, metric)} over ${defined.length} ${unit}` : "No values",
        undefinedCount ? `, undefined on ${undefinedCount}` : "", `; ${formName(at.form)}. ${metric.label} is ${metric.meaning}; ${["lower is better", "neither end is better", "higher is better"][metric.better + 1]}.`),
      make("form", {class: "choose", onsubmit: event => event.preventDefault()},
        select("method", named(x.methods), at.method, method => go({method})),
        select("metric", Object.fromEntries(Object.entries(x.metrics).map(([key, m]) => [key, m.label])), at.metric, key => go({metric: key})),
        select("mask", forms, at.form, form => go({form})),
        select("order", {down: `${words(metric, {})[0].toLowerCase()} first`, up: `${words(metric, {})[1].toLowerCase()} first`}, at.order, order => go({order}))),
      defined.length > 1 && bars(rows, metric, heard),
      make("p", {class: "hint"}, rows.some(r => heard(r.item)) ? `A bar is one of the ${unit}, ${words(metric, at).join(" to ").toLowerCase()}; the coloured ones can be ${seen}.` : `Nothing of this cell can be ${seen}.`),
      make("div", {class: "ends"}, [end(x, rows, at, false), end(x, rows, at, true)].filter(Boolean)),
      make("h2", {}, `All ${rows.length} ${unit}`),
      make("table", {class: "list"}, make("thead", {}, make("tr", {}, ["", metric.label, unit.slice(0, -1), "p", ""].map(t => make("th", {scope: "col"}, t)))), make("tbody", {}, rows.map((r, k) => line(x, r, k, at)))));
    return main;
  }

  const excuse = (place, error) => place.replaceChildren(make("p", {role: "alert"}, `This could not be shown: ${error.message}`));

  document.addEventListener("DOMContentLoaded", () => {
    for (const place of document.querySelectorAll(".cards[data-exhibit]")) {
      load(`data/${place.dataset.exhibit}.js`).then(x => place.append(...JSON.parse(place.dataset.picks).map(([item, heard, said]) => card(x, item, heard, {said})))).catch(error => excuse(place, error));
    }
    const main = document.querySelector("main[data-cell]");
    if (!main) return;
    const show = () => cell(main, main.dataset.cell).catch(error => excuse(main, error));
    show();
    addEventListener("hashchange", () => show().then(shown => { scrollTo(0, 0); shown?.querySelector("h1")?.focus({preventScroll: true}); }));
  });
})();
