"use strict";
// The page of a server: models, a form to ask one, and charts. All that it shows comes from the
// server's own routes, and is put into the page as text.

const TICK = 2000; // milliseconds between two looks at the metrics
const LOOK = 5; // ticks between two looks at the models
const ROWS = 20; // of an answer that are shown
const BEST = 5; // classes of a row
const MANY = 100; // steps of a row
const FIGURES = {
  jaxops_drift_psi_hour: "Index, last hour",
  jaxops_drift_psi: "Index, since loaded",
  jaxops_missing_rate_hour: "Missing, last hour",
  jaxops_out_of_range_rate_hour: "Out of range, last hour",
};

let key = ""; // nowhere else: it is gone with the page
let models = "",
  ways = [],
  samples = [],
  ticks = 0,
  running = null,
  timer = null,
  state = "",
  session = new AbortController(); // ends where the key is forgotten, and with it what was asked

const $ = (id) => document.getElementById(id);

// What a route answers; an error has the sentence of the server.
async function call(path, options = {}) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const { signal } = session;
  const fixed = { headers, credentials: "omit", cache: "no-store", redirect: "error", signal };
  const response = await fetch(path, { ...fixed, ...options });
  if (response.ok) return response;
  let sentence = `the server answered with the status ${response.status}`;
  try {
    sentence = (await response.json()).error;
  } catch {
    /* not of this server */
  }
  throw Object.assign(new Error(sentence), { status: response.status });
}

// ---- access

async function enter() {
  const mine = session,
    found = await Promise.allSettled([look(), watch()]);
  if (mine !== session) return;
  const wrong = found.find(
    (one) => one.status === "rejected" && ![403, 409].includes(one.reason.status),
  );
  if (wrong && wrong.reason.status === 401) {
    const given = key !== "";
    leave();
    $("key-error").textContent = given ? "The server does not know this key." : "";
    $("key").focus();
    return;
  }
  const refused = found.filter((one) => one.status === "rejected").map((one) => one.reason.message);
  if (wrong || refused.length === 2) {
    $("state").textContent = refused.join("; ");
    if (key) {
      $("access").hidden = false;
      $("key-error").textContent = refused.join("; ");
    }
    return;
  }
  $("access").hidden = true;
  $("forget").hidden = key === "";
  $("try").hidden = $("models").hidden = $("routes").hidden = found[0].status === "rejected";
  $("traffic").hidden = $("drift").hidden = found[1].status === "rejected";
  state = ["Connected", "This key may not ask models.", "This key may not read metrics."][
    1 + found.findIndex((one) => one.status === "rejected")
  ];
  $("state").textContent = state;
  draw();
  clearInterval(timer);
  timer = setInterval(tick, TICK);
}

// Show nothing of the server, and forget the key.
function leave() {
  clearInterval(timer);
  if (running) running.abort();
  session.abort();
  session = new AbortController();
  key = models = "";
  [ways, samples, ticks] = [[], [], 0];
  for (const section of document.querySelectorAll("main > section")) section.hidden = true;
  for (const id of [
    "models-table",
    "choice",
    "fields",
    "answer",
    "watched",
    "drift-table",
    "routes-table",
  ])
    $(id).replaceChildren();
  for (const drawing of document.querySelectorAll("figure svg, figure .legend")) drawing.remove();
  for (const id of ["state", "form-error", "drift-state"]) $(id).textContent = "";
  $("key-form").reset();
  $("access").hidden = false;
  $("forget").hidden = true;
}

async function tick() {
  if (document.hidden) return;
  ticks += 1;
  const mine = session,
    asked = [];
  if (!$("traffic").hidden) asked.push(watch().then(draw));
  if (!$("models").hidden && ticks % LOOK === 0) asked.push(look());
  const failed = (await Promise.allSettled(asked)).find((one) => one.status === "rejected");
  if (mine !== session) return;
  if (failed && failed.reason.status === 401) {
    leave();
    $("key-error").textContent = "The server does not know this key any more.";
  } else $("state").textContent = failed ? failed.reason.message : state;
}

