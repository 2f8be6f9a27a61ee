"use strict";
// One chart: a picture of its width, drawn anew when that or what is shown changes; values under the pointer.

const SVG = "http://www.w3.org/2000/svg";
const LABEL_HEIGHT = 16;
const MOST_RINGS = 40;
const FEWEST_JOINED = 5; // validation points that a line joins: between fewer, it reads as a trend that nobody measured
const pen = document.createElement("canvas").getContext("2d");

function svg(name, attributes, parent, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  if (parent) parent.append(element);
  return element;
}

function textWidth(text) {
  pen.font = `500 12px ${getComputedStyle(document.body).fontFamily}`;
  return pen.measureText(text).width;
}

class Chart {
  /** `spec`: {title, unit, style, zero, log, series: [{run, split, points: [[step, value]], smooth}]}. */
  constructor(figure, spec, runs, isShown) {
    Object.assign(this, { spec, runs, isShown });
    this.isLarge = figure.classList.contains("large");
    this.plot = figure.querySelector(".plot");
    this.plot.tabIndex = 0;
    this.plot.setAttribute("role", "group");
    this.plot.setAttribute("aria-label", `${spec.title}: arrow keys read the values`);
    this.plot.addEventListener("pointermove", (event) => this.pointAt(event.clientX));
    this.plot.addEventListener("pointerdown", (event) => this.pointAt(event.clientX));
    this.plot.addEventListener("pointerleave", (event) => event.pointerType === "touch" || this.leave());
    document.addEventListener("pointerdown", (event) => this.plot.contains(event.target) || this.leave());
    this.plot.addEventListener("blur", () => this.leave());
    this.plot.addEventListener("keydown", (event) => this.press(event));
  }

