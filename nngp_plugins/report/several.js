// A page of several runs.

// Runs that differ by their seed alone belong together.
function groups() {
  const keys = Object.keys(D.differs).filter((key) => key !== "seed"), found = new Map();
  D.runs.forEach((run) => {
    const name = keys.map((key) => `${key} ${D.differs[key][run.name] ?? "–"}`).join(", ");
    const key = "seed" in D.differs ? name || "all seeds" : run.name;
    found.set(key, [...(found.get(key) || []), run]);
  });
  return [...found.entries()];
}

function overlaid(group, i, pick) {
  const [name, runs] = group, values = runs.map((run) => new Map(run.steps.map((s, k) => [s, (pick(run) || [])[k]])));
  const steps = [...values[0].keys()].filter((s) => values.every((v) => v.has(s)));
  const at = (f) => steps.map((s) => { const known = values.map((v) => v.get(s)).filter(isNumber); return known.length ? f(known) : null; });
  const looks = { color: `var(--r${i % 7})`, dash: [null, "8 4", "2 4", "10 4 2 4"][Math.floor(i / 7) % 4], x: steps };
  if (runs.length === 1) return { name, ...looks, y: at((v) => v[0]) };
  return { name: `${name} (mean of ${runs.length})`, ...looks, y: at((v) => v.reduce((a, b) => a + b) / v.length), low: at((v) => Math.min(...v)), high: at((v) => Math.max(...v)) };
}

function several() {
  const keys = Object.keys(D.differs), of = (run, name, layer) => (name in run.metrics ? run.metrics[name][run.layers.indexOf(layer)] : run.scalars[name]);
  const last = (list) => (list && list.length ? list[list.length - 1] : null);
  const tail = D.layers[D.layers.length - 1];
  const heads = ["run", ...keys, "steps", ...D.scalars.map(titleOf), ...metricNames.map((n) => `${titleOf(n)}, ${tail}`)];
  const rows = D.runs.map((run) => [{ text: run.name, value: run.name }, ...keys.map((k) => ({ text: String(D.differs[k][run.name] ?? "–"), value: D.differs[k][run.name] })),
    { text: last(run.steps).toLocaleString("en"), value: last(run.steps) },
    ...[...D.scalars, ...metricNames].map((n) => { const v = last(of(run, n, tail)); return { text: isNumber(v) ? text(v) : "–", value: v }; })]);
  const { host } = part("Runs", "What differs among their configurations, and the last numbers. A head sorts the table.", csvButton("runs", () => [heads, ...rows.map((row) => row.map((cell) => cell.value))]));
  host.replaceWith(table("Table of runs", heads, rows));

  const every = groups(), names = [...metricNames, ...D.scalars];
  const chosen = { name: names.includes("cka") ? "cka" : names[0], layer: tail };
  const draw = () => {
    const values = D.runs.map((run) => of(run, chosen.name, chosen.layer) || []);
    over.note.textContent = chosen.name in D.metrics ? metricText(chosen.name) : "";
    chart(over.host, every.map((group, i) => overlaid(group, i, (run) => of(run, chosen.name, chosen.layer))), {
      label: `${titleOf(chosen.name)} of ${plural(D.runs.length, "run")} over steps`, steps: true, logX: true, height: 360,
      logY: canLog(chosen.name, values) && values.flat().every((v) => !isNumber(v) || v > 0),
    });
  };
  const over = part("Runs over each other", "", menu("metric", names.map((n) => [n, titleOf(n)]), chosen.name, (v) => { chosen.name = v; draw(); }),
    menu("layer", D.layers.map((l) => [l, l]), tail, (v) => { chosen.layer = v; draw(); }), csvButton("metrics", longRows(metricNames)));
  draw();

  if (!metricNames.length) return;
  const map = part("Every layer of every run, at the last snapshot", "", menu("metric", metricNames.map((n) => [n, titleOf(n)]), metricNames[0], (v) => drawMap(v)));
  const drawMap = (name) => {
    map.note.textContent = metricText(name);
    const values = D.layers.map((layer) => D.runs.map((run) => { const row = of(run, name, layer); return isNumber(last(row)) ? last(row) : null; }));
    heatMap(map.host, D.layers, D.runs.map((run) => run.name), values, { label: `${titleOf(name)} of every layer of every run`, log: canLog(name, values), columnName: "run", why: (r, c) => (D.runs[c].nan[name] || {})[D.layers[r]] || "not measured" });
  };
  drawMap(metricNames[0]);
}
