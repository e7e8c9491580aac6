// The map: a still picture of the city below, and vehicles that move between the last two messages.
import { connect } from "/static/tangram.js";

const KINDS = ["bus", "van", "taxi"];
const RENEW = 3000; // milliseconds; the server forgets a selection that is not renewed
const JUMP = 400; // metres: a vehicle that is so far away has not driven there
const find = (selector) => document.querySelector(selector);
const canvas = find("canvas");
const client = connect();
const fleet = client.channel("fleet", { recover: true }); // the newest positions come with the join

let city = null;
let named = [];
let before = [];
let now = [];
let arrived = 0;
let period = 1;
let marked = new Set();
let selected = null;
let trail = [];
let still = null;
let colours = {};

const get = async (path) => {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
};

// -- messages ---------------------------------------------------------------------------------------------------------

fleet.on("positions", (message) => {
  before = now.length === message.places.length ? placesNow() : message.places;
  now = message.places;
  period = message.period;
  arrived = performance.now();
  if (selected !== null) trail.push(...now.slice(2 * selected, 2 * selected + 2));
});

fleet.on("followed", ({ vehicles }) => {
  marked = new Set(vehicles);
});

fleet.state.subscribe(({ name, reason }) => {
  find("#state").textContent = name === "joined" ? "live" : (reason ?? name);
  find("#state").classList.toggle("live", name === "joined");
});

async function select(vehicle) {
  if (vehicle !== selected) trail = [];
  selected = vehicle;
  try {
    const details = await fleet.push("select", { vehicle });
    if (selected === vehicle) show(details);
  } catch (error) {
    find("#hint").textContent = error.message;
  }
}

function show({ name, speed, driven, followers, trail: seen }) {
  trail = seen;
  find("h2").textContent = name;
  find("#speed").textContent = `${speed.toFixed(0)} km/h`;
  find("#driven").textContent = `${driven.toFixed(1)} km`;
  find("#followers").textContent = followers === 1 ? "this page" : `${followers} pages`;
  find("#details").hidden = false;
  find("#hint").hidden = true;
}

function release() {
  selected = null;
  trail = [];
  find("#details").hidden = true;
  find("#hint").hidden = false;
  fleet.push("release", {}).catch(() => {}); // the server forgets it anyway
}

setInterval(() => {
  if (selected !== null && fleet.state.value.name === "joined") select(selected);
}, RENEW);

// -- drawing ----------------------------------------------------------------------------------------------------------

function view() {
  const { width, height } = canvas;
  const scale = Math.min(width, height) / city.size;
  return { scale, left: (width - city.size * scale) / 2, top: (height - city.size * scale) / 2 };
}

function drawStill() {
  const style = getComputedStyle(document.documentElement);
  const names = ["ground", "grid", "water", "shore", "street", "kerb", "mark", "ink", ...KINDS];
  colours = Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  const density = window.devicePixelRatio || 1;
  canvas.width = Math.round(canvas.clientWidth * density);
  canvas.height = Math.round(canvas.clientHeight * density);
  still = new OffscreenCanvas(canvas.width, canvas.height);
  const pen = still.getContext("2d");
  const { scale, left, top } = view();
  pen.fillStyle = colours.ground;
  pen.fillRect(0, 0, canvas.width, canvas.height);
  drawGrid(pen, scale, left, top);
  drawWater(pen, scale, left, top);
  for (const [colour, more] of [["kerb", 2 * density], ["street", 0]]) {
    pen.strokeStyle = colours[colour];
    pen.lineCap = "round";
    for (const { wide, line } of city.roads) {
      pen.lineWidth = Math.max((wide ? 70 : 44) * scale, density * (wide ? 4 : 2.5)) + more;
      pen.beginPath();
      pen.moveTo(left + line[0] * scale, top + line[1] * scale);
      pen.lineTo(left + line[2] * scale, top + line[3] * scale);
      pen.stroke();
    }
  }
}

function drawGrid(pen, scale, left, top) {
  const step = (city.size / 12) * scale;
  pen.strokeStyle = colours.grid;
  pen.lineWidth = 1;
  pen.beginPath();
  for (let x = left % step; x < canvas.width; x += step) {
    pen.moveTo(x, 0);
    pen.lineTo(x, canvas.height);
  }
  for (let y = top % step; y < canvas.height; y += step) {
    pen.moveTo(0, y);
    pen.lineTo(canvas.width, y);
  }
  pen.stroke();
}

function drawWater(pen, scale, left, top) {
  pen.fillStyle = colours.water;
  pen.strokeStyle = colours.shore;
  pen.lineWidth = 2;
  pen.beginPath();
  // The sea goes on to the edges of the picture.
  const end = (value, edge) => (value === city.size ? edge + 4 : null);
  for (const [x, y] of city.water) {
    pen.lineTo(end(x, canvas.width) ?? left + x * scale, end(y, canvas.height) ?? top + y * scale);
  }
  pen.closePath();
  pen.fill();
  pen.stroke();
}

