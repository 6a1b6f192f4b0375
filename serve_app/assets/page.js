// The page: the model's card, a window to edit, and the server's forecast for it.
"use strict";

const PAUSE_MS = 250; // from the last keystroke to the request
const LEVELS = [0.5, 0.8, 0.9, 0.95];
const PREFERRED_LEVEL = 0.9;

const byId = (id) => document.getElementById(id);
const base = new URL(".", location.href).href;
const chart = byId("chart");

let model = null;
let several = false; // whether there are other symbols, so that a request must name one
let choice = 0; // counts choices of a model, so that answers to earlier choices can be ignored
let apiKey = "";
let asked = null; // aborts the request under way
let timer = 0;
let shown = null; // arguments of the last drawing, to redraw at another size

const percent = (share) => `${(100 * share).toFixed(1)} %`;

function headers() {
  return { "Content-Type": "application/json", ...(apiKey ? { Authorization: `Bearer ${apiKey}` } : {}) };
}

async function ask(path, options = {}) {
  const response = await fetch(base + path, { headers: headers(), ...options });
  if (response.status === 401) byId("key-form").hidden = false;
  if (response.ok) return response.json();
  const content = await response.json().catch((error) => {
    if (error instanceof SyntaxError) return {}; // a proxy's own page, for example
    throw error;
  });
  const problems = Array.isArray(content.detail) ? content.detail : [];
  const refusal = new Error(problems.map((one) => one.msg).join("; ") || `The server answered ${response.status}`);
  refusal.field = problems[0]?.loc?.[1];
  throw refusal;
}

function cell(tag, text, number) {
  const made = document.createElement(tag);
  made.textContent = text;
  if (number) made.className = "number";
  return made;
}

// numbers: whether all columns but the first are numbers.
function fill(table, rows, header, numbers = Boolean(header)) {
  table.replaceChildren();
  for (const row of header ? [header, ...rows] : rows) {
    const line = table.insertRow();
    row.forEach((text, i) => line.append(cell(row === header ? "th" : "td", text, numbers && i > 0)));
  }
}

function showCard() {
  const { symbol, feature, values_used: used, trained_on: data } = model;
  document.title = `${symbol} ${feature} forecaster`;
  byId("title").textContent = `${symbol} ${feature}`;
  byId("about").textContent = `A model that forecasts the next value from the last ${used}${data ? `, built from prices from ${data.first_date} to ${data.last_date}` : ""}.`;

  const part = model.metrics_test ? "test" : "validation";
  const metrics = model.metrics_test ?? model.metrics_validation ?? {};
  const persistence = model.persistence[part] ?? {};
  const rows = Object.entries(metrics).map(([name, value]) => {
    const reference = persistence[name];
    return [
      `${name} ${model.metric_units[name] ?? ""}`.trim(),
      format(value),
      reference === undefined ? "" : format(reference),
      reference ? `${(100 * (1 - value / reference)).toFixed(2)} %` : "",
    ];
  });
  fill(byId("metrics"), rows, [`On ${part} rows`, model.scored_model ? "trained earlier" : "model", "persistence", "skill"]);
  const skill = persistence.MAE ? 1 - metrics.MAE / persistence.MAE : null;
  byId("honesty").textContent =
    skill === null
      ? "There are no scores to compare it with persistence, which repeats the last value."
      : `${model.scored_model ? "With training on earlier rows alone, its" : "Its"} mean absolute error on ${part} rows is ${format(metrics.MAE)}; persistence, which repeats the last value, has ${format(persistence.MAE)}.`;

  const at = (model.intervals[part] ?? []).find((one) => one.level === PREFERRED_LEVEL);
  const facts = [
    ["window", `${used} values${model.columns.length > 1 ? ` of ${model.columns.join(", ")}` : ""}`],
    ...(at ? [["90 % interval", `${percent(at.coverage)} of ${part} rows inside, mean width ${format(at.width)}${model.scored_model ? " (trained on earlier rows alone)" : ""}`]] : []),
    ...(data ? [["prices", `${data.source}, ${data.rows} rows, ${data.first_date} to ${data.last_date}`]] : []),
    ...(model.train_range ? [["training prices", model.train_range.map(format).join(" to ")]] : []),
    ["likelihood", `${model.likelihood}, volatility ${model.volatility}`],
    ["networks", String(model.members)],
    ...(model.configurations_tried ? [["configurations tried", String(model.configurations_tried)]] : []),
    ...(model.trial_number === null ? [] : [["trial", String(model.trial_number)]]),
    ...(model.created ? [["trained at", model.created]] : []),
    ["runs on", `${model.device}, ${model.engine}`],
    ...(model.version ? [["version", model.version]] : []),
    ["SHA-256", model.sha256.slice(0, 12)],
    ["file", model.checkpoint_path],
    ...(model.refused ? [["refused", `${model.refused.reason} (${model.refused.at})`]] : []),
  ];
  fill(byId("facts"), facts);
}

