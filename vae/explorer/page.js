// What is on the page that explore.py writes: a map, sliders, a pad, and how the model reads, draws and counts. The
// model behind them is in network.js.
"use strict";

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const $ = (id) => document.getElementById(id);
// The latent vector shown, its place on the map, the walk; the image chosen on the map, and the one that is explained.
const state = { z: null, spot: null, path: [], frame: 0, picked: null, reading: null };
const watchers = []; // functions that show the latent vector: of maps and sliders
const parts = []; // functions that explain the image that was read: how it is read, drawn, and what it costs

// ---- Helpers

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function say(texts) { // by the id of the element
  for (const [id, text] of Object.entries(texts)) $(id).textContent = text;
}

// Paint values, in rows of so many columns. `colour` turns a value into red, green, blue and opacity.
function paint(canvas, values, columns = width, colour = grey) {
  [canvas.width, canvas.height] = [columns, values.length / columns];
  const bytes = new Uint8ClampedArray(4 * values.length);
  values.forEach((value, i) => bytes.set(colour(value), 4 * i));
  canvas.getContext("2d").putImageData(new ImageData(bytes, canvas.width, canvas.height), 0, 0);
}

const grey = (value) => [255 * value, 255 * value, 255 * value, 255];
const signed = (end) => (value) => { // orange above zero, blue below; the root, so that small values are seen, too
  if (Number.isNaN(value)) return [128, 128, 128, 70]; // between two tiles
  return [...(value > 0 ? [217, 107, 11] : [38, 104, 214]), 255 * Math.sqrt(Math.abs(value) / end)];
};
const largest = (values) => most([1e-9, ...values.map(Math.abs)]);

function pointIn(element, event) { // in the unit square
  const box = element.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}

function oncePerFrame(work) {
  let frame = 0;
  return () => {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(work);
  };
}

const inUnit = (value) => Math.min(1, Math.max(0, value));
const percent = (share) => `${Math.round(100 * share)}%`;
const colourOf = (label) => `light-dark(${facts.colours[label % facts.colours.length]})`;
const sortedBy = (values) => range(values.length).sort((a, b) => values[b] - values[a]); // indices, the largest first
const pointsOf = (points, scaleX, scaleY) => points.map(([x, y]) => `${scaleX * x},${scaleY * y}`).join(" ");

// ---- Maps

const lineOver = (points, attributes) => svg("polyline", { points: pointsOf(points, 1000, 1000), ...attributes });
const circleAt = ([x, y], attributes) => svg("circle", { cx: 1000 * x, cy: 1000 * y, ...attributes });

function drawDots() { // both maps show them
  const styleOf = (index) => `fill: ${colourOf(facts.classes?.[index] ?? 0)}`;
  $("dots").append(...range(count).map((index) => circleAt(spotOf(index), { r: 4.5, style: styleOf(index) })));
  $("dots").append(...facts.map.names.map(([label, x, y]) =>
    svg("text", { x: 1000 * x, y: 1000 * y }, facts.names[label])));
}

function showMarks() { // the latent vector that is shown, and the walk
  for (const group of document.querySelectorAll(".marks")) {
    const ways = ["halo", "way"].map((name) => lineOver(state.path.map(spotOf), { class: name }));
    group.replaceChildren(...ways, ...["halo", "ring"].map((name) => circleAt(state.spot, { r: 14, class: name })));
  }
}

function startMap() {
  const root = $("map"), lens = $("lens"), show = makeReading($("picked"));
  let pointer = [0.5, 0.5], pressed = null, inside = false;
  const showLens = oncePerFrame(() => {
    if (!inside) return;
    const { z, neighbours } = codeAt(pointer), [x, y] = pointer;
    paint(lens.firstElementChild, decode(z).pixels);
    lens.hidden = false;
    lens.style = `--x: ${x}; --y: ${y}`;
    lens.classList.toggle("below", y < 0.4);
    $("links").replaceChildren(...neighbours.map(({ index, weight }) =>
      lineOver([pointer, spotOf(index)], { style: `stroke-width: ${0.8 + 4 * weight}px` })));
  });
  const point = (place) => {
    [pointer, inside] = [place.map(inUnit), true];
    showLens();
  };
  const leave = () => {
    inside = false;
    lens.hidden = true;
    $("links").replaceChildren();
  };
  const pick = () => {
    const [{ index }] = findNearest(facts.map.places, pointer, 1);
    const what = facts.drawn ? "drawn by the model" : "test image";
    const title = facts.classes ? `${what}, label ${facts.names[facts.classes[index]]}` : what;
    state.picked = { ...read(imageOf(index)), title, spot: spotOf(index) };
    show(state.picked);
    explain(state.picked);
  };
  root.onpointermove = (event) => point(pointIn(root, event));
  root.onpointerdown = (event) => point((pressed = pointIn(root, event)));
  root.onpointerup = (event) => {
    const [x, y] = pointIn(root, event);
    if (event.pointerType === "touch") leave();
    if (pressed && Math.hypot(x - pressed[0], y - pressed[1]) * root.clientWidth < 8) pick(); // else it was dragged
    pressed = null;
  };
  root.onpointerleave = root.onblur = leave;
  root.onkeydown = (event) => {
    const step = ARROWS[event.key];
    if (step) point(pointer.map((value, axis) => value + 0.02 * step[axis]));
    else if (event.key === "Enter") pick();
    else return;
    event.preventDefault();
  };
  pick(); // to begin with, an image in the middle
}

