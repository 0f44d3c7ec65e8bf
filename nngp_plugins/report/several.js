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

const of = (run, name, layer) => (name in run.metrics ? run.metrics[name][run.layers.indexOf(layer)] : run.scalars[name]);

// Two numbers of the configuration span a grid if some run differs from another one in the first alone, and in the second.
function grids() {
  const numbers = Object.keys(D.differs).filter((key) => key !== "seed" && D.runs.every((run) => typeof D.differs[key][run.name] === "number"));
  const valuesOf = (key) => [...new Set(D.runs.map((run) => D.differs[key][run.name]))].sort((a, b) => a - b);
  const found = numbers.flatMap((one, i) => numbers.slice(i + 1).map((other) => {
    const [down, across] = valuesOf(one).length >= valuesOf(other).length ? [other, one] : [one, other];
    const [rows, columns] = [valuesOf(down), valuesOf(across)];
    const cells = new Set(D.runs.map((run) => `${D.differs[down][run.name]} ${D.differs[across][run.name]}`));
    return { name: `${down} × ${across}`, down, across, rows: rows.reverse(), columns, filled: cells.size };
  }));
  return found.filter((g) => g.filled > Math.max(g.rows.length, g.columns.length)).sort((a, b) => b.filled - a.filled);
}

// A metric over two numbers of the configuration, as the mean over seeds at the last step that all runs have.
function mapOfGrid(names) {
  const found = grids();
  if (!found.length) return;
  const whole = D.runs.filter((run) => !isNumber(run.diverged));
  const step = whole.length ? whole[0].steps.filter((s) => whole.every((run) => run.steps.includes(s))).pop() : undefined;
  const chosen = { grid: found[0], name: names.includes("relative_change") ? "relative_change" : names[0], layer: D.layers[D.layers.length - 1] };
  const rest = html("span", { class: "menus" });
  // What else differs, but for the seed, has one value on a map.
  const fill = () => {
    const { down, across } = chosen.grid, others = Object.keys(D.differs).filter((key) => ![down, across, "seed"].includes(key));
    chosen.fixed = Object.fromEntries(others.map((key) => [key, String(D.differs[key][D.runs[0].name])]));
    rest.replaceChildren(...others.map((key) => menu(key, [...new Set(D.runs.map((run) => String(D.differs[key][run.name])))].map((v) => [v, v]), chosen.fixed[key], (v) => { chosen.fixed[key] = v; draw(); })));
  };
  const cells = () => {
    const { grid, name, layer, fixed } = chosen;
    const kept = D.runs.filter((run) => Object.entries(fixed).every(([key, v]) => String(D.differs[key][run.name]) === v));
    return grid.rows.map((row) => grid.columns.map((column) => {
      const runs = kept.filter((run) => D.differs[grid.down][run.name] === row && D.differs[grid.across][run.name] === column);
      const known = runs.filter((run) => !isNumber(run.diverged)).map((run) => (of(run, name, layer) || [])[run.steps.indexOf(step)]).filter(isNumber);
      const diverged = runs.filter((run) => isNumber(run.diverged)).length;
      const why = !runs.length ? "no run" : diverged ? `${diverged === runs.length ? "" : `${diverged} of ${runs.length} `}diverged` : known.length ? "" : "nan";
      return { row, column, runs: known.length, why, value: known.length ? known.reduce((a, b) => a + b) / known.length : null };
    }));
  };
  const draw = () => {
    const { grid, name, layer } = chosen, table = cells(), values = table.map((row) => row.map((cell) => cell.value));
    const most = Math.max(...table.flat().map((cell) => cell.runs)), when = step === undefined ? "there is no step that all runs have" : `at step ${step.toLocaleString("en")}, the last that all runs have`;
    const spoken = table.flat().filter((cell) => cell.why !== "no run").map((cell) => `${grid.down} ${text(cell.row)}, ${grid.across} ${text(cell.column)}: ${[isNumber(cell.value) ? text(cell.value) : "", cell.why].filter(Boolean).join(", ")}`);
    map.note.textContent = `${name in D.metrics ? metricText(name) : ""} ${most > 1 ? `Means of up to ${most} runs ` : ""}${when}${table.flat().some((cell) => cell.why.endsWith("diverged")) ? ", but for those that diverged" : ""}.`.trim();
    heatMap(map.host, grid.rows.map((v) => `${grid.down} ${text(v)}`), grid.columns.map((v) => text(v)), values, {
      label: `${titleOf(name)}${name in D.metrics ? ` of ${layer}` : ""} over ${grid.down} and ${grid.across}, ${when}. ${spoken.join("; ")}`,
      log: canLog(name, values), columnName: grid.across, why: (r, c) => table[r][c].why,
      cells: (r, c) => [isNumber(values[r][c]) ? text(values[r][c]) : "", table[r][c].why === "no run" ? "" : table[r][c].why],
    });
  };
  const controls = [menu("metric", names.map((n) => [n, titleOf(n)]), chosen.name, (v) => { chosen.name = v; draw(); }), menu("layer", D.layers.map((l) => [l, l]), chosen.layer, (v) => { chosen.layer = v; draw(); })];
  if (found.length > 1) controls.unshift(menu("axes", found.map((g, i) => [String(i), g.name]), "0", (v) => { chosen.grid = found[Number(v)]; fill(); draw(); }));
  const map = part("What moves the kernels", "", ...controls, rest, csvButton("map", () => [[chosen.grid.down, chosen.grid.across, ...Object.keys(chosen.fixed), "step", "layer", chosen.name, "runs", "note"],
    ...cells().flat().map((cell) => [cell.row, cell.column, ...Object.values(chosen.fixed), step, chosen.layer, cell.value, cell.runs, cell.why])]));
  fill();
  draw();
}

function several() {
  const keys = Object.keys(D.differs), names = [...metricNames, ...D.scalars];
  if (names.length) mapOfGrid(names);
  const last = (list) => (list && list.length ? list[list.length - 1] : null);
  const tail = D.layers[D.layers.length - 1];
  const heads = ["run", ...keys, "steps", ...D.scalars.map(titleOf), ...metricNames.map((n) => `${titleOf(n)}, ${tail}`)];
  const rows = D.runs.map((run) => [{ text: run.name, value: run.name }, ...keys.map((k) => ({ text: String(D.differs[k][run.name] ?? "–"), value: D.differs[k][run.name] })),
    { text: last(run.steps).toLocaleString("en"), value: last(run.steps) },
    ...[...D.scalars, ...metricNames].map((n) => { const v = last(of(run, n, tail)); return { text: isNumber(v) ? text(v) : "–", value: v }; })]);
  const { host } = part("Runs", "What differs among their configurations, and the last numbers. A head sorts the table.", csvButton("runs", () => [heads, ...rows.map((row) => row.map((cell) => cell.value))]));
  host.replaceWith(table("Table of runs", heads, rows));

  const every = groups();
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