function showControls() {
  const possible = LEVELS.filter((level) => level <= model.widest_level);
  byId("level").replaceChildren(
    ...possible.map((level) => new Option(percent(level).replace(".0", ""), level, false, level === PREFERRED_LEVEL)),
    new Option("none", ""),
  );
  byId("horizon").disabled = !model.many_steps;
  byId("horizon").value = 1;
  byId("values-label").textContent =
    model.columns.length > 1
      ? `Past rows, oldest first, one per line: ${model.columns.join(", ")}`
      : `Past values of ${model.feature}, oldest first`;
  byId("restore").hidden = !model.latest_window;
}

function restore() {
  clear();
  byId("values").value = model.latest_window ? showValues(model.latest_window) : "";
  forecast();
}

// Show nothing that does not belong to the current fields.
function clear() {
  shown = null;
  chart.replaceChildren();
  chart.setAttribute("aria-label", "No forecast yet");
  for (const id of ["answer", "count", "curl"]) byId(id).textContent = "";
  problem("");
}

// `field` is the field to correct: values, horizon, levels, or none of them.
function problem(text, field) {
  byId("problem").textContent = text;
  byId("problem").hidden = !text;
  for (const [id, name] of [["values", "values"], ["horizon", "horizon"], ["level", "levels"]]) {
    byId(id).setAttribute("aria-invalid", String(Boolean(text) && name === field));
  }
  chart.classList.toggle("stale", Boolean(text));
  if (text) byId("answer").textContent = "";
}

// Whether the fields hold the window that the server knows, and so the date of its last value.
function isLatestWindow() {
  return Boolean(model.trained_on?.calendar && model.latest_window) && byId("values").value === showValues(model.latest_window);
}

// Build the body of the request that the page's fields describe.
function body(values) {
  const level = byId("level").value;
  const horizon = byId("horizon").valueAsNumber;
  return JSON.stringify({
    values: values.slice(-model.values_used),
    ...(level ? { levels: [Number(level)] } : {}),
    ...(horizon === 1 ? {} : { horizon }),
    ...(several ? { symbol: model.symbol } : {}),
    ...(isLatestWindow() ? { last_date: model.trained_on.last_date } : {}),
  });
}

function showCurl(request) {
  const quoted = request.replaceAll("'", "'\\''");
  const key = apiKey ? ` -H "Authorization: Bearer $FORECAST_API_KEY"` : "";
  byId("curl").textContent = `curl -s ${base}predict${key} -d '${quoted}'`;
}

function draw() {
  if (shown) drawChart(chart, ...shown);
}

