// The published forecast of a symbol, earlier forecasts with their prices, and the history of the model.
"use strict";

const SETTLED_SESSIONS = 60;
const EVENTS_SHOWN = 20;
const EVENT_WORDS = { added: "added", promoted: "promoted", kept: "not promoted", waits: "waits", shadow: "runs as a shadow", rolled_back: "returned to" };

const minute = (time) => `${time.slice(0, 16).replace("T", " ")} UTC`;

// settled: earlier forecasts of one step with their prices, oldest first; steps: the published forecasts.
function drawSettled(place, settled, steps) {
  const bars = [...settled, ...steps];
  const all = bars.flatMap((one) => [one.intervals[0].lower, one.intervals[0].upper, one.realized ?? one.prediction]);
  const { svg, width, height, gutter, y } = startChart(place, all);
  const unit = (width - gutter - MARGIN.right) / bars.length;
  const x = (i) => gutter + unit * (i + 0.5);
  for (const [i, { intervals, realized, prediction }] of bars.entries()) {
    const [{ lower, upper }] = intervals;
    const wide = Math.max(2, 0.6 * unit);
    element("rect", { class: "band", x: x(i) - wide / 2, width: wide, y: y(upper), height: y(lower) - y(upper) }, svg);
    const kind = realized === undefined ? "point" : isInside(bars[i]) ? "came" : "missed";
    element("circle", { class: kind, cx: x(i), cy: y(realized ?? prediction), r: Math.min(4, Math.max(1.5, 0.3 * unit)) }, svg);
  }
  const labels = [[0, "start"], ...(bars.length > 1 ? [[bars.length - 1, "end"]] : [])];
  for (const [i, anchor] of labels) {
    const at = anchor === "start" ? gutter : width - MARGIN.right;
    element("text", { x: at, y: height - 8, "text-anchor": anchor }, svg).textContent = bars[i].target.slice(0, 16).replace("T", " ");
  }
  place.replaceChildren(svg);
}

function isInside({ intervals: [{ lower, upper }], realized }) {
  return lower <= realized && realized <= upper;
}

// Show a symbol's published forecast and its model's live record; `isLatest` tells whether the symbol is still chosen.
async function showLive(symbol, isLatest) {
  drawnLive = null;
  byId("live").hidden = byId("forecast-note").hidden = !model.published;
  byId("forecast-title").textContent = model.published ? "The model on a window of your choice" : "Forecast";
  if (!model.published) return;
  const known = model.latest_window && model.trained_on ? ` Until you change it, the window ends with the training prices, on ${model.trained_on.last_date}.` : "";
  byId("forecast-note").textContent = `This is not the published forecast.${known}`;
  byId("live-problem").textContent = "";
  try {
    const published = await ask(`forecast/${encodeURIComponent(symbol)}?sessions=${SETTLED_SESSIONS}&level=${PREFERRED_LEVEL}`);
    const { records } = await ask(`scores?name=${encodeURIComponent(published.name)}`);
    if (!isLatest()) return;
    showPublished(published);
    showRecord(records[0]);
  } catch (error) {
    if (isLatest()) byId("live-problem").textContent = error.message;
  }
}

function showPublished({ origin, issued_at: issued, age_sessions: age, steps, settled }) {
  const old = age ? `; ${age.toLocaleString("en")} ${age === 1 ? "session has" : "sessions have"} ended since then` : "";
  byId("published").textContent = `Published ${minute(issued)}, from prices up to ${origin}${old}.`;
  fill(
    byId("steps"),
    steps.map(({ target, prediction, intervals: [{ lower, upper }] }) => [target, format(prediction), `${format(lower)} to ${format(upper)}`]),
    ["For", "forecast", "90 % interval"],
  );
  drawnLive = [settled, steps];
  drawLive();
  const inside = settled.filter(isInside).length;
  byId("live-chart").setAttribute(
    "aria-label",
    `Intervals of the last ${settled.length} sessions with their prices, ${inside} of which were inside; then the published forecast`,
  );
}

function showRecord({ since, version, sessions, symbols, skill, coverage, alarms, history }) {
  const of = symbols > 1 ? ` of ${symbols.toLocaleString("en")} symbols` : "";
  byId("record-title").textContent =
    `${sessions.toLocaleString("en")} ${sessions === 1 ? "session" : "sessions"}${of}` + (since ? ` since version ${version} was promoted on ${since.slice(0, 10)}` : "");
  const ratios = skill
    .filter(({ horizon, ratio }) => horizon === 1 && ratio !== null)
    .map(({ baseline, ratio }) => [`CRPS divided by that of ${baseline}`, ratio.toFixed(3), "below 1 is better"]);
  const covered = coverage.map(({ level, coverage: share, lower, upper, inside, prices }) => [
    `prices inside the ${percent(level).replace(".0", "")} interval`,
    percent(share),
    `${inside.toLocaleString("en")} of ${prices.toLocaleString("en")}; the probability is between ${percent(lower)} and ${percent(upper)}`,
  ]);
  fill(byId("record"), [...ratios, ...covered]);
  // The text has the numbers of the day on which the alarm began.
  byId("alarms").replaceChildren(...alarms.map(({ at, details }) => cell("li", `Alarm since ${minute(at)}: ${details.text ?? details.alarm}`)));
  const rows = history
    .slice(0, EVENTS_SHOWN)
    .map(({ at, kind, version: of, details }) => [minute(at), EVENT_WORDS[kind] ?? kind, of ?? "", details.why ?? ""]);
  fill(byId("history"), rows, ["Time", "event", "version", "reason"], false);
}

let drawnLive = null; // arguments of the last drawing, to redraw at another size

function drawLive() {
  if (drawnLive) drawSettled(byId("live-chart"), ...drawnLive);
}
