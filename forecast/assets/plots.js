// Draws the plots of a page in the colours of its style sheet; redraws them when the reader's colour scheme changes.
"use strict";

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function template() {
  const axis = {
    gridcolor: colour("--line"),
    linecolor: colour("--line"),
    zerolinecolor: colour("--line"),
    tickcolor: colour("--line"),
    automargin: true,
  };
  const scene = { ...axis, backgroundcolor: "rgba(0,0,0,0)", showbackground: false };
  const layout = {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colour("--ink"), family: "system-ui, sans-serif", size: 12 },
    colorway: [colour("--forecast"), colour("--persistence"), "#10a37f", "#8b5cf6", "#d6457b", "#7c8794"],
    xaxis: axis,
    yaxis: axis,
    scene: { xaxis: scene, yaxis: scene, zaxis: scene },
    hoverlabel: { font: { family: "system-ui, sans-serif" } },
    legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom" },
    margin: { l: 48, r: 12, t: 48, b: 40 },
  };
  return { layout };
}

// A trace's "meta" names its colour among those of the page.
function coloured(trace) {
  if (typeof trace.meta !== "string") return trace;
  const own = colour(`--${trace.meta}`);
  if (trace.meta === "band") return { ...trace, fillcolor: own };
  if (trace.type === "parcoords") {
    const colorscale = [[0, colour("--soft")], [1, own]];
    return { ...trace, line: { ...trace.line, colorscale } };
  }
  return { ...trace, line: { ...trace.line, color: own }, marker: { ...trace.marker, color: own } };
}

function draw() {
  const look = template();
  for (const place of document.querySelectorAll(".plot")) {
    const figure = JSON.parse(place.nextElementSibling.textContent);
    const layout = { ...figure.layout, template: look };
    Plotly.react(place, figure.data.map(coloured), layout, { responsive: true, displaylogo: false });
  }
}

draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