// ---- models

async function look() {
  const found = await (await call("models")).text();
  if (found === models) return;
  const described = await (await call("openapi.json")).json();
  models = found;
  const told = JSON.parse(found).models;
  $("models-table").replaceChildren(
    table(
      "",
      ["Model", "Answers", "Canary", "Shadow", "Loaded"],
      told.map((one) => [
        one.name,
        `version ${one.version}`,
        share(one.canary),
        share(one.shadow),
        one.versions.join(", "),
      ]),
    ),
  );
  const routes = Object.entries(described.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, what]) => [method.toUpperCase(), path, what.summary]),
  );
  $("routes-table").replaceChildren(table("", ["Method", "Path", "What it does"], routes));
  ways = told
    .flatMap(({ name }) =>
      ["predict", "generate"].map((verb) => {
        const path = `/models/${name}/${verb}`,
          route = described.paths[path];
        return (
          route && {
            name,
            verb,
            path: path.slice(1),
            schema: route.post.requestBody.content["application/json"].schema,
          }
        );
      }),
    )
    .filter(Boolean);
  const before = $("choice").value,
    generates = new Set(ways.filter((one) => one.verb === "generate").map((one) => one.name));
  $("choice").replaceChildren(
    ...ways.map(({ name, verb }) =>
      element(
        "option",
        { value: `${name} ${verb}` },
        generates.has(name) ? `${name}: ${verb}` : name,
      ),
    ),
  );
  if (ways.some(({ name, verb }) => `${name} ${verb}` === before)) $("choice").value = before;
  const other = $("choice").value !== before;
  if (!other && wanted() === formed) return;
  form();
  if (!other && before)
    $("form-error").textContent = "A new version of the model reads other fields; here they are.";
}

function share(given) {
  return given ? `version ${given.version}, ${told(100 * given.share)} %` : "–";
}

function table(caption, heads, rows) {
  const numeric = heads.map((_, place) =>
    rows.every((row) => typeof row[place] === "number" || row[place] === null),
  );
  const kind = (place) => (numeric[place] ? { class: "number" } : {});
  const made = element(
    "table",
    {},
    ...(caption ? [element("caption", {}, caption)] : []),
    element(
      "thead",
      {},
      element(
        "tr",
        {},
        ...heads.map((head, place) => element("th", { scope: "col", ...kind(place) }, head)),
      ),
    ),
  );
  made.append(
    element(
      "tbody",
      {},
      ...rows.map((row) =>
        element("tr", {}, ...row.map((cell, place) => element("td", kind(place), plain(cell)))),
      ),
    ),
  );
  return made;
}

// A value of JSON for people.
function plain(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "number")
    return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(5)));
  if (Array.isArray(value)) return value.map(plain).join(", ");
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

// ---- the form

const chosen = () => ways.find(({ name, verb }) => `${name} ${verb}` === $("choice").value);

let parts = {}, // name -> function that gives the part of the body; undefined leaves it out
  formed = ""; // what was wanted when the form was made

// What the chosen model asks for, without the examples, which each version has of its own.
function wanted() {
  const { schema } = chosen() || {};
  return JSON.stringify(schema, (name, value) =>
    name === "examples" && Array.isArray(value) ? undefined : value,
  );
}

