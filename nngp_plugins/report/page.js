// The page: which charts there are, from the numbers that it holds.

const D = JSON.parse(document.getElementById("data").textContent);
for (const about of Object.values(D.metrics)) for (const key of ["tells", "misleads"]) about[key] = about[key].replaceAll("`", "");
const metricNames = Object.keys(D.metrics);
const titleOf = (name) => (D.metrics[name] ? D.metrics[name].title : (name[0].toUpperCase() + name.slice(1)).replaceAll("_", " "));
const depth = (layer) => `var(--d${D.layers.indexOf(layer)})`;
const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

function part(title, about, ...controls) {
  const id = title.toLowerCase().replace(/[^a-z]+/g, "-");
  const host = html("div", { class: "card" });
  const note = html("p", {}, about || "");
  const section = html("section", { class: "part", "aria-labelledby": id },
    html("div", { class: "head" }, html("h2", { id }, title), ...controls), note, host);
  document.getElementById("charts").append(section);
  return { host, note, section };
}

function menu(name, options, chosen, onchange) {
  const select = html("select", { onchange: () => onchange(select.value) },
    ...options.map(([value, shown]) => html("option", { value, selected: value === chosen ? "" : null }, shown)));
  return html("label", {}, name, select);
}

// A spreadsheet would run a text that begins like a formula.
function csvCell(v) {
  if (v === null || v === undefined) return "";
  const cell = typeof v === "string" && /^[=+\-@\t\r]/.test(v) && Number.isNaN(Number(v)) ? `'${v}` : String(v);
  return /[",\n\r]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell;
}
function csvButton(name, rows) {
  return html("button", { class: "csv", "aria-label": `Save ${name} as CSV`, onclick: () => {
    const content = rows().map((row) => row.map(csvCell).join(",")).join("\r\n") + "\r\n";
    const link = html("a", { href: URL.createObjectURL(new Blob([content], { type: "text/csv" })), download: `${name}.csv` });
    link.click();
    URL.revokeObjectURL(link.href);
  } }, "CSV");
}
const longRows = (names) => () => [["run", "step", "layer", ...names],
  ...D.runs.flatMap((run) => run.steps.flatMap((step, i) => run.layers.map((layer, l) =>
    [run.name, step, layer, ...names.map((name) => (run.metrics[name] ? run.metrics[name][l][i] : null))])))];

function markOf(run) { return isNumber(run.diverged) ? run.diverged : null; }

function metricText(name) {
  const about = D.metrics[name];
  if (!about.tells) return "";
  const velocity = name === "kernel_velocity" ? " It begins at the second snapshot." : "";
  return `It says ${about.tells}. It misleads: ${about.misleads}. Formula: ${about.formula}.${velocity}`;
}

function canLog(name, values) { return (name in D.metrics ? D.metrics[name].log : name === "loss") && values.flat().some((v) => v > 0); }

// ---------------------------------------------------------------- one run

function metricChart(host, run, name, height) {
  const values = run.metrics[name];
  const ends = values.map((row, l) => `${run.layers[l]} ${text(row[row.length - 1])}`).slice(0, 12).join(", ");
  chart(host, run.layers.map((layer, l) => ({ name: layer, color: depth(layer), x: run.steps, y: values[l] })), {
    label: `${titleOf(name)} of ${plural(run.layers.length, "layer")} over steps; at the last snapshot: ${ends}`,
    steps: true, logX: true, logY: canLog(name, values), mark: markOf(run), height, ramp: true,
  });
}

function firstChart(run) {
  const name = metricNames.includes("cka") ? "cka" : metricNames[0];
  if (!name) return;
  const { host } = part(titleOf(name), `${D.metrics[name].tells ? `It says ${D.metrics[name].tells}. ` : ""}Deeper layers are lighter. Steps are on a log axis.`, csvButton(name, longRows([name])));
  metricChart(host, run, name, 340);
}

function mapOfMetrics(run) {
  const first = metricNames.find((name) => name === "target_alignment") || metricNames[0];
  if (!first) return;
  const draw = (name) => {
    note.textContent = metricText(name);
    heatMap(host, run.layers, run.steps.map(stepName), run.metrics[name], {
      label: `${titleOf(name)} of every layer at every snapshot`, log: canLog(name, run.metrics[name]), columnName: "step",
      why: (r) => (run.nan[name] || {})[run.layers[r]] || "not measured",
    });
  };
  const { host, note } = part("Every layer at every snapshot", "", menu("metric", metricNames.map((n) => [n, titleOf(n)]), first, draw), csvButton("metrics", longRows(metricNames)));
  draw(first);
}

function alignmentScaleLoss(run) {
  const parts = ["target_alignment", "scale"].filter((name) => name in run.metrics);
  if (!parts.length || !("loss" in run.scalars)) return;
  const gains = run.metrics[parts[0]].map((row) => { const known = row.filter(isNumber); return known.length ? known[known.length - 1] - known[0] : -Infinity; });
  const best = run.layers[gains.indexOf(Math.max(...gains))];
  const looks = { loss: ["var(--r0)", null], target_alignment: ["var(--r1)", null], scale: ["var(--r2)", "7 4"] };
  const draw = (layer) => {
    const l = run.layers.indexOf(layer);
    const relative = (row) => { const most = Math.max(...row.filter(isNumber).map(Math.abs)); return row.map((v) => (isNumber(v) && most > 0 ? v / most : null)); };
    const series = [["loss", "loss, of its highest", relative(run.scalars.loss)]];
    if (parts.includes("target_alignment")) series.push(["target_alignment", "alignment with the targets", run.metrics.target_alignment[l]]);
    if (parts.includes("scale")) series.push(["scale", "scale, of its highest", relative(run.metrics.scale[l])]);
    chart(host, series.map(([key, name, y]) => ({ name, x: run.steps, y, color: looks[key][0], dash: looks[key][1] })), {
      label: `Loss, alignment and scale of ${layer} over steps`, steps: true, logX: true, mark: markOf(run), range: [Math.min(0, ...series.flatMap(([, , y]) => y.filter(isNumber))), 1], height: 300,
    });
  };
  const { host } = part("Alignment, scale and loss", "Does the kernel turn to the targets before the loss falls? Alignment before that, with growth of the kernel later, is called silent alignment (Atanasov et al. 2022).",
    menu("layer", run.layers.map((l) => [l, l]), best, draw));
  draw(best);
}

function kernels() {
  const { layers, classes, frames } = D.kernels, most = Math.max(...frames.map((f) => f.length)), pictures = [];
  const label = html("output", {}, "");
  const slider = html("input", { type: "range", min: 0, max: most - 1, step: 1, value: most - 1, "aria-label": "step of the kernels", oninput: () => show(Number(slider.value)) });
  const what = classes.length ? `examples are ordered by class: ${classes.map((c) => c.name).slice(0, 20).join(", ")}` : "examples are in the order of their targets, or of the probe";
  const { host } = part("Kernels", `Cosines between the centred features of two examples: blue is −1, white 0, red 1, on all pictures. The ${what}. ${layers.length < D.layers.length ? `${layers.length} of ${D.layers.length} layers are shown. ` : ""}${most < 3 ? "With keep_kernels=True a run keeps the kernels of all snapshots, and the slider moves through them." : ""}`,
    html("label", {}, "at", slider, label));
  host.className = "grid";
  layers.forEach((layer, l) => {
    const image = svg("image", { x: 8, y: 0, width: 92, height: 92, preserveAspectRatio: "none" });
    const root = svg("svg", { viewBox: "0 0 100 101", role: "img" }, image);
    classes.forEach((c) => {
      if (c.size * 92 < 4.5 || classes.length > 20) return;
      const middle = (c.start + c.size / 2) * 92;
      root.append(svg("text", { x: 8 + middle, y: 98, "text-anchor": "middle", style: "font-size:5px" }, c.name.slice(0, 6)), svg("text", { x: 6, y: middle + 2, "text-anchor": "end", style: "font-size:5px" }, c.name.slice(0, 4)));
    });
    const caption = html("p", {}, "");
    host.append(html("div", { class: "card kernel" }, html("h3", {}, layer), root, caption));
    pictures.push((i) => {
      const frame = frames[l][Math.min(i, frames[l].length - 1)];
      const when = isNumber(frame.step) ? `step ${frame.step.toLocaleString("en")}` : "no reference yet";
      const means = isNumber(frame.within) && isNumber(frame.between) ? `mean cosine ${text(frame.within, 2)} in a class, ${text(frame.between, 2)} between` : "";
      const bad = frame.finite || !isNumber(frame.step) ? "" : " · not finite";
      image.setAttribute("href", frame.picture);
      root.setAttribute("aria-label", `Kernel of ${layer}, ${when}${means ? `: ${means}` : ""}`);
      caption.textContent = `${when}${bad}${means ? ` · ${means}` : ""}`;
      return when;
    });
  });
  const show = (i) => { const said = new Set(pictures.map((draw) => draw(i))); label.textContent = said.size === 1 ? [...said][0] : i === 0 ? "references" : `snapshot ${i + 1} of ${most}`; };
  show(most - 1);
}

function spectra() {
  const { layers } = D.kernels, { ranks, examples, layers: each } = D.spectra;
  if (!each.some((frames) => frames.length)) return;
  const first = layers.filter((_, l) => each[l].length).pop(), left = html("div", { class: "card" }), right = html("div", { class: "card" });
  const draw = (layer) => {
    const frames = each[layers.indexOf(layer)];
    const lines = (key) => frames.map((f, k) => ({ name: `step ${isNumber(f.step) ? stepName(f.step) : "?"}`, color: `color-mix(in oklab, var(--r1) ${Math.round((100 * k) / Math.max(frames.length - 1, 1))}%, var(--r0))`, x: ranks, y: f[key] }));
    const plot = (host, title, key, options) => { const inner = html("div", {}); host.replaceChildren(html("h3", {}, title), inner); chart(inner, lines(key), { xName: "rank", logX: true, height: 280, ramp: true, label: `${title} of ${layer} by rank`, ...options }); };
    if (frames.length) plot(left, "Eigenvalues, as shares of the trace", "share", { logY: true });
    const hasPower = frames.length && frames[0].power;
    right.hidden = !hasPower;
    if (hasPower) plot(right, "Share of the targets in the leading directions", "power", { range: [0, 1] });
  };
  const { host } = part("Spectra", `Of the centred kernels of ${examples} examples; blue is the first step, orange the last. Where few directions hold most of the targets, they are easy to learn from the kernel.`,
    menu("layer", layers.map((l) => [l, l]), first, draw),
    csvButton("spectra", () => [["layer", "step", "rank", "share_of_trace", "share_of_targets"], ...layers.flatMap((layer, l) => each[l].flatMap((f) => ranks.map((r, i) => [layer, f.step, r, f.share[i], f.power ? f.power[i] : null])))]));
  host.className = "two";
  host.append(left, right);
  draw(first);
}

function similarities() {
  const { layers, each } = D.ckaLayers, cards = [];
  const known = each.filter((one) => one.cka);
  if (!known.length) return;
  const { host } = part("CKA between layers, and between steps", "1 for the same geometry of the examples, about 0 for unrelated ones. Blocks are groups of layers, or of steps, that are alike.");
  host.className = "three";
  for (const one of known) {
    const inner = html("div", {});
    host.append(html("div", { class: "card" }, html("div", { class: "head" }, html("h3", {}, `Layers, ${one.name}`), csvButton("cka_of_layers", () => [["layer", ...layers], ...one.cka.map((row, i) => [layers[i], ...row])])), inner));
    heatMap(inner, layers, layers, one.cka, { label: `CKA of each layer with each other, ${one.name}`, range: [0, 1], square: true, columnName: "layer", why: () => "a kernel is zero, constant or not finite" });
  }
  const shown = D.kernels.layers.filter((_, l) => D.ckaSteps[l] && D.ckaSteps[l].cka);
  if (!shown.length) return;
  const inner = html("div", {});
  const draw = (layer) => {
    const one = D.ckaSteps[D.kernels.layers.indexOf(layer)], names = one.steps.map((s) => (isNumber(s) ? stepName(s) : "?"));
    heatMap(inner, names, names, one.cka, { label: `CKA of each step of ${layer} with each other`, range: [0, 1], square: true, columnName: "step", why: () => "a kernel is zero, constant or not finite" });
  };
  const first = shown[shown.length - 1];
  host.append(html("div", { class: "card" }, html("div", { class: "head" }, html("h3", {}, "Steps"), menu("layer", shown.map((l) => [l, l]), first, draw), csvButton("cka_of_steps", () => [["layer", "step", "other_step", "cka"],
    ...shown.flatMap((layer) => { const { steps, cka } = D.ckaSteps[D.kernels.layers.indexOf(layer)]; return cka.flatMap((row, i) => row.map((v, j) => [layer, steps[i], steps[j], v])); })])), inner));
  draw(first);
}

// ---------------------------------------------------------------- tables

// rows: lists of {text, value, color}; a click on a head sorts, numbers as numbers
function table(name, heads, rows) {
  const body = html("tbody", {}), buttons = [];
  let sorted = [-1, 1];
  const fill = (list) => body.replaceChildren(...list.map((row) => html("tr", {}, ...row.map((cell, i) =>
    html(i ? "td" : "th", i ? {} : { scope: "row", title: cell.text }, ...(cell.color ? [html("span", { class: "dot", style: `background:${cell.color}` })] : []), cell.text)))));
  const sort = (i) => {
    sorted = [i, sorted[0] === i ? -sorted[1] : 1];
    const key = (row) => row[i].value;
    const list = rows.slice().sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (!isNumber(x) || !isNumber(y)) return isNumber(y) - isNumber(x);
      return sorted[1] * (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y)));
    });
    buttons.forEach((th, k) => th.setAttribute("aria-sort", k === i ? (sorted[1] > 0 ? "ascending" : "descending") : "none"));
    fill(list);
  };
  heads.forEach((head, i) => buttons.push(html("th", { scope: "col", "aria-sort": "none" }, html("button", { onclick: () => sort(i) }, head))));
  fill(rows);
  return html("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": name }, html("table", {}, html("thead", {}, html("tr", {}, ...buttons)), body));
}