// ---- An image that was read: what the model makes of it

function explain(reading) { // an image that was chosen on the map or drawn
  state.reading = reading;
  goTo(reading.mean, reading.spot);
  for (const element of document.querySelectorAll(".which")) element.textContent = reading.title;
  for (const show of parts) show(reading);
}

// Fill an element with an empty reading. Returns the function that shows one.
function makeReading(root) {
  root.replaceChildren($("reading").content.cloneNode(true));
  const find = (name) => root.querySelector(name), [image, reconstruction] = root.querySelectorAll(".image");
  return (reading) => {
    find("h3").textContent = reading.title;
    paint(image, reading.image);
    paint(reconstruction, reading.pixels);
    showCosts(find(".costs"), reading);
    if (reading.shares.length) showShares(find(".shares"), reading.shares);
  };
}

function showCosts(root, { reconstruction, kl }) {
  const [text, box] = root.children, [bar, tick] = box.children, usual = facts.losses.general_loss ?? 0;
  const total = reconstruction + kl, full = Math.max(1.5 * usual, 1.05 * total); // what the whole bar stands for
  [reconstruction, kl, total].forEach((value, i) => (text.querySelectorAll("b")[i].textContent = value.toFixed(1)));
  box.hidden = reconstruction < 0; // Gaussian pixels can have densities above one
  [reconstruction, kl].forEach((value, i) => (bar.children[i].style.width = `${(100 * value) / full}%`));
  if (tick) tick.style.left = `${(100 * usual) / full}%`;
}

function showShares(root, shares) { // of the ten best labels, in their usual order
  root.replaceChildren();
  for (const label of sortedBy(shares).slice(0, 10).sort((a, b) => a - b)) {
    const fill = make("i", { style: `width: ${percent(shares[label])}; background: ${colourOf(label)}` });
    root.append(make("span", {}, facts.names[label]), make("div", { className: "bar" }, fill));
    root.append(make("span", {}, percent(shares[label])));
  }
}

// ---- The latent vector: sliders and buttons

function setZ(z, spot = spotAt(z)) {
  Object.assign(state, { z: Float32Array.from(z), spot });
  paint($("image"), decode(state.z).pixels);
  const shares = labelShares(state.z), [best] = sortedBy(shares);
  for (const element of document.querySelectorAll("#label b")) element.textContent = facts.names[best];
  for (const element of document.querySelectorAll("#label i")) element.textContent = percent(shares[best]);
  for (const show of watchers) show();
}

function goTo(z, spot) {
  stopWalk();
  setZ(z, spot);
}

function stopWalk() {
  cancelAnimationFrame(state.frame);
  Object.assign(state, { frame: 0, path: [] });
  $("walk").textContent = `Walk to another ${facts.noun}`;
}

function walk() { // from image to image, to one of another label
  const [{ index: start }] = findNearest(facts.codes, state.z, 1), labels = facts.classes;
  const ends = range(count).filter((index) => (labels ? labels[index] !== labels[start] : index !== start));
  if (!ends.length) return;
  state.path = findPath(start, ends[Math.floor(Math.random() * ends.length)]);
  const stops = [state.z, ...state.path.map(codeOf)], spots = [state.spot, ...state.path.map(spotOf)];
  let began = null;
  $("walk").textContent = "Stop here";
  state.frame = requestAnimationFrame(function step(now) {
    began ??= now;
    const passed = Math.min((now - began) / 450, stops.length - 1); // milliseconds from stop to stop
    const stop = Math.min(Math.floor(passed), stops.length - 2);
    setZ(mix(stops[stop], stops[stop + 1], passed - stop), mix(spots[stop], spots[stop + 1], passed - stop));
    if (passed < stops.length - 1) state.frame = requestAnimationFrame(step);
    else stopWalk();
  });
}