  /** `stepRange`: [first, last] of the page's charts, which share it; `width` in pixels. */
  draw(stepRange, width = this.plot.clientWidth) {
    if (!width) return; // a browser that does not lay out a closed <details>
    this.leave();
    this.shown = this.spec.series.filter((series) => this.isShown(series));
    this.size = { width, height: this.isLarge ? Math.max(260, Math.min(400, width * 0.42)) : 210 };
    const { height } = this.size;
    this.root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": this.summary() });
    const finite = this.shown.flatMap((series) => series.points.filter((point) => point[1] !== null));
    if (finite.length) {
      this.scale(finite, stepRange);
      this.drawAxes();
      this.root.classList.toggle("crowded", this.shown.length > 4);
      for (const series of this.shown) if (series.smooth) this.drawLine(series, series.points, "raw");
      this.shown.forEach((series) => this.drawSeries(series));
      this.drawLabels();
    } else {
      const text = this.shown.length ? "No finite values" : "Nothing selected";
      svg("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, this.root, text);
      this.steps = [];
    }
    this.plot.replaceChildren(this.root);
  }

  summary() {
    const ends = this.shown.map((series) => {
      const end = lastFinite(series.points);
      return end ? `${this.runs[series.run].name} ${series.split} ends at ${this.write(end[1])}` : "";
    });
    return `${this.spec.title}. ${ends.filter(Boolean).join("; ")}`;
  }

  scale(points, [firstStep, lastStep]) {
    const { style, log, zero } = this.spec;
    const { width, height } = this.size;
    this.steps = [...new Set(points.map((point) => point[0]))].sort((a, b) => a - b);
    const values = points.map((point) => point[1]);
    const [low, high] = extent(values, { zero: zero !== null, log, percent: style === "percent" });
    const count = this.isLarge ? 7 : 4;
    if (log) {
      this.ticks = logTicks(low, high, count).map((value) => [value, formatLogTick(value)]);
    } else {
      const unit = style === "bytes" ? GIBIBYTE : 1;
      const { step, values: at } = linearTicks(low / unit, high / unit, count);
      this.ticks = at.map((value) => [value * unit, formatTick(value * unit, step * unit, style)]);
    }
    this.labels = this.findLabels();
    const left = 10 + Math.max(...this.ticks.map((tick) => textWidth(tick[1])), 12);
    const right = this.labels.length ? 28 + Math.max(...this.labels.map((label) => textWidth(label.text))) : 10;
    this.box = { left, right: width - Math.min(right, width * 0.45), top: 10, bottom: height - 26 };
    const { box } = this;
    this.x = (step) => box.left + ((step - firstStep) / (lastStep - firstStep)) * (box.right - box.left);
    const f = log ? Math.log : (value) => value;
    this.y = (value) => box.bottom - ((f(value) - f(low)) / (f(high) - f(low))) * (box.bottom - box.top);
    const room = Math.max(2, Math.floor((box.right - box.left) / 80));
    this.stepTicks = linearTicks(firstStep, lastStep, room, 1).values;
  }

  drawAxes() {
    const { left, right, bottom } = this.box;
    for (const [value, text] of this.ticks) {
      const y = this.y(value);
      svg("line", { class: "grid", x1: left, x2: right, y1: y, y2: y }, this.root);
      svg("text", { x: left - 8, y: y + 4, "text-anchor": "end" }, this.root, text);
    }
    if (this.spec.zero !== null) {
      svg("line", { class: "zero", x1: left, x2: right, y1: this.y(0), y2: this.y(0) }, this.root);
    }
    this.stepTicks.forEach((step, at) => {
      const text = (at === 0 ? "step " : "") + formatStep(step);
      svg("text", { x: this.x(step), y: bottom + 20, "text-anchor": at === 0 ? "start" : "middle" }, this.root, text);
    });
  }

  drawSeries(series) {
    if (isJoined(series)) this.drawLine(series, series.smooth || series.points, series.split);
    const finite = series.points.filter((point) => point[1] !== null);
    const dots = { validation: finite.length <= MOST_RINGS && "ring", train: finite.length === 1 && "disc" };
    const name = dots[series.split];
    const style = `--series: ${this.runs[series.run].colour}`;
    for (const [step, value] of name ? finite : []) {
      svg("circle", { cx: this.x(step), cy: this.y(value), r: 4, class: name, style }, this.root);
    }
  }

  drawLine(series, points, name) {
    svg("path", { d: this.path(points), class: name, style: `--series: ${this.runs[series.run].colour}` }, this.root);
  }

  path(points) {
    let isDown = false;
    return points
      .map(([step, value]) => {
        if (value === null) return (isDown = false) || "";
        const command = `${isDown ? "L" : "M"}${this.x(step).toFixed(1)} ${this.y(value).toFixed(1)}`;
        isDown = true;
        return command;
      })
      .join("");
  }

  /** One label a run, at the end of its line that goes furthest; and the zero line's. */
  findLabels() {
    const labels = [];
    this.runs.forEach((run, index) => {
      const own = this.shown.filter((series) => series.run === index);
      const ends = own.map((series) => lastFinite(series.smooth || series.points)).filter(Boolean);
      const end = ends.reduce((best, one) => (best && best[0] > one[0] ? best : one), undefined);
      const longest = this.size.width < 420 ? 8 : this.isLarge ? 24 : 14;
      const name = run.name.length > longest ? "…" + run.name.slice(1 - longest) : run.name;
      const words = [this.runs.length > 1 && name, this.isLarge && end && this.write(end[1])].filter(Boolean);
      if (end && words.length) labels.push({ text: words.join(" "), value: end[1], run });
    });
    if (labels.length > (this.isLarge ? 8 : 5)) return [];
    if (this.spec.zero) labels.push({ text: this.spec.zero, value: 0, run: null });
    return labels;
  }

  drawLabels() {
    const { right, top, bottom } = this.box;
    const sorted = this.labels.map((label) => ({ ...label, at: this.y(label.value) })).sort((a, b) => a.at - b.at);
    sorted.forEach((label, index) => {
      if (index) label.at = Math.max(label.at, sorted[index - 1].at + LABEL_HEIGHT);
    });
    let floor = bottom + 4;
    for (const label of sorted.toReversed()) {
      label.at = Math.max(top, Math.min(label.at, floor));
      floor = label.at - LABEL_HEIGHT;
    }
    for (const { text, run, at } of sorted) {
      const style = run ? `--series: ${run.colour}` : "";
      if (run) svg("circle", { class: "disc", cx: right + 15, cy: at, r: 4.5, style }, this.root);
      svg("text", { class: run ? "label" : "", x: right + (run ? 23 : 10), y: at + 4 }, this.root, text);
    }
  }

  pointAt(clientX) {
    const bounds = this.root.getBoundingClientRect();
    const at = ((clientX - bounds.left) * this.size.width) / bounds.width;
    this.show(nearest(this.steps, (step) => Math.abs(this.x(step) - at)));
  }

  press(event) {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") this.leave();
    if (!move || !this.steps.length) return;
    event.preventDefault();
    const last = this.steps.length - 1;
    const from = this.step === undefined ? (move > 0 ? -1 : last + 1) : this.steps.indexOf(this.step);
    this.show(this.steps[Math.max(0, Math.min(last, from + move))]);
  }

  leave() {
    this.step = undefined;
    this.cross?.remove();
    this.tooltip?.remove();
  }

  show(step) {
    this.leave();
    if (step === undefined) return;
    this.step = step;
    const { top, bottom } = this.box;
    const x = this.x(step);
    this.cross = svg("g", {}, this.root);
    svg("line", { class: "cross", x1: x, x2: x, y1: top, y2: bottom }, this.cross);
    const rows = [];
    for (const series of this.shown) {
      const point = nearest(series.points, (p) => Math.abs(p[0] - step));
      if (Math.abs(this.x(point[0]) - x) > 2) continue; // thinned lines need not have the very same steps
      const run = this.runs[series.run];
      rows.push([series, point]);
      if (point[1] === null) continue;
      const style = `--series: ${run.colour}`;
      svg("circle", { class: "disc", cx: this.x(point[0]), cy: this.y(point[1]), r: 5, style }, this.cross);
    }
    this.tooltip = this.makeTooltip(step, rows);
    this.plot.append(this.tooltip);
    const scale = this.plot.clientWidth / this.size.width;
    const { offsetWidth, offsetHeight } = this.tooltip;
    const isRoomRight = x * scale + 14 + offsetWidth <= this.plot.clientWidth;
    const left = isRoomRight ? x * scale + 14 : Math.max(0, x * scale - 14 - offsetWidth);
    const first = rows.find(([, point]) => point[1] !== null);
    const y = first ? this.y(first[1][1]) : top;
    const upper = Math.max(0, Math.min(y * scale - offsetHeight / 2, this.size.height * scale - offsetHeight));
    this.tooltip.style.transform = `translate(${left}px, ${upper}px)`;
  }

  makeTooltip(step, rows) {
    const box = document.createElement("div");
    box.className = "tooltip";
    box.setAttribute("role", "status");
    const table = document.createElement("table");
    for (const [series, point] of rows) {
      const row = table.insertRow();
      const head = row.appendChild(document.createElement("th"));
      const dot = head.appendChild(document.createElement("i"));
      dot.className = "dot";
      dot.style.setProperty("--series", this.runs[series.run].colour);
      head.append(this.runs[series.run].name);
      head.appendChild(document.createElement("small")).textContent = series.split;
      row.insertCell().textContent = this.write(point[1]);
    }
    box.append(`Step ${step}`, table);
    return box;
  }

  write(value) {
    if (value === null) return "not a number";
    const isAmount = this.spec.unit && this.spec.unit !== "nats";
    return formatValue(value, this.spec.style, this.spec.zero === "reference") + (isAmount ? ` ${this.spec.unit}` : "");
  }
}

function isJoined(series) {
  return series.split === "train" || series.points.length >= FEWEST_JOINED;
}

function lastFinite(points) {
  return points.findLast((point) => point[1] !== null);
}

function nearest(items, distance) {
  let best;
  let least = Infinity;
  for (const item of items) {
    const far = distance(item);
    if (far < least) [best, least] = [item, far];
  }
  return best;
}
