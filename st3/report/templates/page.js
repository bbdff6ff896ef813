"use strict";
const charts = JSON.parse(document.getElementById("charts").textContent);
const phone = window.innerWidth < 600;

function draw(place) {
  const { title, data, layout } = charts[place.dataset.chart];
  const axis = { gridcolor: "#e5e5e5", zerolinecolor: "#e5e5e5", linecolor: "#999" };
  // The legend has as many lines as its names need, below the axis. Groups of traces stand as close as they can, single
  // traces in columns.
  const named = data.length > 1 ? data.filter((each) => each.name && each.showlegend !== false) : [];
  const widths = named.map((each) => 46 + 6.2 * each.name.length);
  const widest = Math.max(...widths);
  let lines = 0, left = 0;
  named.forEach((each, i) => {
    const width = each.legendgroup ? widths[i] : widest;
    if (width > left) [lines, left] = [lines + 1, place.clientWidth - 70];
    left -= width;
  });
  const legend = lines ? 10 + 19 * lines : 0;
  const full = {
    font: { family: "system-ui, sans-serif", size: 12, color: "#222" },
    hovermode: "closest",
    hoverlabel: { align: "left" },
    legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0, font: { size: 11 }, tracegroupgap: 0, maxheight: legend + 10 },
    dragmode: phone ? false : "zoom",
    ...layout,
    margin: { l: 54, r: 16, t: 12, b: 50 + legend, ...layout.margin },
    height: (layout.height ?? (phone ? 340 : 400)) + legend,
  };
  for (const name of ["xaxis", "yaxis", "yaxis2"]) if (layout[name]) full[name] = { ...axis, ...layout[name] };
  if (phone && layout.yaxis?.ticktext) { // names above their rows instead of beside them
    const above = { x: 0, xref: "paper", xanchor: "left", yshift: 11, showarrow: false, font: { size: 11 } };
    const places = layout.yaxis.tickvals.map((y, row) => ({ ...above, y, text: layout.yaxis.ticktext[row] }));
    full.annotations = [...(layout.annotations ?? []), ...places];
    full.yaxis.showticklabels = false;
    full.margin.l = 12;
    full.height *= 1.3;
  }
  if (layout.yaxis2) full.margin.r = 54;
  place.dataset.drawn = "yes";
  if (title) {
    const heading = document.createElement("h3");
    heading.textContent = title;
    place.before(heading);
  }
  Plotly.newPlot(place, data, full, { responsive: true, displaylogo: false, displayModeBar: phone ? false : "hover" });
}

// A chart is drawn when it can be seen for the first time: in a section that is closed, when it is opened.
function drawOpen(root) {
  for (const place of root.querySelectorAll("[data-chart]:not([data-drawn])"))
    if (!place.closest("details:not([open])")) draw(place);
}

for (const section of document.querySelectorAll("details")) section.addEventListener("toggle", () => drawOpen(section));

function openLinked() {
  const section = location.hash && document.getElementById(location.hash.slice(1));
  if (section && section.tagName === "DETAILS") {
    section.open = true;
    section.scrollIntoView();
  }
}
window.addEventListener("hashchange", openLinked);
for (const link of document.querySelectorAll('a[href^="#"]'))
  link.addEventListener("click", () => setTimeout(openLinked)); // also where the address stays the same

const table = document.getElementById("rows");
if (table) {
  const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
  const filter = document.getElementById("filter"), shown = document.getElementById("shown");

  function value(row, column) {
    const text = row.cells[column].textContent.trim();
    const number = text === "best" ? 0 : parseFloat(text.replace("−", "-"));
    return text === "–" ? null : Number.isNaN(number) ? text : number;
  }

  function compare(a, b) {
    return typeof a === typeof b && typeof a === "number" ? a - b : String(a).localeCompare(String(b));
  }

  heads.forEach((head, column) => head.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") !== "descending"; // the highest first, then the lowest
    for (const each of heads) each.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const keyed = rows.map((row) => [value(row, column), row]);
    const full = keyed.filter(([key]) => key !== null).sort(([a], [b]) => (down ? compare(b, a) : compare(a, b)));
    body.append(...[...full, ...keyed.filter(([key]) => key === null)].map(([, row]) => row)); // the empty ones last
  }));

  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
    const count = rows.filter((row) => !row.hidden).length;
    shown.textContent = words.length ? `${count} of ${rows.length} rows` : "";
  });
}

drawOpen(document);
openLinked();
