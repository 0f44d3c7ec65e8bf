"use strict";
// Charts and heat maps as SVG. Every name becomes a text node, so that none is taken for markup.

const SVG = "http://www.w3.org/2000/svg";
const VIRIDIS = ["440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725"];
const INIT = 0.5; // where step 0 stands on a log axis

function make(space, tag, attributes, children) {
  const node = space ? document.createElementNS(space, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}
const html = (tag, attributes, ...children) => make(null, tag, attributes, children);
const svg = (tag, attributes, ...children) => make(SVG, tag, attributes, children);

const isNumber = (v) => v !== null && v !== undefined;

function text(v, digits = 3) {
  if (!isNumber(v)) return "nan";
  if (v !== 0 && (Math.abs(v) < 1e-3 || Math.abs(v) >= 1e6)) return v.toExponential(2).replace(/\.?0+e/, "e");
  if (Math.abs(v) >= 1000) return Math.round(v).toLocaleString("en");
  return String(Number(v.toPrecision(digits)));
}

function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const v of values) if (isNumber(v)) { if (v < low) low = v; if (v > high) high = v; }
  return low > high ? [0, 1] : [low, high];
}

// A scale from numbers to pixels, with ticks.
function scale(low, high, from, to, log) {
  const f = log ? Math.log10 : (v) => v;
  if (low === high) { low = log ? low / 2 : low - 0.5; high = log ? high * 2 : high + 0.5; }
  const a = f(low), b = f(high);
  const at = (v) => from + (f(v) - a) / (b - a) * (to - from);
  const ticks = [];
  if (log) {
    const steps = b - a < 1.5 ? [1, 2, 5] : [1];
    const each = Math.max(1, Math.ceil((b - a) / 6));
    for (let k = Math.floor(a); k <= b; k += each) for (const s of steps) {
      const v = s * 10 ** k;
      if (v >= low * 0.999 && v <= high * 1.001) ticks.push(v);
    }
  } else {
    const rough = (b - a) / 5, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((s) => s * power >= rough);
    for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-6; v += step) ticks.push(Math.abs(v) < step * 1e-6 ? 0 : v);
  }
  return { at, ticks };
}

// Draws now, and again whenever the width of the host changes.
function responsive(host, draw) {
  let width = 0;
  const again = () => {
    const now = host.clientWidth;
    if (now && Math.abs(now - width) > 2) { width = now; draw(now); }
  };
  again();
  new ResizeObserver(again).observe(host);
  return () => { width = 0; again(); };
}

const stepName = (s) => (s === 0 ? "init" : s.toLocaleString("en"));

function stepTicks(steps) {
  const after = steps.filter((s) => s > 0), ticks = steps.includes(0) ? [[INIT, "init"]] : [];
  for (let k = 1; after.length && k <= Math.max(...after); k *= 10) if (k >= Math.min(...after)) ticks.push([k, k.toLocaleString("en")]);
  const ends = after.length && ticks.length < 3 ? [Math.max(...after)] : [];
  return [...ticks, ...ends.map((s) => [s, s.toLocaleString("en")])];
}