async function forecast() {
  clearTimeout(timer);
  asked?.abort();
  const values = readValues();
  byId("curl").textContent = byId("count").textContent = "";
  if (!values) return;
  if (!values.length) {
    clear();
    byId("count").textContent = `Type, paste or upload at least ${model.sequence_length} values.`;
    return;
  }
  const used = Math.min(values.length, model.values_used);
  byId("count").textContent = `${values.length} values; the model uses at most the last ${model.values_used}.`;
  const request = body(values);
  showCurl(request);
  asked = new AbortController();
  let answer;
  try {
    answer = await ask("predict", { method: "POST", body: request, signal: asked.signal });
  } catch (error) {
    if (error.name !== "AbortError") problem(error.message, error.field);
    return;
  }
  problem("");
  const prices = values.slice(-used).map((value) => (Array.isArray(value) ? value[0] : value));
  const predictions = answer.predictions ?? [answer.prediction];
  const found = answer.intervals?.[0];
  const interval = found ? { level: found.level, lower: [found.lower].flat(), upper: [found.upper].flat() } : null;
  shown = [prices, predictions, interval];
  draw();
  const step = predictions.length - 1;
  const last = prices[prices.length - 1];
  const change = last ? ` (${predictions[step] >= last ? "+" : "−"}${Math.abs(100 * (predictions[step] / last - 1)).toFixed(2)} % from the last value, ${format(last)})` : "";
  const text =
    `${step ? `Value ${step + 1} steps ahead` : "Next value"}${answer.forecast_dates ? ` (${answer.forecast_dates[step]})` : ""}: ${format(predictions[step])}${change}` +
    (interval ? `; ${percent(interval.level).replace(".0", "")} interval ${format(interval.lower[step])} to ${format(interval.upper[step])}` : "") +
    (answer.warnings ? `. ${answer.warnings.join("; ")}` : "");
  byId("answer").textContent = text;
  chart.setAttribute("aria-label", `Line chart of the last ${used} values with the forecast. ${text}`);
}

function readValues() {
  try {
    return parseValues(byId("values").value, model.columns);
  } catch (error) {
    if (!(error instanceof ValuesError)) throw error;
    problem(error.message, "values");
    return null;
  }
}

function soon() {
  clearTimeout(timer);
  timer = setTimeout(forecast, PAUSE_MS);
}

async function upload(file) {
  if (!file) return;
  const text = await file.text();
  try {
    byId("values").value = showValues(parseValues(text, model.columns));
  } catch (error) {
    if (!(error instanceof ValuesError)) throw error;
    problem(`${file.name}: ${error.message}`, "values");
    return;
  }
  forecast();
}

// Show a symbol's model, or say why it cannot be had and stay with the old one.
async function chooseAnother(symbol) {
  try {
    await choose(symbol);
  } catch (error) {
    showSymbol(model.symbol);
    problem(error.message);
  }
}

async function choose(symbol) {
  choice += 1;
  const mine = choice;
  const found = await ask(`model?symbol=${encodeURIComponent(symbol)}`).catch((error) => {
    if (mine === choice) throw error;
  });
  if (mine !== choice) return;
  model = found;
  byId("main").hidden = false;
  showCard();
  showControls();
  restore();
  showLive(symbol, () => mine === choice);
}

async function start() {
  try {
    const { models, total, unusable } = await ask("models?limit=1");
    byId("key-form").hidden = true;
    if (!total) throw new Error(unusable[0].reason);
    several = total + unusable.length > 1;
    byId("symbol-line").hidden = !several;
    showSymbol(models[0].symbol);
    await choose(models[0].symbol);
  } catch (error) {
    byId("about").textContent = error.message;
  }
}

byId("values").addEventListener("input", soon);
for (const id of ["level", "horizon"]) byId(id).addEventListener("input", soon);
byId("restore").addEventListener("click", restore);
byId("file").addEventListener("change", async () => {
  await upload(byId("file").files[0]);
  byId("file").value = ""; // so that choosing the same file again, corrected, counts as a change
});
byId("values").addEventListener("dragover", (event) => event.preventDefault());
byId("values").addEventListener("drop", (event) => {
  if (!event.dataTransfer.files.length) return;
  event.preventDefault();
  upload(event.dataTransfer.files[0]);
});
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  apiKey = byId("key").value;
  start();
});
byId("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(byId("curl").textContent);
    byId("copied").textContent = "Copied";
  } catch {
    // Browsers allow this only on secure pages: elsewhere, select the text so that the keyboard can copy it.
    getSelection().selectAllChildren(byId("curl"));
    byId("copied").textContent = "Selected: press Ctrl+C";
  }
});
const find = (text, limit) => ask(`models?limit=${limit}&q=${encodeURIComponent(text)}`);
const showSymbol = findSymbols(byId("symbol"), byId("symbols"), byId("found"), find, chooseAnother);
new ResizeObserver(draw).observe(chart);
new ResizeObserver(drawLive).observe(byId("live-chart"));
start();