function layerTable(run) {
  const rows = run.layers.map((layer, l) => [{ text: layer, value: l, color: depth(layer) }, ...metricNames.map((name) => {
    const row = run.metrics[name][l], known = row.filter(isNumber), last = row[row.length - 1];
    const from = known.length && isNumber(row[0]) && !D.metrics[name].compares ? `${text(row[0])} → ` : "";
    return { text: `${from}${text(last)}`, value: last };
  })]);
  const { host } = part("Layers", "The first snapshot and the last; numbers that compare with a reference are the last alone. A head sorts the table.",
    csvButton("layers", () => [["layer", ...metricNames.flatMap((n) => [`${n}_first`, `${n}_last`])], ...run.layers.map((layer, l) => [layer, ...metricNames.flatMap((n) => [run.metrics[n][l][0], run.metrics[n][l][run.steps.length - 1]])])]));
  host.replaceWith(table("Table of layers", ["layer", ...metricNames.map(titleOf)], rows));
}

function folded(run) {
  const names = [...metricNames, ...D.scalars];
  const { host } = part("All metrics", "", csvButton("scalars", () => [["step", ...D.scalars], ...run.steps.map((s, i) => [s, ...D.scalars.map((n) => run.scalars[n][i])])]));
  for (const name of names) {
    const inner = html("div", {});
    const tells = D.metrics[name] && D.metrics[name].tells ? ` — ${D.metrics[name].tells}` : "";
    host.append(html("details", { class: "metric", ontoggle: (event) => {
      if (!event.target.open || inner.firstChild) return;
      const plot = html("div", { style: "position:relative" });
      inner.append(html("p", {}, name in D.metrics ? metricText(name) : ""), plot);
      if (name in D.metrics) metricChart(plot, run, name, 300);
      else chart(plot, [{ name, color: "var(--ink)", x: run.steps, y: run.scalars[name] }], { label: `${titleOf(name)} over steps`, steps: true, logX: true, logY: canLog(name, [run.scalars[name]]) && run.scalars[name].every((v) => !isNumber(v) || v > 0), height: 280, mark: markOf(run) });
    } }, html("summary", {}, html("b", {}, titleOf(name)), html("span", {}, tells)), inner));
  }
}

if (D.runs.length === 1) {
  const run = D.runs[0];
  firstChart(run);
  mapOfMetrics(run);
  alignmentScaleLoss(run);
  kernels();
  spectra();
  similarities();
  layerTable(run);
  folded(run);
} else {
  several();
}