function showEach() {
  const draws = facts.names.slice(0, 60).map((name, label) => ({ name, z: drawLabel(label) }));
  $("tiles").replaceChildren(...draws.filter(({ z }) => z).map(({ name, z }) => {
    const canvas = make("canvas", { className: "image" });
    paint(canvas, decode(z).pixels);
    return make("button", { onclick: () => goTo(z) }, canvas, name);
  }));
}

function makeSlider(dimension) {
  const values = range(count).map((index) => facts.codes[index * latents + dimension]).sort((a, b) => a - b);
  const margin = 0.1 * (values.at(-1) - values[0]), [min, max] = [values[0] - margin, values.at(-1) + margin];
  const input = make("input", { type: "range", min, max, step: (max - min) / 400 }), output = make("output");
  input.oninput = () => goTo(state.z.map((value, i) => (i === dimension ? Number(input.value) : value)));
  watchers.push(() => {
    input.value = state.z[dimension];
    output.textContent = state.z[dimension].toFixed(1);
  });
  return make("label", {}, make("span", {}, make("i", {}, "z"), make("sub", {}, dimension + 1)), input, output);
}

function startLatents() {
  const shown = facts.active.slice(0, 20), more = facts.active.slice(20);
  $("sliders").append(...shown.map(makeSlider));
  $("more").hidden = !more.length;
  $("more").lastElementChild.append(...more.map(makeSlider));
  $("more").firstElementChild.textContent = `${more.length} more, less active`;
  watchers.push(showMarks);
  $("new").onclick = () => goTo(drawPrior());
  $("walk").onclick = () => (state.frame ? stopWalk() : walk());
  $("each").hidden = !facts.names.length;
  $("each").onclick = showEach;
  showEach();
}

// ---- The pad: strokes become an image as MNIST's were made, with the ink and the paper of the set

const INK = 2.7; // width of the pen, in pixels of 28
const EXAMPLE = [[8, 9], [10, 6], [14, 5], [17, 7], [18, 11], [15, 15], [11, 19], [8, 22], [14, 21], [20, 22]]; // a 2

// Strokes are lists of points in the unit square. They are scaled to 20 pixels of 28, and their mass is centred.
function rasterise(strokes) {
  const shape = [width, height], unit = Math.min(...shape) / 28;
  const ends = shape.map((length, axis) => {
    const values = strokes.flat().map((point) => point[axis] * length);
    return [least(values), most(values)];
  });
  const longest = Math.max(...ends.map(([low, high]) => high - low));
  const scale = Math.min(4, ((20 - INK) * unit) / (longest + 1e-6)); // no further: a dot remains a dot
  const drawAround = (centre) => {
    const move = (value, axis) => (value * shape[axis] - (ends[axis][0] + ends[axis][1]) / 2) * scale + centre[axis];
    return drawStrokes(strokes.map((stroke) => stroke.map((point) => point.map(move))), INK * unit);
  };
  const [x, y] = findCentre(drawAround([width / 2, height / 2]));
  const centred = drawAround([width - x, height - y]), shares = facts.binary ? centred.map(Math.round) : centred;
  return shares.map((share) => paper + (ink - paper) * share);
}

function findCentre(shares) { // of mass: column and row
  const mass = sum(shares), mean = (at) => sum(shares.map((share, i) => share * at(i))) / mass;
  return [mean((i) => (i % width) + 0.5), mean((i) => Math.floor(i / width) + 0.5)];
}

function drawStrokes(strokes, lineWidth) { // the share of ink in each pixel
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  Object.assign(context, { lineWidth, lineCap: "round", lineJoin: "round" });
  context.beginPath();
  for (const stroke of strokes) {
    context.moveTo(stroke[0][0] + 0.01, stroke[0][1]); // a dot has a length, too
    for (const point of stroke) context.lineTo(...point);
  }
  context.stroke();
  const opacities = context.getImageData(0, 0, width, height).data.filter((_, i) => i % 4 === 3);
  return Float32Array.from(opacities, (value) => value / 255);
}