function form() {
  const way = chosen(),
    fields = $("fields");
  parts = {};
  formed = wanted();
  fields.replaceChildren();
  $("answer").replaceChildren();
  $("form-error").textContent = "";
  if (!way) return;
  const { rows, texts, histories, images, columns, prompt, options, future } =
    way.schema.properties;
  if (rows && options && options.properties.horizon) {
    parts.rows = lines(
      fields,
      "rows",
      rows,
      "All rows of the series or customers: a line of names, then a line for each row",
    );
    if (future)
      parts.future = lines(
        fields,
        "future",
        future,
        "Rows to come, of what is known ahead; leave it empty if there are none",
      );
  } else if (rows) parts.rows = row(fields, rows.oneOf[0].items.properties);
  if (texts) parts.texts = list(fields, "texts", "Texts, one a line", (line) => line, "");
  if (histories)
    parts.histories = list(
      fields,
      "histories",
      "Histories, one a line: items separated by commas, the oldest first",
      (line) => cells(line),
      "",
    );
  if (images) parts.images = image(fields);
  for (const name of columns ? Object.keys(columns.properties) : []) {
    const read = area(fields, name, `${name}, nested lists of JSON`, "[[0.1, 0.2]]");
    const before = parts.columns || (() => ({}));
    parts.columns = () => ({ ...before(), [name]: asJson(name, read()) });
  }
  if (prompt) {
    parts.prompt = area(fields, "prompt", "Prompt", "");
    parts.stream = () => true;
  }
  if (options) parts.options = choices(fields, options.properties);
}

let numbered = 0; // of fields

function labelled(place, label, input, hint = "", kind = "") {
  const id = `field-${(numbered += 1)}`;
  input.id = id;
  const made = element(
    "div",
    kind ? { class: kind } : {},
    element("label", { for: id }, label),
    input,
  );
  if (hint) {
    made.append(element("p", { class: "hint", id: `${id}-hint` }, hint));
    input.setAttribute("aria-describedby", `${id}-hint`);
  }
  place.append(made);
  return input;
}

function area(place, name, label, value, hint = "") {
  const input = labelled(
    place,
    label,
    element("textarea", { name, spellcheck: "false" }),
    hint,
    "whole",
  );
  input.value = value;
  return () => input.value;
}

// A row of a table: a field for each column.
function row(place, columns) {
  const inputs = Object.entries(columns).map(([name, schema]) => {
    const input = element("input", { type: "text", name, autocomplete: "off" });
    if (schema.type[0] === "number") input.inputMode = "decimal";
    input.value = schema.examples ? String(schema.examples[0]) : "";
    const missing = schema.type.includes("null") ? "empty if missing" : "";
    return [
      name,
      schema,
      labelled(place, name, input, [kinds(schema.type), missing].filter(Boolean).join("; ")),
    ];
  });
  return () => [
    Object.fromEntries(
      inputs.map(([name, schema, input]) => [name, cell(input.value, schema.type)]),
    ),
  ];
}

function kinds(types) {
  if (types.includes("boolean")) return "a text";
  if (types[0] === "number") return "a number";
  if (types.length === 1 || types[1] === "null") return "a date such as 2024-12-31";
  return types.includes("integer") ? "a text or a whole number" : "a date or a number";
}

// What a text stands for in a column of the types. What is no number is sent as it is: the server
// says where it is wrong.
function cell(text, types) {
  if (text.trim() === "" && types.includes("null")) return null;
  const number = Number(text);
  const written = text.trim() !== "" && Number.isFinite(number);
  if (types[0] === "number" || types[0] === "integer") return written ? number : text;
  const counts =
    types.includes("number") || (types.includes("integer") && !types.includes("boolean"));
  return counts && String(number) === text && Number.isFinite(number) ? number : text;
}

