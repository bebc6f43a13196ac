"""What the page does: draw each figure in the colours of day or night, and move them together."""

SCRIPT = """
"use strict";
const plots = [];
const dark = matchMedia("(prefers-color-scheme: dark)");
const settings = {displayModeBar: false, responsive: true};

function template() {
  const style = getComputedStyle(document.documentElement);
  const colour = name => style.getPropertyValue(name).trim();
  const axis = {gridcolor: colour("--line"), linecolor: colour("--line"), zeroline: false,
                ticks: "", title: {font: {size: 12}, standoff: 8}};
  return {layout: {
    font: {color: colour("--text"), family: "system-ui, sans-serif", size: 12},
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", xaxis: axis, yaxis: axis,
    hoverlabel: {bgcolor: colour("--card"), bordercolor: colour("--line"),
                 font: {color: colour("--text")}, align: "left", namelength: -1},
    annotationdefaults: {font: {color: colour("--quiet"), size: 11}},
  }};
}

function moveTogether(range, origin) {
  for (const plot of plots) {
    if (plot === origin || (plot.layout.meta || {}).over !== "windows") continue;
    const shown = plot.layout.xaxis.range.map(String);
    if (shown.join() !== range.map(String).join()) Plotly.relayout(plot, {"xaxis.range": range});
  }
}

function press(button) {
  for (const other of document.querySelectorAll(".ranges button")) {
    other.setAttribute("aria-pressed", String(other === button));
  }
}

// On a phone a figure has the width for itself, and a finger moves the page.
const NARROW = 600, MARGIN = 62, LETTERS = 9;
function fit(figure, width) {
  if (matchMedia("(pointer: coarse)").matches) figure.layout.dragmode = false;
  if (width >= NARROW) return 0;
  Object.assign(figure.layout.margin, {l: MARGIN, r: 8});
  for (const name of Object.keys(figure.layout).filter(name => name.startsWith("yaxis"))) {
    const axis = figure.layout[name];
    axis.tickfont = {size: 10};
    if (axis.ticktext) {
      const long = text => text.length > LETTERS && !text.includes("&");
      const cut = text => long(text) ? text.slice(0, LETTERS - 1) + "\u2026" : text;
      axis.ticktext = axis.ticktext.map(cut);
    }
  }
  figure.layout.legend = {...figure.layout.legend, font: {size: 10}};
  figure.layout.xaxis.nticks = 4;
  return 22 * figure.data.filter(trace => trace.name && trace.showlegend !== false).length;
}

function draw(place) {
  const figure = JSON.parse(place.querySelector("script").textContent);
  figure.layout.template = template();
  // The legend of a narrow figure has a line for each trace, below it.
  place.style.height = place.offsetHeight + fit(figure, place.clientWidth) + "px";
  Plotly.newPlot(place, figure.data, figure.layout, settings);
  const whole = figure.layout.xaxis.range;
  place.on("plotly_relayout", change => {
    if (change["xaxis.autorange"]) {
      Plotly.relayout(place, {"xaxis.range": whole});
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
  for (const plot of plots) {
    Plotly.react(plot, plot.data, {...plot.layout, template: template()}, settings);
  }
});
"""
