// Pictures of the last 15 minutes or 24 hours, with the marks of restarts.

import { bytes, clock, count, h, span } from "./dom.js";
import uPlot from "./uplot.js";

export const title = "Pictures";

const PICTURES = [
  { title: "Deliveries a second", unit: count, lines: [["deliveries", "deliveries"]] },
  { title: "From Redis to the sockets", unit: span, lines: [["lag_p50", "p50"], ["lag_p99", "p99"]] },
  { title: "HTTP requests a second, without the operator's", unit: count, lines: [["requests", "requests"]], routes: "rate" },
  { title: "Duration of requests", unit: span, lines: [["request_p50", "p50"], ["request_p99", "p99"]], routes: "p99" },
  { title: "Lateness of the event loop", unit: span, lines: [["loop_lag_p99", "p99"]] },
  { title: "Memory", unit: bytes, lines: [["memory", "resident"]] },
  { title: "Connections", unit: count, lines: [["connections", "connections"]] },
  { title: "Waiting for clients", unit: bytes, lines: [["backlog", "bytes"]] },
];
const ROUTES = 4; // routes that are drawn beside the sum, those with the largest values

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const colours = () => ["--line1", "--line2", "--line3", "--line4", "--line5", "--line6"].map(style);

/** Draw a line for each restart, below the curves. */
function drawMarks(marks) {
  return (plot) => {
    const { ctx, bbox } = plot;
    const [from, to] = [plot.scales.x.min, plot.scales.x.max];
    ctx.save();
    ctx.strokeStyle = style("--bad");
    ctx.setLineDash([4, 4]);
    for (const mark of marks.now) {
      if (mark.at < from || mark.at > to) continue;
      const x = Math.round(plot.valToPos(mark.at, "x", true));
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
    }
    ctx.restore();
  };
}

function linesOf(picture, data) {
  const lines = picture.lines.map(([name, label]) => [label, data.series[name]]);
  if (!picture.routes) return lines;
  const largest = (values) => Math.max(0, ...values.filter((value) => value !== null));
  const routes = Object.entries(data.routes)
    .map(([name, route]) => [name, route[picture.routes]])
    .sort((one, other) => largest(other[1]) - largest(one[1]))
    .slice(0, ROUTES);
  return [...lines, ...routes];
}

class Drawing {
  constructor(parent, picture, marks) {
    this.picture = picture;
    this.marks = marks;
    this.place = h("div", { class: "plot" });
    this.words = h("p", { class: "note" });
    this.figure = h("figure", { class: "card picture" }, h("figcaption", {}, picture.title), this.place, this.words);
    parent.append(this.figure);
    this.shown = "";
  }

  draw(data, range) {
    const lines = linesOf(this.picture, data);
    const names = JSON.stringify(lines.map(([label]) => label));
    const values = [data.times, ...lines.map(([, points]) => points)];
    this.range = range;
    if (this.plot && names === this.shown) this.plot.setData(values);
    else this.build(lines, values);
    this.shown = names;
    const latest = lines
      .slice(0, this.picture.lines.length)
      .map(([label, points]) => [label, points.findLast((point) => point !== null)])
      .filter(([, point]) => point !== undefined)
      .map(([label, point]) => (lines.length > 1 ? `${label} ${this.picture.unit(point)}` : this.picture.unit(point)));
    this.words.textContent = latest.length ? `Now ${latest.join(", ")}` : "Nothing yet";
  }

  build(lines, values) {
    this.plot?.destroy();
    const [grid, text] = [style("--rule"), style("--soft")];
    const axis = { stroke: text, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid, width: 1 } };
    const pens = colours();
    this.plot = new uPlot(
      {
        width: this.place.clientWidth || 300,
        height: 170,
        cursor: { points: { size: 6 }, drag: { x: false, y: false } },
        legend: { show: lines.length > 1, live: true },
        scales: { x: { time: true, range: () => this.range }, y: { range: (_plot, _low, high) => [0, (high || 1) * 1.1] } },
        axes: [{ ...axis, values: (_plot, ticks) => ticks.map((tick) => clock(tick).slice(0, 5)) }, { ...axis, size: 76, values: (_plot, ticks) => ticks.map((tick) => this.picture.unit(tick)) }],
        series: [
          { value: (_plot, at) => (at === null ? "–" : clock(at)) },
          ...lines.map(([label], index) => ({
            label,
            stroke: pens[index % pens.length],
            width: 1.5,
            points: { show: false },
            value: (_plot, value) => (value === null || value === undefined ? "–" : this.picture.unit(value)),
          })),
        ],
        hooks: { drawAxes: [drawMarks(this.marks)] },
      },
      values,
      this.place,
    );
  }

  resize() {
    this.plot?.setSize({ width: this.place.clientWidth, height: 170 });
  }
}

/** Add the points of an answer to those that are known, and keep as many as the server does. */
function joined(known, answer) {
  const { picture } = answer;
  if (!known || answer.from === 0) return picture;
  const add = (old = [], fresh) => [...old, ...fresh].slice(-picture.length);
  const merge = (old, fresh, length) =>
    Object.fromEntries(
      Object.keys({ ...old, ...fresh }).map((name) => [
        name,
        add(old[name] ?? Array(length).fill(null), fresh[name] ?? Array(picture.times.length).fill(null)),
      ]),
    );
  const routes = {};
  for (const [name, route] of Object.entries(picture.routes)) {
    const before = known.routes[name] ?? { rate: Array(known.times.length).fill(null), p99: Array(known.times.length).fill(null) };
    routes[name] = { rate: add(before.rate, route.rate), p99: add(before.p99, route.p99) };
  }
  return {
    ...picture,
    times: add(known.times, picture.times),
    series: merge(known.series, picture.series, known.times.length),
    routes,
  };
}

export function open(root, { openStream }) {
  const marks = { now: [] };
  let known = null;
  let span_ = "15m";
  const choices = ["15m", "24h"].map((name) =>
    h(
      "button",
      {
        type: "button",
        class: "quiet",
        "aria-pressed": String(name === span_),
        onclick: () => {
          span_ = name;
          known = null;
          for (const [index, choice] of ["15m", "24h"].entries())
            choices[index].setAttribute("aria-pressed", String(choice === span_));
          openStream("pictures", { span: span_ }, 10_000);
        },
      },
      name === "15m" ? "15 minutes" : "24 hours",
    ),
  );
  const grid = h("div", { class: "pictures" });
  const restarts = h("p", { class: "note" });
  root.append(h("div", { class: "line" }, choices), restarts, grid);
  const drawings = PICTURES.map((picture) => new Drawing(grid, picture, marks));
  const observer = new ResizeObserver(() => drawings.forEach((drawing) => drawing.resize()));
  observer.observe(grid);
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  const repaint = () => drawings.forEach((drawing) => (drawing.shown = ""));
  scheme.addEventListener("change", repaint);
  openStream("pictures", { span: span_ }, 10_000);
  return {
    take(data) {
      if (!data.picture || data.span !== span_) return;
      known = joined(known, data);
      marks.now = data.marks;
      const end = data.now;
      const range = [end - known.step * known.length, end];
      for (const drawing of drawings) drawing.draw(known, range);
      const last = data.marks.at(-1);
      restarts.textContent = last
        ? `Dashed lines are restarts; the last: ${last.child} at ${clock(last.at)}, ${last.cause}`
        : "No restart so far; restarts are drawn as dashed lines.";
    },
    close() {
      observer.disconnect();
      scheme.removeEventListener("change", repaint);
      for (const drawing of drawings) drawing.plot?.destroy();
    },
  };
}