// Rows of comma-separated values, as many as are typed.
function lines(place, name, schema, label) {
  const columns = schema.oneOf[0].items.properties,
    needed = schema.oneOf[0].items.required;
  const read = area(
    place,
    name,
    label,
    name === "rows" ? `${needed.map(quoted).join(",")}\n` : "",
    Object.entries(columns)
      .map(([one, { type }]) => `${one}: ${kinds(type)}`)
      .join("; "),
  );
  return () => {
    const [head, ...rows] = read()
      .split("\n")
      .filter((line) => line.trim() !== "")
      .map(cells);
    if (!head && name === "future") return undefined;
    if (!head || !rows.length)
      throw new Error(
        `${name} must have a line of names and at least 1 row, got ${head ? "no row" : "nothing"}`,
      );
    return rows.map((row, number) => {
      if (row.length !== head.length)
        throw new Error(
          `${name} must have ${head.length} cells in a row, got ${row.length} in row ${number}`,
        );
      return Object.fromEntries(
        head.map((one, at) => [
          one,
          cell(row[at], Object.hasOwn(columns, one) ? columns[one].type : ["string"]),
        ]),
      );
    });
  };
}

function quoted(text) {
  return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

// The cells of a line; one with a comma stands in quotes, in which a quote stands twice.
function cells(line) {
  const found = [];
  for (const [, quote, bare] of `${line.trim()},`.matchAll(/\s*(?:"((?:[^"]|"")*)"|([^,]*?))\s*,/g))
    found.push(quote === undefined ? bare : quote.replaceAll('""', '"'));
  return found;
}

function list(place, name, label, read, value) {
  const text = area(place, name, label, value);
  return () =>
    text()
      .split("\n")
      .filter((line) => line.trim() !== "")
      .map(read);
}

function image(place) {
  const input = labelled(
    place,
    "Image file",
    element("input", { type: "file", accept: "image/*", name: "images" }),
    "",
    "whole",
  );
  let found = null;
  input.addEventListener("change", () => {
    const file = input.files[0],
      reader = new FileReader();
    found = null;
    input.parentElement.querySelectorAll("img").forEach((one) => one.remove());
    if (!file) return;
    found = new Promise((resolve, reject) => {
      reader.onload = () => resolve(reader.result);
      reader.onerror = () => reject(new Error("the file could not be read"));
    });
    found.then(
      (url) => input.after(element("img", { src: url, alt: "The image that was chosen" })),
      () => {},
    );
    reader.readAsDataURL(file);
  });
  return async () => {
    if (!found) throw new Error("images must have a file, got none");
    return [(await found).replace(/^[^,]*,/, "")];
  };
}

function asJson(name, text) {
  try {
    return JSON.parse(text);
  } catch {
    throw new Error(`${name} must be nested lists of JSON, such as [[0.1, 0.2]]`);
  }
}

function choices(place, schemas) {
  const inside = element("div", { class: "fields" });
  place.append(element("details", {}, element("summary", {}, "Options"), inside));
  const inputs = Object.entries(schemas).map(([name, schema]) => {
    const types = [schema.type].flat();
    if (types[0] === "boolean") {
      const select = element(
        "select",
        { name },
        ...["", "true", "false"].map((value) => element("option", { value }, value || "default")),
      );
      return [name, types, schema, labelled(inside, name, select)];
    }
    const input = element("input", {
      type: "text",
      name,
      autocomplete: "off",
      placeholder: "default",
    });
    if (types.some((one) => one === "number" || one === "integer")) input.inputMode = "decimal";
    const bounds = [
      schema.minimum === undefined ? "" : `at least ${schema.minimum}`,
      schema.maximum > 1e6 || schema.maximum === undefined ? "" : `at most ${schema.maximum}`,
    ];
    const hint = types[0] === "array" ? "separated by commas" : bounds.filter(Boolean).join(", ");
    return [name, types, schema, labelled(inside, name, input, hint)];
  });
  return () => {
    const found = {};
    for (const [name, types, schema, { value }] of inputs) {
      if (value.trim() === "") continue;
      if (types[0] === "boolean") found[name] = value === "true";
      else if (types[0] === "array")
        found[name] = cells(value).map((one) => cell(one, [schema.items.type].flat()));
      else found[name] = cell(value, types);
    }
    return Object.keys(found).length ? found : undefined;
  };
}

async function body() {
  const found = {};
  for (const [name, read] of Object.entries(parts)) {
    const value = await read();
    if (value !== undefined) found[name] = value;
  }
  return JSON.stringify(found);
}

// ---- the answer

async function ask(event) {
  event.preventDefault();
  const way = chosen(),
    began = performance.now();
  if (!way || running) return;
  $("form-error").textContent = "";
  $("answer").replaceChildren();
  running = new AbortController();
  const { signal } = running;
  $("ask").disabled = true;
  $("stop").hidden = false;
  try {
    const sent = await body();
    const headers = {
      "Content-Type": "application/json",
      ...(key ? { Authorization: `Bearer ${key}` } : {}),
    };
    const response = await call(way.path, { method: "POST", body: sent, headers, signal });
    const streams = (response.headers.get("content-type") || "").startsWith("text/event-stream");
    const answer = streams ? await stream(response) : await response.json();
    const spent = Math.round(performance.now() - began);
    if (!streams) $("answer").append(...shown(answer.answer));
    $("answer").prepend(
      element("p", { class: "hint" }, `Version ${answer.version} answered in ${spent} ms`),
      ...(answer.warnings || []).map((one) => element("p", { class: "error" }, one)),
    );
    $("answer").append(
      details("The request as JSON", JSON.stringify(JSON.parse(sent), null, 1)),
      details("The answer as JSON", JSON.stringify(answer, null, 1)),
    );
  } catch (error) {
    if (error.status === 401) {
      leave();
      $("key-error").textContent = "The server does not know this key any more.";
    } else $("form-error").textContent = error.name === "AbortError" ? "Stopped." : error.message;
  } finally {
    running = null;
    $("ask").disabled = false;
    $("stop").hidden = true;
  }
}

function details(title, text) {
  return element(
    "details",
    {},
    element("summary", {}, title),
    element("pre", { tabindex: "0" }, text),
  );
}

// Show a text while it is made; what its last event tells.
async function stream(response) {
  const text = element("div", { class: "text" }),
    state = element("p", { class: "hint" }, "…");
  $("answer").append(text, state);
  $("answer").setAttribute("aria-busy", "true"); // told when it is whole
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "",
    count = 0;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new Error("the text must have an end, got a part of it");
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        const found = JSON.parse(event.slice("data: ".length));
        text.append(found.text);
        if (found.end !== undefined) {
          state.textContent = `${found.new_tokens} tokens; the end: ${found.end}`;
          return found;
        }
        count += 1;
        state.textContent = `${count} tokens`;
      }
    }
  } finally {
    $("answer").removeAttribute("aria-busy");
  }
}