function startPad() {
  const pad = $("pad"), show = makeReading($("drawn"));
  let strokes = [EXAMPLE.map(([x, y]) => [x / 28, y / 28])], isExample = true, isDrawing = false, pen = [0.5, 0.5];
  const readPad = oncePerFrame(() => {
    $("drawn").hidden = !strokes.length;
    if (!strokes.length) return explain(state.picked);
    const reading = { ...read(rasterise(strokes)), title: isExample ? "an example" : "your drawing" };
    show(reading);
    if (!isExample) explain(reading);
  });
  const change = () => {
    const lines = strokes.map((stroke) => svg("polyline", { points: pointsOf([stroke[0], ...stroke], width, height) }));
    const [x, y] = [pen[0] * width - 0.5, pen[1] * height - 0.5];
    pad.replaceChildren(...lines, svg("rect", { x, y, width: 1, height: 1 }));
    pad.classList.toggle("example", isExample);
    $("hint").textContent = isExample ? "An example. Draw your own." : strokes.length ? "" : "Draw here.";
    readPad();
  };
  const begin = (point) => {
    strokes = isExample ? [[point]] : [...strokes, [point]];
    [isExample, isDrawing] = [false, true];
    change();
  };
  const extend = (...points) => {
    if (isDrawing) strokes.at(-1).push(...points);
    change();
  };
  const undo = (count) => {
    strokes = isExample ? [] : strokes.slice(0, -count);
    [isExample, isDrawing] = [false, false];
    change();
  };
  const clear = () => undo(strokes.length);
  pad.onpointerdown = (event) => {
    pad.setPointerCapture(event.pointerId);
    begin(pointIn(pad, event));
  };
  pad.onpointermove = (event) => {
    if (!isDrawing || !event.buttons) return;
    extend(...[...(event.getCoalescedEvents?.() ?? []), event].map((part) => pointIn(pad, part)));
  };
  pad.onpointerup = pad.onpointercancel = () => (isDrawing = false);
  pad.onkeydown = (event) => {
    const step = ARROWS[event.key];
    if (event.key === "Escape") clear();
    if (!step) return;
    event.preventDefault();
    if (!event.shiftKey) isDrawing = false;
    else if (!isDrawing) begin(pen);
    pen = pen.map((value, axis) => inUnit(value + 0.03 * step[axis]));
    extend(pen);
  };
  $("clear").onclick = clear;
  $("undo").onclick = () => undo(1);
  pad.style.strokeWidth = (INK / 28) * Math.min(width, height);
  const [ground, stroke] = [paper, ink].map((value) => `rgb(${grey(value).slice(0, 3)})`);
  $("pad-box").style = `--ground: ${ground}; --pen: ${stroke}; --ratio: ${width / height}`;
  pad.setAttribute("viewBox", `0 0 ${width} ${height}`);
  change();
}

// ---- How it reads: the model is shown the first rows of the image

function startRows() {
  const slider = $("rows"), lstms = facts.encoder.layers.filter(({ type }) => type === "LSTM");
  const pictures = lstms.map(makeStates);
  let best = [], timer = 0; // the likeliest labels; what plays

  const show = () => {
    const rows = Number(slider.value), { image, mean, shares } = stepOf(state.reading, rows);
    paint($("rows-image"), image);
    paint($("rows-pixels"), decode(mean).pixels);
    const texts = best.map((label) => `${facts.names[label]} ${percent(shares[label])}`);
    $("legend").replaceChildren(...texts.map((text, i) =>
      make("span", {}, make("i", { style: `background: ${colourOf(best[i])}` }), text)));
    slider.setAttribute("aria-valuetext", [`${rows} of ${height} rows`, ...texts].join(", "));
    $("rows-part").style.setProperty("--rows", rows);
  };
  const stop = () => {
    timer = clearInterval(timer);
    $("play").textContent = "Play";
  };
  const step = () => {
    if (Number(slider.value) === height) return stop();
    slider.value++;
    show();
  };
  const play = () => {
    slider.value = 0;
    $("play").textContent = "Stop";
    timer = setInterval(step, 5000 / height);
  };
  $("play").onclick = () => (timer ? stop() : play());
  slider.addEventListener("input", stop);
  slider.addEventListener("input", show);
  slider.max = height;
  slider.value = height;
  $("rows-part").style.setProperty("--steps", height);

  parts.push(async (reading) => {
    reading.rows = [];
    best = [];
    show();
    pictures.forEach((showStates, i) => showStates(reading.states[i]));
    for (let rows = 0; rows <= height; rows++) {
      stepOf(reading, rows);
      if (rows % 4 === 3) await new Promise(requestAnimationFrame); // or the page would stop meanwhile
      if (state.reading !== reading) return; // another image was chosen
    }
    if (facts.names.length) best = showCurves(reading.rows.map(({ shares }) => shares));
    show();
  });
}

