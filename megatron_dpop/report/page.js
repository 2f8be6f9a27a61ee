"use strict";
// The page: reads the data, makes the charts, and lets the legends choose what they show.

{
  const { runs, charts: specs } = JSON.parse(document.getElementById("data").textContent);
  const hidden = new Set(); // "run 0", "split train"
  const isShown = (series) => !hidden.has(`run ${series.run}`) && !hidden.has(`split ${series.split}`);
  const charts = specs.map((spec) => new Chart(document.getElementById(spec.id), spec, runs, isShown));
  const hasJoined = specs.some((spec) => spec.series.some((one) => one.split === "validation" && isJoined(one)));
  const PRINTED_WIDTH = { large: 680, small: 320 }; // pixels, of a chart on a sheet of A4 or Letter

  function drawAll(widths) {
    const ends = specs.flatMap((spec) => spec.series.filter(isShown).flatMap((one) => [one.points[0][0], one.points.at(-1)[0]]));
    const first = Math.min(...ends);
    const range = [first, Math.max(first + 1, ...ends)];
    for (const chart of charts) chart.draw(range, widths && (chart.isLarge ? widths.large : widths.small));
  }

  function toggle(name) {
    if (!hidden.delete(name)) hidden.add(name);
    for (const button of document.querySelectorAll(`.legend button[data-series="${name}"]`)) {
      button.setAttribute("aria-pressed", String(!hidden.has(name)));
    }
    drawAll();
  }

  function addButton(legend, kind, name, label, colour) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = kind;
    button.dataset.series = name;
    button.setAttribute("aria-pressed", "true");
    if (colour) button.style.setProperty("--series", colour);
    button.append(makeKey(kind, label), label);
    button.addEventListener("click", () => toggle(name));
    legend.append(button);
  }

  function makeKey(kind, label) {
    const key = svg("svg", { class: "key", viewBox: "0 0 22 10", "aria-hidden": "true" });
    const line = { x1: 0, x2: 22, y1: 5, y2: 5, stroke: "currentColor", "stroke-width": kind === "run" ? 4 : 2 };
    if (label !== "validation") return svg("line", { ...line, "stroke-linecap": "round" }, key), key;
    if (hasJoined) svg("line", { ...line, "stroke-dasharray": "1 5", "stroke-linecap": "round" }, key);
    svg("circle", { cx: 11, cy: 5, r: 4, stroke: "currentColor", "stroke-width": 2, fill: "var(--surface)" }, key);
    return key;
  }

  const splits = ["train", "validation"].filter((split) => specs.some((s) => s.series.some((one) => one.split === split)));
  for (const legend of document.querySelectorAll(".legend")) {
    if (runs.length > 1) runs.forEach((run, at) => addButton(legend, "run", `run ${at}`, run.name, run.colour));
    if (splits.length > 1) splits.forEach((split) => addButton(legend, "split", `split ${split}`, split));
  }

  let width = 0;
  new ResizeObserver(() => {
    if (document.body.clientWidth === width) return;
    width = document.body.clientWidth;
    drawAll();
  }).observe(document.body);
  for (const details of document.querySelectorAll("details")) details.addEventListener("toggle", () => drawAll());

  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach((details) => (details.open = true));
    drawAll(PRINTED_WIDTH);
  });
  addEventListener("afterprint", () => {
    closed.forEach((details) => (details.open = false));
    drawAll();
  });
  drawAll();
}