// What shows an answer: classes as bars, and anything else as tables.
function shown(answer) {
  if (answer.classes && answer.labels && answer.probabilities) return classes(answer);
  const columns = Object.entries(answer).filter(([, value]) => Array.isArray(value));
  const rows = columns.length ? columns[0][1].length : 0;
  const of_rows = columns.filter(([, value]) => value.length === rows);
  const others = Object.entries(answer).filter(([name]) => !of_rows.some(([one]) => one === name));
  const found = others.map(([name, value]) => element("p", {}, `${name}: ${plain(value)}`));
  const flat = of_rows.filter(([, value]) => value.every((one) => !Array.isArray(one)));
  const deep = of_rows.filter(([, value]) => !flat.some(([, one]) => one === value));
  if (!deep.length) {
    const shown = [...Array(Math.min(rows, ROWS)).keys()];
    if (rows)
      found.push(
        wide(
          table(
            "",
            flat.map(([name]) => name),
            shown.map((row) => flat.map(([, value]) => value[row])),
          ),
        ),
      );
  } else {
    for (let row = 0; row < Math.min(rows, ROWS); row += 1) {
      const lists = deep.map(([name, value]) => [name, [value[row]].flat()]);
      const steps = Math.min(Math.max(...lists.map(([, value]) => value.length)), MANY);
      found.push(
        element(
          "h3",
          {},
          flat.map(([name, value]) => `${name} ${plain(value[row])}`).join(", ") || `Row ${row}`,
        ),
      );
      found.push(
        wide(
          table(
            "",
            lists.map(([name]) => name),
            [...Array(steps).keys()].map((step) => lists.map(([, value]) => value[step])),
          ),
        ),
      );
    }
  }
  if (rows > ROWS)
    found.push(
      element("p", { class: "hint" }, `The first ${ROWS} of ${rows} rows; the JSON has all.`),
    );
  return found;
}