const stepOf = (reading, rows) => (reading.rows[rows] ??= readRows(reading.image, rows));

// Make the picture of an LSTM's states: steps from left to right, units from top to bottom. Returns what fills it.
function makeStates({ name, shape, inputs, line }) {
  const columns = facts.encoder.layers.find((layer) => layer.name === inputs[0]).type === "Permute";
  const steps = columns ? width : height, units = shape.at(-1), canvas = make("canvas", { role: "img" });
  const title = `${name}: its ${units} numbers after each ${columns ? "column" : "row"}`;
  const strip = make("div", { className: "strip" }, canvas, make("div", { className: "veil" }));
  strip.style = `--steps: ${steps}; height: ${Math.min(200, Math.max(60, 2 * units))}px`;
  canvas.setAttribute("aria-label", title);
  $("states").append(make("div", { className: "figure" }, make("h3", {}, title), strip, make("code", {}, line ?? "")));
  return (states) => paint(canvas, range(units * steps).map((i) => states[(i % steps) * units + Math.floor(i / steps)]),
    steps, signed(largest(states)));
}

// Draw the shares of the likeliest labels, from those of all labels after each row. Returns these labels.
function showCurves(curves) {
  const peaks = facts.names.map((_, label) => most(curves.map((shares) => shares[label])));
  const best = sortedBy(peaks).slice(0, 5).filter((label) => peaks[label] > 0.1), [end] = sortedBy(curves.at(-1));
  const since = curves.findLastIndex((shares) => sortedBy(shares)[0] !== end) + 1;
  $("curves").firstElementChild.replaceChildren(...best.map((label) => svg("polyline", {
    points: pointsOf(curves.map((shares, rows) => [rows / height, 1 - shares[label]]), 100, 100),
    style: `stroke: ${colourOf(label)}`,
  })));
  say({ "mind-row": since, "mind-label": facts.names[end] });
  $("mind").hidden = false;
  return best;
}

// ---- How it draws: the latent vector, and what leaves each stage of the decoder

// Lay vectors and feature maps out as tiles. Returns their values, row by row, and how many columns there are.
function tile({ shape, data }) {
  const [rows, columns, channels] = shape.length === 1 ? [1, 1, ...shape] : [...shape, 1];
  const gap = rows * columns > 1 ? 1 : 0, across = Math.ceil(Math.sqrt(channels));
  const total = across * (columns + gap) - gap, down = Math.ceil(channels / across) * (rows + gap) - gap;
  const values = new Float32Array(total * down).fill(NaN);
  data.forEach((value, i) => {
    const channel = i % channels, place = Math.floor(i / channels);
    const y = Math.floor(channel / across) * (rows + gap) + Math.floor(place / columns);
    values[y * total + (channel % across) * (columns + gap) + (place % columns)] = value;
  });
  return [values, total];
}

function startStages() {
  const unseen = ["InputLayer", "Dropout", "Flatten"]; // they change nothing
  const stages = facts.decoder.layers.filter(({ type, shape }) => !unseen.includes(type) && shape.length < 4);
  const paintStage = (canvas, layer) => {
    const output = state.reading.stages[layer.name];
    paint(canvas, ...tile(output), layer.name === "pixels" ? grey : signed(largest(output.data)));
  };
  const buttons = stages.map((layer) => make("button", { onclick: () => select(layer) }, make("canvas"),
    make("span", {}, layer.name, make("small", {}, layer.shape.join(" × ")))));
  let selected = stages.find(({ type }) => type === "Conv2DTranspose") ?? stages[0];
  const select = (layer) => {
    selected = layer;
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", stages[i] === layer));
    const { name, type, shape, activation, line } = layer, about = $("about").content;
    const textOf = (key) => about.getElementById(key)?.textContent ?? "";
    const sentence = `${textOf(name) || textOf(type)} ${textOf(activation)}`;
    say({ "stage-name": name, "stage-about": sentence, "stage-shape": shape.join(" × "), "stage-line": line ?? "" });
    paintStage($("stage"), layer);
  };
  $("stages").append(...buttons);
  parts.push((reading) => {
    showBars($("z-bars"), "z: mean ± standard deviation", reading.mean, reading.std);
    buttons.forEach((button, i) => paintStage(button.firstElementChild, stages[i]));
    select(selected);
  });
}

