// Charts, as SVG.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { left: 8, right: 16, top: 14, bottom: 26 };

function element(name, attributes, parent) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  parent?.append(made);
  return made;
}

// The step between about `count` round numbers from `low` to `high`.
function tickStep(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
}

function ticks(low, high, step) {
  const found = [];
  for (let number = Math.ceil(low / step); number * step <= high; number += 1) found.push(number * step);
  return found;
}

// Six significant digits, or enough to show hundredths.
function format(value) {
  const whole = Math.floor(Math.log10(Math.abs(value) || 1)) + 1;
  return value.toLocaleString("en-US", { maximumSignificantDigits: Math.min(17, Math.max(6, whole + 2)) });
}

// Format the marks of an axis with as many decimals as their step needs.
function formatTicks(marks, step) {
  const decimals = Math.min(12, Math.max(0, Math.ceil(-Math.log10(step) - 1e-9)));
  const settings = { minimumFractionDigits: decimals, maximumFractionDigits: decimals };
  return marks.map((mark) => mark.toLocaleString("en-US", settings));
}

// Start a chart of some values: lines at round numbers, and the numbers in a gutter left of them.
function startChart(place, values) {
  const width = place.clientWidth;
  const height = place.clientHeight;
  let low = Math.min(...values);
  let high = Math.max(...values);
  const room = 0.06 * (high - low) || Math.abs(high) * 0.01 || 1;
  low -= room;
  high += room;

  const step = tickStep(low, high, Math.max(2, Math.floor(height / 60)));
  const marks = ticks(low, high, step);
  const names = formatTicks(marks, step);
  const gutter = MARGIN.left + 7 * Math.max(...names.map((name) => name.length)) + 6;
  const y = (value) => MARGIN.top + ((high - value) / (high - low)) * (height - MARGIN.top - MARGIN.bottom);

  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  for (const [i, mark] of marks.entries()) {
    element("line", { class: "grid", x1: gutter, x2: width - MARGIN.right, y1: y(mark), y2: y(mark) }, svg);
    element("text", { x: gutter - 6, y: y(mark) + 4, "text-anchor": "end" }, svg).textContent = names[i];
  }
  return { svg, width, height, gutter, y };
}

// prices: the window, oldest first; predictions: one per step; interval: {level, lower: […], upper: […]} or null.
function drawChart(place, prices, predictions, interval) {
  const known = prices.length;
  const all = [...prices, ...predictions, ...(interval ? [...interval.lower, ...interval.upper] : [])];
  const { svg, width, height, gutter, y } = startChart(place, all);
  // Stretch forecasts of few steps, so that they stay visible next to a long window.
  const ahead = Math.max(predictions.length, Math.ceil(known / 12));
  const stretch = predictions.length ? ahead / predictions.length : 1;
  const unit = (width - gutter - MARGIN.right) / Math.max(1, known - 1 + ahead);
  const x = (row) => gutter + unit * (row < known ? row : known - 1 + (row - known + 1) * stretch);
  const path = (points) => points.map(([row, value], i) => `${i ? "L" : "M"}${x(row).toFixed(1)},${y(value).toFixed(1)}`).join("");

  // Keep labels of the past away from the label of the last value.
  const labels = ticks(1 - known, 0, tickStep(1 - known, 0, Math.max(2, Math.floor(width / 140))))
    .filter((mark) => mark === 0 || -mark * unit > 40)
    .map((mark) => [known - 1 + mark, mark === 0 ? "last" : `−${-mark}`]);
  if (predictions.length) labels.push([known - 1 + predictions.length, `+${predictions.length}`]);
  for (const [row, label] of labels) {
    element("text", { x: x(row), y: height - 8, "text-anchor": "middle" }, svg).textContent = label;
  }

  if (predictions.length) {
    const last = prices[known - 1];
    const steps = predictions.map((value, i) => [known + i, value]);
    if (interval) {
      const upper = interval.upper.map((value, i) => [known + i, value]);
      const lower = interval.lower.map((value, i) => [known + i, value]).reverse();
      element("path", { class: "band", d: `${path([[known - 1, last], ...upper, ...lower])}Z` }, svg);
    }
    element("path", { class: "persistence", d: path([[known - 1, last], [known - 1 + predictions.length, last]]) }, svg);
    element("path", { class: "forecast", d: path([[known - 1, last], ...steps]) }, svg);
    const [end, value] = steps[steps.length - 1];
    element("circle", { class: "point", cx: x(end), cy: y(value), r: 4 }, svg);
  }
  element("path", { class: "window", d: path(prices.map((value, i) => [i, value])) }, svg);
  place.replaceChildren(svg);
}