function wide(inside) {
  return element("div", { class: "wide", tabindex: "0" }, inside);
}

function classes({ labels, probabilities, classes }) {
  return labels.slice(0, ROWS).flatMap((label, row) => {
    const best = probabilities[row]
      .map((share, place) => [share, classes[place]])
      .sort((one, other) => other[0] - one[0]);
    const bars = element("div", { class: "bars" });
    for (const [share, name] of best.slice(0, BEST)) {
      const bar = element("div", { class: "bar", "aria-hidden": "true" });
      bar.style.width = `${100 * share}%`;
      bars.append(
        element("span", {}, plain(name)),
        element("div", {}, bar),
        element("span", { class: "share" }, `${(100 * share).toFixed(1)} %`),
      );
    }
    return [element("h3", {}, labels.length > 1 ? `Row ${row}: ${label}` : plain(label)), bars];
  });
}

// ---- the charts

async function watch() {
  const text = await (await call("metrics")).text();
  samples = [...samples, { time: Date.now(), metrics: parsed(text) }].slice(-KEPT);
}

function draw() {
  if (!samples.length) return;
  const last = samples[samples.length - 1],
    select = $("watched"),
    chosen = select.value;
  const names = [...new Set(last.metrics.map((one) => one.labels.model).filter(Boolean))].sort();
  if (
    select.options.length !== names.length + 1 ||
    names.some((name, place) => select.options[place + 1].value !== name)
  ) {
    select.replaceChildren(
      ...["", ...names].map((value) => element("option", { value }, value || "all")),
    );
    select.value = names.includes(chosen) ? chosen : "";
  }
  chart($("rate"), rates(samples, select.value));
  chart($("latency"), latencies(samples, select.value));
  chart($("psi"), drifting(samples, select.value), LIMITS);
  const counted = last.metrics.filter(
    ({ name, labels }) =>
      name === "jaxops_observed_rows_hour" && (!select.value || labels.model === select.value),
  );
  const rows = counted.map(
    ({ labels, value }) => `${labels.model} version ${labels.version}, ${value}`,
  );
  $("drift-state").textContent = rows.length
    ? `Rows of the last hour: ${rows.join("; ")}. An index of few rows is large by chance.`
    : "No model here keeps a reference to compare rows with.";
  const found = [...drifts(last, select.value).values()].map((one) => [
    one.model,
    one.version,
    one.column,
    ...Object.keys(FIGURES).map((name) => (name in one ? Number(told(one[name])) : null)),
  ]);
  found.sort((one, other) => other[3] - one[3]); // by the index of the last hour
  const heads = ["Model", "Version", "Column", ...Object.values(FIGURES)];
  $("drift-table").replaceChildren(...(found.length ? [table("", heads, found)] : []));
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = $("key").value.trim();
  $("key-error").textContent = /^[\x21-\x7e]+$/.test(given)
    ? ""
    : "A key has no blanks and only letters, digits and signs of ASCII.";
  if ($("key-error").textContent) return;
  key = given;
  enter();
});
$("forget").addEventListener("click", () => {
  leave();
  $("key").focus();
});
$("choice").addEventListener("change", form);
$("watched").addEventListener("change", draw);
$("form").addEventListener("submit", ask);
$("stop").addEventListener("click", () => running && running.abort());
window.addEventListener("resize", draw);
enter();
