"use strict";
// What /metrics tells, as charts over time. Nothing here asks the server.

const SVG = "http://www.w3.org/2000/svg";
const KEPT = 150; // samples of a chart
const SPAN = 5; // samples over which counters are compared
const ASKED = ["predict", "infer", "generate"]; // routes that ask a model
const LIMITS = [0.1, 0.25]; // of the stability index: a small and a large shift
const LINES = 5; // of a chart
const STATUSES = ["200", "4xx", "429", "499", "5xx"]; // 499: the client went; 4xx: the others

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [one, value] of Object.entries(attributes)) made.setAttribute(one, value);
  made.append(...children); // texts stay texts, whatever is in them
  return made;
}

function drawn(name, attributes, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [one, value] of Object.entries(attributes)) made.setAttribute(one, value);
  made.textContent = text;
  return made;
}

// The samples of Prometheus' text format: {name, labels, value}.
function parsed(text) {
  const found = [];
  for (const line of text.split("\n")) {
    const match = /^(\w+)(?:\{(.*)\})? (\S+)/s.exec(line);
    if (!match) continue;
    const labels = {};
    for (const [, name, value] of (match[2] || "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/gs))
      labels[name] = value.replace(/\\(.)/g, (_, sign) => (sign === "n" ? "\n" : sign));
    const value = match[3] === "+Inf" ? Infinity : Number(match[3]);
    found.push({ name: match[1], labels, value });
  }
  return found;
}

// The sums of a metric's samples of one model (or of all, ""), by a label.
function sums(sample, name, model, label) {
  const found = new Map();
  for (const one of sample.metrics) {
    if (one.name !== name || !ASKED.includes(one.labels.route)) continue;
    if (model && one.labels.model !== model) continue;
    const at = one.labels[label];
    found.set(at, (found.get(at) || 0) + one.value);
  }
  return found;
}

// What a counter has gained by label between two samples; null where the server was started anew.
function gained(first, last, name, model, label) {
  const before = sums(first, name, model, label),
    after = sums(last, name, model, label);
  for (const [at, value] of after) after.set(at, value - (before.get(at) || 0));
  return [...after.values()].some((value) => value < 0) ? null : after;
}

function pairs(samples) {
  return samples.slice(1).map((last, place) => [samples[Math.max(0, place + 1 - SPAN)], last]);
}

// Lines of requests a second by status.
function rates(samples, model) {
  const kind = (status) => (STATUSES.includes(status) ? status : `${status[0]}xx`);
  const points = pairs(samples).map(([first, last]) => [
    last.time,
    (last.time - first.time) / 1000,
    gained(first, last, "jaxops_requests_total", model, "status"),
  ]);
  const sum = (count, wanted) =>
    [...count].reduce((total, [status, value]) => total + (kind(status) === wanted ? value : 0), 0);
  const seen = new Set(points.flatMap(([, , count]) => (count ? [...count.keys()].map(kind) : [])));
  return STATUSES.map((name, place) => ({
    name,
    place,
    points: points.map(([time, seconds, count]) => [time, count && sum(count, name) / seconds]),
  })).filter(({ name }) => seen.has(name));
}

// The quantile of a histogram {upper bound: count of all up to it}, linear within a bucket.
function quantile(histogram, share) {
  const bounds = [...histogram].map(([bound, count]) => [
    bound === "+Inf" ? Infinity : +bound,
    count,
  ]);
  bounds.sort((one, other) => one[0] - other[0]);
  const total = bounds.length ? bounds[bounds.length - 1][1] : 0;
  if (!total) return null;
  let low = 0,
    below = 0;
  for (const [bound, count] of bounds) {
    if (count >= share * total && count > below)
      return bound === Infinity
        ? low
        : low + ((bound - low) * (share * total - below)) / (count - below);
    if (bound !== Infinity) [low, below] = [bound, count];
  }
  return low;
}

// Lines of p50 and p99, in milliseconds.
function latencies(samples, model) {
  const points = pairs(samples).map(([first, last]) => [
    last.time,
    gained(first, last, "jaxops_request_seconds_bucket", model, "le"),
  ]);
  return [
    ["p50", 0.5],
    ["p99", 0.99],
  ].map(([name, share]) => ({
    name,
    points: points.map(([time, histogram]) => {
      const seconds = histogram && quantile(histogram, share);
      return [time, seconds === null ? null : 1000 * seconds];
    }),
  }));
}

// Of the last sample, what is told of each column of each version.
function drifts(sample, model) {
  const found = new Map();
  for (const { name, labels, value } of sample.metrics) {
    if (labels.column === undefined || (model && labels.model !== model)) continue;
    const id = JSON.stringify([labels.model, labels.version, labels.column]);
    if (!found.has(id)) found.set(id, { ...labels });
    found.get(id)[name] = value;
  }
  return found;
}

// Lines of the stability index of the columns that have drifted most.
function drifting(samples, model) {
  const all = samples.map((sample) => [sample.time, drifts(sample, model)]);
  const last = all.length ? [...all[all.length - 1][1]] : [];
  const psi = (one) =>
    one && one.jaxops_drift_psi_hour !== undefined ? one.jaxops_drift_psi_hour : null;
  const largest = last
    .filter(([, one]) => psi(one) !== null)
    .sort((one, other) => psi(other[1]) - psi(one[1]));
  return largest.slice(0, LINES).map(([id, one]) => ({
    name: [
      ...(model ? [] : [one.model]),
      ...(one.version === "1" ? [] : [`version ${one.version}`]),
      one.column,
    ].join(", "),
    points: all.map(([time, found]) => [time, psi(found.get(id))]),
  }));
}

function told(value) {
  return value === null || value === undefined ? "none" : String(Number(value.toPrecision(3)));
}

// The next of 1, 2, 2.5, 5, 10 times a power of ten.
function rounded(most) {
  const power = 10 ** Math.floor(Math.log10(most));
  return power * [1, 2, 2.5, 5, 10].find((one) => one * power >= most * (1 - 1e-9));
}

// Draw lines [{name, points: [[time, value or null]]}] into a figure.
function chart(figure, lines, limits = []) {
  const width = Math.max(figure.clientWidth, 200),
    height = 192,
    left = 44,
    foot = 22,
    top = 8;
  const values = lines
    .flatMap((line) => line.points.map((point) => point[1]))
    .filter((one) => one !== null);
  const times = lines.flatMap((line) => line.points.map((point) => point[0]));
  const most = rounded(Math.max(...values, ...(values.length ? limits : []), 1e-3));
  const end = Math.max(...times, 0),
    begin = Math.min(...times, end - 60_000);
  const x = (time) => left + ((width - left - 6) * (time - begin)) / (end - begin);
  const y = (value) => top + (height - top - foot) * (1 - value / most);
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  for (const share of [0, 0.5, 1]) {
    const at = y(share * most);
    svg.append(drawn("line", { x1: left, x2: width - 6, y1: at, y2: at, class: "grid" }));
    svg.append(drawn("text", { x: left - 6, y: at + 4, "text-anchor": "end" }, told(share * most)));
  }
  for (const limit of values.length ? limits : [])
    svg.append(
      drawn("line", { x1: left, x2: width - 6, y1: y(limit), y2: y(limit), class: "limit" }),
    );
  const passed = Math.round((end - begin) / 1000);
  svg.append(
    drawn(
      "text",
      { x: left, y: height - 5 },
      passed >= 120 ? `${Math.round(passed / 60)} minutes ago` : `${passed} seconds ago`,
    ),
  );
  svg.append(drawn("text", { x: width - 6, y: height - 5, "text-anchor": "end" }, "now"));
  if (!values.length)
    svg.append(
      drawn(
        "text",
        { x: (left + width) / 2, y: height / 2, "text-anchor": "middle" },
        "nothing yet",
      ),
    );
  const legend = element("ul", { class: "legend" });
  lines.forEach(({ name, points, place = lines.findIndex((one) => one.name === name) }) => {
    let path = "",
      pen = "M",
      count = 0;
    for (const [time, value] of points) {
      if (value === null) {
        pen = "M";
        continue;
      }
      const at = `${x(time).toFixed(1)} ${y(value).toFixed(1)}`;
      path += pen === "M" ? `M${at}L${at}` : `L${at}`; // a single point is a dot
      pen = "L";
      count += 1;
    }
    svg.append(
      drawn("path", {
        d: path,
        class: `series s${place}`,
        "stroke-linecap": "round",
        "data-points": count,
      }),
    );
    const swatch = drawn("svg", { viewBox: "0 0 28 12", "aria-hidden": "true" });
    swatch.append(drawn("line", { x1: 0, x2: 28, y1: 6, y2: 6, class: `series s${place}` }));
    const latest = points.length ? points[points.length - 1][1] : null;
    legend.append(element("li", {}, swatch, ` ${name} `, element("b", {}, told(latest))));
  });
  const now = lines.map(
    ({ name, points }) => `${name} ${told(points.length ? points[points.length - 1][1] : null)}`,
  );
  svg.setAttribute(
    "aria-label",
    `${figure.querySelector("figcaption").textContent}: ${now.join(", ") || "nothing yet"}`,
  );
  figure.replaceChildren(figure.querySelector("figcaption"), svg, legend);
}