// Lines over x. A series is {name, color, x, y, dash, low, high}, the last two for a band.
// options: label (what a screen reader says), logX (steps), logY, xName, mark (a step with an alarm), height, legend
function chart(host, series, options) {
  const body = html("div", { class: "plot" }), tip = html("div", { class: "tip", role: "status" }), hidden = new Set();
  const legend = html("div", { class: "legend" });
  host.replaceChildren(body, tip, legend);
  const px = (x) => (options.steps ? Math.max(x, INIT) : x);
  let move = () => {};
  function draw(width) {
    const shown = series.filter((s) => !hidden.has(s.name));
    const ys = shown.flatMap((s) => [...s.y, ...(s.low || []), ...(s.high || [])]).filter((v) => isNumber(v) && (!options.logY || v > 0));
    let [low, high] = options.range || extent(ys);
    if (!options.logY && !options.range) { const pad = (high - low) * 0.04; low -= pad; high += pad; }
    const xs = [...new Set(series.flatMap((s) => s.x))].sort((a, b) => a - b);
    const height = options.height || 320, left = 54, right = width - 14, top = 14, bottom = height - 34;
    const sx = scale(px(xs[0]), px(xs[xs.length - 1]), left, right, options.logX), sy = scale(low, high, bottom, top, options.logY);
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0, "aria-label": options.label });
    for (const v of sy.ticks) root.append(
      svg("line", { class: "grid-line", x1: left, x2: right, y1: sy.at(v), y2: sy.at(v) }),
      svg("text", { x: left - 8, y: sy.at(v) + 4, "text-anchor": "end" }, text(v)));
    const ticks = options.steps ? stepTicks(xs) : sx.ticks.map((v) => [v, text(v)]);
    let free = -Infinity;
    for (const [v, name] of ticks) {
      const at = sx.at(v), wide = name.length * 4 + 4;
      if (at - wide < free) continue;
      free = at + wide;
      root.append(svg("text", { x: Math.min(at, right - wide + 10), y: bottom + 18, "text-anchor": "middle" }, name));
    }
    root.append(svg("text", { x: (left + right) / 2, y: height - 3, "text-anchor": "middle" }, options.xName || "step"));
    const path = (s, values) => {
      let d = "", pen = "M";
      s.x.forEach((x, i) => {
        const y = values[i];
        if (!isNumber(y) || (options.logY && y <= 0)) { pen = "M"; return; }
        d += `${pen}${sx.at(px(x)).toFixed(1)} ${sy.at(y).toFixed(1)}`;
        pen = "L";
      });
      return d;
    };
    const lines = shown.map((s) => {
      const group = svg("g", {});
      if (s.low) {
        const known = s.x.map((_, i) => i).filter((i) => isNumber(s.low[i]) && isNumber(s.high[i]) && (!options.logY || s.low[i] > 0));
        const points = [...known.map((i) => [s.x[i], s.high[i]]), ...known.reverse().map((i) => [s.x[i], s.low[i]])];
        group.append(svg("polygon", { class: "band", fill: s.color, points: points.map(([x, y]) => `${sx.at(px(x)).toFixed(1)},${sy.at(y).toFixed(1)}`).join(" ") }));
      }
      group.append(svg("path", { class: "line", d: path(s, s.y), stroke: s.color, "stroke-dasharray": s.dash || null }));
      if (s.x.length === 1 && isNumber(s.y[0])) group.append(svg("circle", { cx: sx.at(px(s.x[0])), cy: sy.at(s.y[0]), r: 3, fill: s.color }));
      root.append(group);
      return group;
    });
    if (isNumber(options.mark)) root.append(
      svg("line", { class: "alarm-line", x1: sx.at(px(options.mark)), x2: sx.at(px(options.mark)), y1: top, y2: bottom }),
      svg("text", { class: "alarm-text", x: sx.at(px(options.mark)), y: 11, "text-anchor": "middle" }, "diverged"));
    const now = svg("line", { class: "now", y1: top, y2: bottom, visibility: "hidden" });
    root.append(now);
    let place = xs.length - 1;
    const show = (i, y) => {
      place = i;
      const x = xs[i], found = shown.map((s, k) => [s, s.y[s.x.indexOf(x)], k]).filter(([, v]) => isNumber(v));
      now.setAttribute("x1", sx.at(px(x))); now.setAttribute("x2", sx.at(px(x))); now.setAttribute("visibility", "visible");
      const near = y === undefined ? null : found.slice().sort((a, b) => Math.abs(sy.at(a[1]) - y) - Math.abs(sy.at(b[1]) - y))[0];
      lines.forEach((line, k) => line.classList.toggle("faded", Boolean(near) && found.length > 4 && near[2] !== k));
      const listed = found.length > 8 && near ? [near] : found.sort((a, b) => b[1] - a[1]).slice(0, 8);
      tip.replaceChildren(html("div", {}, `${options.xName || "step"} ${options.steps ? stepName(x) : text(x)}`),
        ...listed.map(([s, v]) => html("div", {}, html("span", { class: "swatch", style: `background:${s.color}` }), ` ${s.name}: ${text(v)}`)));
      const at = sx.at(px(x));
      tip.style.top = "20px";
      tip.style.left = at < width / 2 ? `${at + 24}px` : "auto";
      tip.style.right = at < width / 2 ? "auto" : `${width - at + 24}px`;
    };
    move = (event) => {
      const box = root.getBoundingClientRect(), ratio = width / box.width, x = (event.clientX - box.left) * ratio;
      let best = 0;
      xs.forEach((v, i) => { if (Math.abs(sx.at(px(v)) - x) < Math.abs(sx.at(px(xs[best])) - x)) best = i; });
      show(best, (event.clientY - box.top) * ratio);
    };
    const leave = () => { tip.replaceChildren(); now.setAttribute("visibility", "hidden"); lines.forEach((line) => line.classList.remove("faded")); };
    root.addEventListener("pointermove", move);
    root.addEventListener("pointerleave", leave);
    root.addEventListener("blur", leave);
    root.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by) { event.preventDefault(); show(Math.min(Math.max(place + by, 0), xs.length - 1)); }
    });
    body.replaceChildren(root);
  }
  const again = responsive(body, draw);
  if (options.ramp && series.length > 10) {
    const colors = series.map((s) => s.color).join(", ");
    legend.replaceWith(html("div", { class: "ramp" }, series[0].name, html("span", { class: "bar", style: `background:linear-gradient(90deg, ${colors})` }), series[series.length - 1].name));
  } else if (series.length > 1) {
    legend.append(...series.map((s) => html("button", { "aria-pressed": "true", onclick: (event) => {
      hidden.has(s.name) ? hidden.delete(s.name) : hidden.add(s.name);
      event.currentTarget.setAttribute("aria-pressed", String(!hidden.has(s.name)));
      again();
    } }, html("span", { class: "swatch", style: `background:${s.color}` }), s.name)));
  }
}

