"use strict";
// Draw each figure in the colours of day or night, and move those over windows together.
const plots = [];
const dark = matchMedia("(prefers-color-scheme: dark)");
const settings = { displayModeBar: false, responsive: true };

function template() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const axis = { gridcolor: colour("--line"), linecolor: colour("--line"), zeroline: false, ticks: "outside", ticklen: 5, tickcolor: "rgba(0,0,0,0)", title: { font: { size: 12 }, standoff: 8 } };
  return { layout: {
    font: { color: colour("--text"), family: "system-ui, sans-serif", size: 12 },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", xaxis: axis, yaxis: axis,
    hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--text") }, align: "left", namelength: -1 },
    annotationdefaults: { font: { color: colour("--quiet"), size: 11 } },
  } };
}

function moveTogether(range, origin) {
  for (const plot of plots) {
    if (plot === origin || (plot.layout.meta || {}).over !== "windows") continue;
    const shown = plot.layout.xaxis.range.map(String);
    if (shown.join() !== range.map(String).join()) Plotly.relayout(plot, { "xaxis.range": range });
  }
}

function press(button) {
  for (const other of document.querySelectorAll(".ranges button")) {
    other.setAttribute("aria-pressed", String(other === button));
  }
}

// On a phone a figure has the width for itself, and a finger moves the page.
const NARROW = 600, MARGIN = 48, NAMES_MARGIN = 122, LEGEND_LINE = 20;
function fit(layout, width, entries) {
  if (matchMedia("(pointer: coarse)").matches) layout.dragmode = false;
  if (width >= NARROW) return;
  Object.assign(layout.margin, { l: layout.yaxis.ticktext ? NAMES_MARGIN : MARGIN, r: 8 });
  for (const name of Object.keys(layout).filter((name) => name.startsWith("yaxis"))) {
    layout[name].tickfont = { size: 10 };
  }
  layout.xaxis.nticks = 4;
  if (layout.legend) {
    const more = LEGEND_LINE * Math.max(0, Math.ceil(entries / 2) - 1);
    Object.assign(layout.legend, { font: { size: 10 }, entrywidth: 0.5, entrywidthmode: "fraction" });
    layout.margin.b += more;
    layout.height += more;
  }
}

function draw(place) {
  const { data, layout } = JSON.parse(place.querySelector("script").textContent);
  layout.template = template();
  fit(layout, place.clientWidth, data.filter((trace) => trace.name && trace.showlegend !== false).length);
  Plotly.newPlot(place, data, layout, settings);
  const whole = layout.xaxis.range;
  place.on("plotly_relayout", (change) => {
    if (change["xaxis.autorange"] && whole) {
      Plotly.relayout(place, { "xaxis.range": whole });
    } else if ("xaxis.range[0]" in change) {
      press(null);
      moveTogether([change["xaxis.range[0]"], change["xaxis.range[1]"]], place);
    } else if ("xaxis.range" in change) {
      moveTogether(change["xaxis.range"], place);
    }
  });
  plots.push(place);
}

document.querySelectorAll(".plot").forEach(draw);
for (const button of document.querySelectorAll(".ranges button")) {
  button.addEventListener("click", () => {
    press(button);
    moveTogether([button.dataset.from, button.dataset.until], null);
  });
}
dark.addEventListener("change", () => {
  for (const plot of plots) Plotly.react(plot, plot.data, { ...plot.layout, template: template() }, settings);
});