// Draw a bar for each latent dimension, the most active first, with a line from value - spread to value + spread.
function showBars(root, title, values, spreads) {
  const order = [...facts.active, ...range(latents).filter((i) => !facts.active.includes(i))];
  const end = largest(order.flatMap((i) => [values[i] - spreads[i], values[i] + spreads[i]]));
  const y = (value) => 50 - (50 * value) / end;
  const spread = (i) => (spreads[i] ? ` ± ${spreads[i].toFixed(2)}` : "");
  const texts = order.map((i) => `z${i + 1}: ${values[i].toFixed(2)}${spread(i)}`);
  const bars = order.map((i, place) => svg("g", {}, svg("title", {}, texts[place]),
    svg("rect", { x: 10 * place + 2, y: Math.min(y(values[i]), 50), width: 6, height: Math.abs(y(values[i]) - 50) }),
    svg("path", { d: `M${10 * place + 5} ${y(values[i] - spreads[i])}V${y(values[i] + spreads[i])}` })));
  const picture = svg("svg", { viewBox: `0 0 ${10 * latents} 100`, preserveAspectRatio: "none", role: "img" },
    svg("path", { d: `M0 50H${10 * latents}`, class: "zero" }), ...bars);
  picture.setAttribute("aria-label", texts.join(", "));
  const ticks = latents <= 40 ? order.map((i) => make("span", {}, i + 1)) : [];
  root.replaceChildren(make("h3", {}, `${title} (-${end.toFixed(1)} to ${end.toFixed(1)})`), picture);
  root.append(make("div", { className: "ticks" }, ...ticks));
}

// ---- What it costs: the loss, in nats

function startCosts() {
  parts.push(({ pixelLosses, reconstruction, logQ, logPrior, kl }) => {
    const low = least(pixelLosses), high = most(pixelLosses), total = reconstruction + kl;
    paint($("heat"), pixelLosses, width, (value) => [217, 107, 11, (255 * (value - low)) / (high - low || 1)]);
    say({ "heat-low": low.toFixed(2), "heat-high": high.toFixed(2) });
    const terms = { reconstruction, "log-q": sum(logQ), "log-prior": -logPrior, total };
    for (const [id, value] of Object.entries(terms)) $(id).textContent = value.toFixed(1);
    showBars($("q-bars"), "log q(z|x) of each dimension, in nats", logQ, logQ.map(() => 0));
  });
}

// ---- Texts, and the start

// Keep the texts of page.html that hold for this model, and put its numbers into them.
function writeTexts() {
  const { losses, active, encoder } = facts, some = (property) => encoder.layers.some(property);
  const values = {
    ...facts, latents, height, active: active.length, allActive: active.length === latents, plane: facts.map.plane,
    labels: facts.names.length, knowsLabels: prior?.shares, foreign: facts.shown !== facts.trainedOn,
    columns: some(({ type }) => type === "Permute"), everyStep: some((layer) => layer.return_sequences),
    count: count.toLocaleString("en"), parameters: facts.parameters.toLocaleString("en"),
    general: losses.general_loss?.toFixed(1), reconstruction: losses.reconstruction_loss?.toFixed(1),
    kl: losses.kl_loss?.toFixed(1), ground: paper > 0.9 ? "white" : paper < 0.1 ? "black" : "grey",
  };
  for (const root of [document, $("reading").content]) {
    for (const element of root.querySelectorAll("[data-if]")) if (!values[element.dataset.if]) element.remove();
    for (const element of root.querySelectorAll("[data-unless]")) if (values[element.dataset.unless]) element.remove();
    for (const element of root.querySelectorAll("[data-text]")) element.textContent = values[element.dataset.text];
  }
  document.title = `${facts.network} on ${facts.trainedOn}: inside a variational autoencoder`;
}

async function start() {
  await unpack(facts);
  writeTexts();
  drawDots();
  startRows();
  startStages();
  startCosts();
  startLatents();
  startMap();
  startPad();
  document.body.dataset.ready = "yes";
}

start().catch((error) => {
  say({ lede: `This browser cannot show the page (${error.message}). A newer one can.` });
  throw error;
});