function viridis(t) {
  const at = Math.min(Math.max(t, 0), 1) * (VIRIDIS.length - 1), i = Math.min(Math.floor(at), VIRIDIS.length - 2);
  const mix = (k) => {
    const [a, b] = [VIRIDIS[i], VIRIDIS[i + 1]].map((c) => parseInt(c.slice(2 * k, 2 * k + 2), 16));
    return Math.round(a + (b - a) * (at - i));
  };
  return [mix(0), mix(1), mix(2)];
}

// Black or white, whichever has more contrast with a colour (WCAG 2.2, relative luminance).
function inkOn(color) {
  const [r, g, b] = color.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b < 0.179 ? "#fff" : "#000";
}

// The beginning and the end of a name, if it has more characters than fit.
function shortened(name, fits) {
  const tail = Math.floor(fits / 2);
  return name.length > fits ? `${name.slice(0, fits - tail - 1)}…${name.slice(name.length - tail)}` : name;
}

// A map of numbers values[row][column] with names of rows and columns; nan is left out.
// options: label, log, range, square, columnName, why(row, column) for a nan, cells(row, column) for lines of text in a cell
function heatMap(host, rows, columns, values, options) {
  const body = html("div", { class: "plot" }), tip = html("div", { class: "tip", role: "status" });
  const flat = values.flat().filter((v) => isNumber(v) && (!options.log || v > 0));
  const log = options.log && flat.length > 0;
  const [low, high] = options.range || extent(flat), f = log ? Math.log : (v) => v;
  const share = (v) => (high === low ? 0.5 : (f(v) - f(low)) / (f(high) - f(low)));
  const canvas = html("canvas", { width: columns.length, height: rows.length }), context = canvas.getContext("2d");
  const pixels = context.createImageData(columns.length, rows.length);
  values.forEach((row, r) => row.forEach((v, c) => {
    if (isNumber(v) && !(log && v <= 0)) pixels.data.set([...viridis(share(v)), 255], 4 * (r * columns.length + c));
  }));
  context.putImageData(pixels, 0, 0);
  const url = canvas.toDataURL();
  const bar = `linear-gradient(90deg, ${VIRIDIS.map((c) => `#${c}`).join(", ")})`;
  host.replaceChildren(body, tip, html("div", { class: "ramp" }, text(low), html("span", { class: "bar", style: `background:${bar}` }), text(high), log ? " (log scale)" : "", !options.cells && flat.length < rows.length * columns.length ? " · empty: nan" : ""));
  responsive(body, (width) => {
    const longest = Math.max(...rows.map((name) => name.length));
    const left = Math.min(longest * 7 + 14, width * 0.32), right = width - 6, top = 6;
    const side = right - left, tall = options.cells ? Math.max(rows.length * 44, 90) : options.square ? side * rows.length / columns.length : Math.min(Math.max(rows.length * 22, 90), Math.max(420, rows.length * 9));
    const height = top + tall + 38, cw = side / columns.length, ch = tall / rows.length;
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0, "aria-label": options.label });
    root.append(svg("image", { href: url, x: left, y: top, width: side, height: tall, preserveAspectRatio: "none" }));
    const every = Math.ceil(13 / ch), fits = Math.floor((left - 12) / 6.6);
    rows.forEach((name, r) => {
      if (r % every) return;
      root.append(svg("text", { x: left - 6, y: top + (r + 0.5) * ch + 4, "text-anchor": "end" }, shortened(name, fits), svg("title", {}, name)));
    });
    let free = -Infinity;
    columns.forEach((name, c) => {
      const at = left + (c + 0.5) * cw, short = shortened(name, Math.max(12, Math.floor(cw / 7.2))), wide = short.length * 3.6 + 5;
      if (at - wide < free || at + wide > width + 8) return;
      free = at + wide;
      root.append(svg("text", { x: at, y: top + tall + 16, "text-anchor": "middle" }, short, svg("title", {}, name)));
    });
    root.append(svg("text", { x: (left + right) / 2, y: height - 3, "text-anchor": "middle" }, options.columnName));
    if (options.cells) rows.forEach((_, r) => columns.forEach((_, c) => {
      const lines = options.cells(r, c).filter(Boolean), wide = Math.max(0, ...lines.map((line) => line.length)) * 6.6;
      const fill = isNumber(values[r][c]) ? `fill:${inkOn(viridis(share(values[r][c])))}` : "", x = left + (c + 0.5) * cw;
      if (wide < cw) lines.forEach((line, k) => root.append(svg("text", { x, y: top + (r + 0.5) * ch + 4 + 14 * (k - (lines.length - 1) / 2), "text-anchor": "middle", style: fill }, line)));
    }));
    const cell = svg("rect", { class: "cell", width: cw, height: ch, visibility: "hidden" });
    root.append(cell);
    let place = [0, columns.length - 1];
    const show = (r, c) => {
      place = [r, c];
      cell.setAttribute("x", left + c * cw); cell.setAttribute("y", top + r * ch); cell.setAttribute("visibility", "visible");
      const v = values[r][c], why = isNumber(v) || !options.why ? "" : options.why(r, c);
      tip.replaceChildren(html("div", {}, rows[r]), html("div", {}, `${options.columnName} ${columns[c]}: ${text(v)}${why ? ` (${why})` : ""}`));
      const x = left + c * cw;
      tip.style.top = `${Math.min(top + (r + 1) * ch + 18, height - 20)}px`;
      tip.style.left = x < width / 2 ? `${x + 20}px` : "auto";
      tip.style.right = x < width / 2 ? "auto" : `${width - x}px`;
    };
    const leave = () => { tip.replaceChildren(); cell.setAttribute("visibility", "hidden"); };
    root.addEventListener("pointermove", (event) => {
      const box = root.getBoundingClientRect(), ratio = width / box.width;
      const c = Math.floor(((event.clientX - box.left) * ratio - left) / cw), r = Math.floor(((event.clientY - box.top) * ratio - top) / ch);
      if (c >= 0 && r >= 0 && c < columns.length && r < rows.length) show(r, c); else leave();
    });
    root.addEventListener("pointerleave", leave);
    root.addEventListener("blur", leave);
    root.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (!by) return;
      event.preventDefault();
      show(Math.min(Math.max(place[0] + by[0], 0), rows.length - 1), Math.min(Math.max(place[1] + by[1], 0), columns.length - 1));
    });
    body.replaceChildren(root);
  });
}