function placesNow() {
  const share = Math.min((performance.now() - arrived) / (1000 * period), 1);
  return now.map((value, index) => {
    const far = value - before[index];
    return Math.abs(far) > JUMP ? value : before[index] + far * share;
  });
}

function drawVehicle(pen, x, y, angle, size, colour) {
  const cos = Math.cos(angle) * size;
  const sin = Math.sin(angle) * size;
  pen.fillStyle = colour;
  pen.beginPath();
  pen.moveTo(x + cos, y + sin);
  pen.lineTo(x - 0.8 * cos - 0.65 * sin, y - 0.8 * sin + 0.65 * cos);
  pen.lineTo(x - 0.8 * cos + 0.65 * sin, y - 0.8 * sin - 0.65 * cos);
  pen.closePath();
  pen.fill();
}

function drawRing(pen, x, y, radius, width) {
  pen.lineWidth = width;
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.stroke();
}

function draw() {
  requestAnimationFrame(draw);
  if (still === null) return;
  const pen = canvas.getContext("2d");
  pen.drawImage(still, 0, 0);
  const density = window.devicePixelRatio || 1;
  const { scale, left, top } = view();
  const places = placesNow();
  drawTrail(pen, places, scale, left, top, density);
  const size = Math.max(46 * scale, 4 * density);
  for (let vehicle = 0; vehicle < named.length && 2 * vehicle < places.length; vehicle += 1) {
    const at = 2 * vehicle;
    const x = left + places[at] * scale;
    const y = top + places[at + 1] * scale;
    const angle = Math.atan2(now[at + 1] - before[at + 1], now[at] - before[at]);
    drawVehicle(pen, x, y, angle, size, colours[named[vehicle].kind]);
    pen.strokeStyle = colours.mark;
    if (vehicle === selected) drawRing(pen, x, y, 2.4 * size, 2.5 * density);
    else if (marked.has(vehicle)) drawRing(pen, x, y, 1.9 * size, density);
  }
}

function drawTrail(pen, places, scale, left, top, density) {
  if (selected === null || trail.length < 4) return;
  pen.strokeStyle = colours.mark;
  pen.lineWidth = 2.5 * density;
  pen.lineJoin = "round";
  pen.beginPath();
  // The last kept position is the one that the vehicle is on its way to.
  for (let at = 0; at < trail.length - 2; at += 2) pen.lineTo(left + trail[at] * scale, top + trail[at + 1] * scale);
  pen.lineTo(left + places[2 * selected] * scale, top + places[2 * selected + 1] * scale);
  pen.stroke();
}

// -- input ------------------------------------------------------------------------------------------------------------

canvas.addEventListener("click", (event) => {
  if (city === null || now.length === 0) return;
  const density = window.devicePixelRatio || 1;
  const { scale, left, top } = view();
  const x = (event.offsetX * density - left) / scale;
  const y = (event.offsetY * density - top) / scale;
  const places = placesNow();
  let nearest = null;
  let distance = (24 * density) / scale; // 24 pixels: a finger
  for (let vehicle = 0; 2 * vehicle < places.length; vehicle += 1) {
    const far = Math.hypot(places[2 * vehicle] - x, places[2 * vehicle + 1] - y);
    if (far < distance) [nearest, distance] = [vehicle, far];
  }
  if (nearest !== null) select(nearest);
  else if (selected !== null) release();
});

find("#find").addEventListener("change", ({ target }) => {
  const vehicle = named.findIndex(({ name }) => name.toLowerCase() === target.value.trim().toLowerCase());
  if (vehicle >= 0) select(vehicle);
});

find("#release").addEventListener("click", release);

// -- start ------------------------------------------------------------------------------------------------------------

const redraw = () => {
  if (city !== null) drawStill();
};
new ResizeObserver(redraw).observe(canvas);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

fleet.join().catch(() => {}); // the state shows why a join was refused
[city, named] = await Promise.all([get("map"), get("vehicles")]);
for (const kind of KINDS) {
  find(`#legend .${kind} b`).textContent = named.filter((one) => one.kind === kind).length;
}
find("#names").replaceChildren(...named.map(({ name }) => new Option(name)));
redraw();
requestAnimationFrame(draw);

// For tests, and for the console of the browser.
window.fleet = {
  get places() { return [...now]; },
  get selected() { return selected; },
  get marked() { return [...marked]; },
};

// tangram dev tells when the plugin's code or files have changed.
if (["localhost", "127.0.0.1"].includes(location.hostname)) {
  const changes = client.channel("tangram:dev");
  changes.on("reload", ({ error }) => {
    if (error) find("#hint").textContent = error;
    else location.reload();
  });
  changes.join().catch(() => {});
}
