// What is on the page that explore.py writes: a map, sliders, a pad. The model behind them is in explorer.js.
"use strict";

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const $ = (id) => document.getElementById(id);
const dark = matchMedia("(prefers-color-scheme: dark)");
const state = { z: null, spot: null, path: [], frame: 0 }; // the latent vector shown, its place on the map, the walk
const watchers = []; // functions that show the state: of maps and sliders

// ---- Helpers

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function say(id, text) { // with *bold* words
  $(id).replaceChildren(...text.split("*").map((part, i) => (i % 2 ? make("b", {}, part) : part)));
}

function paint(canvas, pixels) {
  [canvas.width, canvas.height] = [width, height];
  const bytes = new Uint8ClampedArray(4 * pixels.length).fill(255);
  pixels.forEach((pixel, i) => bytes.fill(Math.round(255 * pixel), 4 * i, 4 * i + 3));
  canvas.getContext("2d").putImageData(new ImageData(bytes, width, height), 0, 0);
}

function pointIn(element, event) { // in the unit square
  const box = element.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}

function oncePerFrame(work) {
  let waits = false;
  return () => {
    if (waits) return;
    waits = true;
    requestAnimationFrame(() => {
      waits = false;
      work();
    });
  };
}

const colourOf = (label) => facts.colours[label % facts.colours.length][dark.matches ? 1 : 0];
const cssColour = (name) => getComputedStyle(document.body).getPropertyValue(name);
const inUnit = (value) => Math.min(1, Math.max(0, value));

// ---- Maps

// Draw the map in an element that has two canvases: dots and names, and marks above them. Returns the function that
// changes the marks: `spot` (a ring), `path` (over test images), `links` (from `pointer` to neighbours).
function makeMap(root) {
  const [lower, upper] = root.querySelectorAll("canvas"), marks = { spot: null, path: [], pointer: null, links: [] };
  let side = 0; // in pixels of the page
  const begin = (canvas) => {
    canvas.width = canvas.height = side * devicePixelRatio;
    const context = canvas.getContext("2d");
    context.scale(devicePixelRatio, devicePixelRatio);
    return Object.assign(context, { lineJoin: "round", textAlign: "center", textBaseline: "middle" });
  };
  const drawDots = () => {
    const context = begin(lower), size = Math.min(22, Math.max(11, side / 28));
    for (const index of range(count)) {
      const [x, y] = spotOf(index);
      Object.assign(context, { globalAlpha: 0.8, fillStyle: colourOf(facts.classes ? facts.classes[index] : 0) });
      context.beginPath();
      context.arc(x * side, y * side, Math.max(1.1, side / 230), 0, 7);
      context.fill();
    }
    Object.assign(context, { globalAlpha: 1, font: `700 ${size}px system-ui, sans-serif`, lineWidth: size / 3.5 });
    Object.assign(context, { strokeStyle: cssColour("--card"), fillStyle: cssColour("--ink") });
    for (const [label, x, y] of facts.map.names) {
      context.strokeText(facts.names[label], x * side, y * side);
      context.fillText(facts.names[label], x * side, y * side);
    }
  };
  const drawMarks = () => {
    const context = begin(upper), [ink, card] = ["--ink", "--card"].map(cssColour);
    const trace = (points, lineWidth, strokeStyle) => {
      Object.assign(context, { lineWidth, strokeStyle });
      context.beginPath();
      points.forEach(([x, y]) => context.lineTo(x * side, y * side));
      context.stroke();
    };
    for (const { index, weight } of marks.links) trace([marks.pointer, spotOf(index)], 0.8 + 4 * weight, ink);
    trace(marks.path.map(spotOf), 5, card);
    trace(marks.path.map(spotOf), 2, ink);
    if (!marks.spot) return;
    for (const [lineWidth, strokeStyle] of [[6, card], [3, ink]]) {
      Object.assign(context, { lineWidth, strokeStyle });
      context.beginPath();
      context.arc(marks.spot[0] * side, marks.spot[1] * side, 8, 0, 7);
      context.stroke();
    }
  };
  const draw = () => {
    side = root.clientWidth;
    drawDots();
    drawMarks();
  };
  new ResizeObserver(draw).observe(root);
  dark.addEventListener("change", draw);
  return (changes) => {
    Object.assign(marks, changes);
    drawMarks();
  };
}

function startMap() {
  const root = $("map"), lens = $("lens"), mark = makeMap(root), showPicked = makeReading($("picked"), false);
  let pointer = [0.5, 0.5], pressed = null, inside = false;
  const showLens = oncePerFrame(() => {
    if (!inside) return;
    const { z, neighbours } = codeAt(pointer), side = root.clientWidth;
    paint(lens.firstElementChild, decode(z).pixels);
    lens.hidden = false;
    const half = lens.offsetWidth / 2, above = pointer[1] * side - 22 - lens.offsetHeight;
    lens.style.left = `${Math.min(side - half, Math.max(half, pointer[0] * side)) - half}px`;
    lens.style.top = `${above > 0 ? above : pointer[1] * side + 22}px`;
    mark({ pointer, links: neighbours });
  });
  const point = (place) => {
    [pointer, inside] = [place.map(inUnit), true];
    showLens();
  };
  const leave = () => {
    inside = false;
    lens.hidden = true;
    mark({ links: [] });
  };
  const pick = () => {
    const [{ index }] = findNearest(facts.map.places, pointer, 1), reading = read(imageOf(index));
    const title = facts.classes ? `test image, label ${facts.names[facts.classes[index]]}` : "test image";
    showPicked(reading, title);
    goTo(reading.mean, spotOf(index));
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
  watchers.push(() => mark({ spot: state.spot, path: state.path }));
  pick(); // to begin with, an image in the middle
}

// ---- An image that was read: what the model makes of it

// Fill an element with an empty reading. Returns the function that shows one.
function makeReading(root, withMap) {
  root.replaceChildren($("reading").content.cloneNode(true));
  const find = (name) => root.querySelector(name), [image, reconstruction] = root.querySelectorAll(".image");
  if (!withMap) find(".place").remove();
  const mark = withMap && makeMap(find(".map"));
  return (reading, title) => {
    find("h3").textContent = title;
    image.setAttribute("aria-label", title);
    paint(image, reading.image);
    paint(reconstruction, reading.pixels);
    if (mark) mark({ spot: spotAt(reading.mean) });
    showCosts(find(".costs"), reading);
    showShares(find(".shares"), reading.shares);
  };
}

function showCosts(root, { reconstruction, kl }) {
  const [text, box] = root.children, [bar, tick] = box.children, average = facts.losses.general_loss;
  const bold = (value, className) => make("b", { className }, value.toFixed(1));
  text.replaceChildren("Costs ", bold(reconstruction, "r"), " (reconstruction) + ", bold(kl, "k"), " (KL) = ");
  text.append(make("b", {}, `${(reconstruction + kl).toFixed(1)} nats`), ".");
  if (average) text.append(` The average test image costs ${average.toFixed(1)}.`);
  const full = Math.max(1.5 * (average ?? 0), 1.05 * (reconstruction + kl)); // what the whole bar stands for
  box.hidden = reconstruction < 0; // Gaussian pixels can have densities above one
  [reconstruction, kl].forEach((value, i) => (bar.children[i].style.width = `${(100 * value) / full}%`));
  tick.hidden = !average;
  tick.style.left = `${(100 * average) / full}%`;
}

function showShares(root, shares) { // of the ten best labels, in their usual order
  const best = range(shares.length).sort((a, b) => shares[b] - shares[a]).slice(0, 10).sort((a, b) => a - b);
  const title = facts.prior?.shares ? "taken for: p(label | z), how likely each label is"
    : "labels of the 20 test images with the nearest codes";
  root.hidden = !shares.length;
  root.replaceChildren(make("h3", {}, title));
  for (const label of best) {
    const percent = `${Math.round(100 * shares[label])}%`, fill = make("i");
    Object.assign(fill.style, { width: percent, background: colourOf(label) });
    root.append(make("span", {}, facts.names[label]), make("div", { className: "bar" }, fill));
    root.append(make("span", {}, percent));
  }
}

// ---- The latent vector: sliders and buttons

function setZ(z, spot = spotAt(z)) {
  Object.assign(state, { z: Float32Array.from(z), spot });
  paint($("image"), decode(state.z).pixels);
  const shares = labelShares(state.z), best = shares.indexOf(shares.reduce((a, b) => Math.max(a, b), 0));
  const percent = `${Math.round(100 * shares[best])}%`, label = `*${facts.names[best]}*`;
  if (facts.prior?.shares) say("label", `By the prior, this z has the label ${label}: p(label | z) is ${percent}.`);
  else if (shares.length) say("label", `Of the 20 nearest test images, ${percent} have the label ${label}.`);
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

function walk() { // from test image to test image, to one of another label
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
  $("tiles").replaceChildren(...range(Math.min(facts.names.length, 60)).map((label) => {
    const z = drawLabel(label), canvas = make("canvas", { className: "image" });
    paint(canvas, decode(z).pixels);
    return make("button", { onclick: () => goTo(z) }, canvas, facts.names[label]);
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
  const shown = facts.active.slice(0, 20), more = facts.active.slice(20), mark = makeMap($("here"));
  $("sliders").append(...shown.map(makeSlider));
  $("more").hidden = !more.length;
  $("more").lastElementChild.append(...more.map(makeSlider));
  $("more").firstElementChild.textContent = `${more.length} more, less active`;
  watchers.push(() => mark({ spot: state.spot, path: state.path }));
  $("new").onclick = () => goTo(drawPrior());
  $("walk").onclick = () => (state.frame ? stopWalk() : walk());
  $("each").hidden = !facts.names.length;
  $("each").onclick = showEach;
  showEach();
}

// ---- The pad: strokes become an image as MNIST's were made

const INK = 2.7, EDGE = 1.2; // width of the pen, and of its soft edge, in pixels of 28
const EXAMPLE = [[8, 9], [10, 6], [14, 5], [17, 7], [18, 11], [15, 15], [11, 19], [8, 22], [14, 21], [20, 22]]; // a 2

// Strokes are lists of points in the unit square. They are scaled to 20 pixels of 28, and their mass is centred.
function rasterise(strokes) {
  const shape = [width, height], unit = Math.min(...shape) / 28;
  const ends = shape.map((length, axis) => {
    const values = strokes.flat().map((point) => point[axis] * length);
    return [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
  });
  const longest = Math.max(...ends.map(([low, high]) => high - low));
  const scale = Math.min(4, ((20 - INK) * unit) / (longest + 1e-6)); // no further: a dot remains a dot
  const drawAround = (centre) => {
    const move = (value, axis) => (value * shape[axis] - (ends[axis][0] + ends[axis][1]) / 2) * scale + centre[axis];
    return drawStrokes(strokes.map((stroke) => stroke.map((point) => point.map(move))), unit);
  };
  const image = drawAround([width / 2, height / 2]), [x, y] = findCentre(image);
  const centred = drawAround([width - x, height - y]);
  return facts.binary ? centred.map(Math.round) : centred;
}

function findCentre(image) { // of mass: column and row
  const mass = image.reduce((sum, ink) => sum + ink), sum = (at) => image.reduce((all, ink, i) => all + ink * at(i), 0);
  return [sum((i) => i % width) / mass, sum((i) => Math.floor(i / width)) / mass];
}

function drawStrokes(strokes, unit) { // the ink of each pixel, by its distance to the nearest line
  return Float32Array.from({ length: height * width }, (_, i) => {
    const x = (i % width) + 0.5, y = Math.floor(i / width) + 0.5;
    let nearest = Infinity;
    for (const stroke of strokes) {
      stroke.forEach(([endX, endY], k) => {
        const [startX, startY] = stroke[Math.max(k - 1, 0)], alongX = endX - startX, alongY = endY - startY;
        const share = inUnit(((x - startX) * alongX + (y - startY) * alongY) / (alongX ** 2 + alongY ** 2 || 1));
        nearest = Math.min(nearest, Math.hypot(x - startX - share * alongX, y - startY - share * alongY));
      });
    }
    return inUnit((INK / 2 - nearest / unit) / EDGE + 0.5);
  });
}

function startPad() {
  const pad = $("pad"), strokes = [EXAMPLE.map(([x, y]) => [x / 28, y / 28])];
  let stroke = null, pen = [0.5, 0.5], show = null, isExample = true;
  const draw = () => {
    const wide = pad.clientWidth, tall = pad.clientHeight, context = pad.getContext("2d");
    [pad.width, pad.height] = [wide * devicePixelRatio, tall * devicePixelRatio];
    context.scale(devicePixelRatio, devicePixelRatio);
    const lineWidth = (INK / 28) * Math.min(wide, tall);
    Object.assign(context, { lineWidth, lineCap: "round", lineJoin: "round" });
    context.strokeStyle = isExample ? "#666" : "#fff";
    for (const points of strokes) {
      context.beginPath();
      [points[0], ...points].forEach(([x, y]) => context.lineTo(x * wide, y * tall));
      context.stroke();
    }
    Object.assign(context, { lineWidth: 2, strokeStyle: "#8fa8ff" });
    if (pad.matches(":focus-visible")) context.strokeRect(pen[0] * wide - 5, pen[1] * tall - 5, 10, 10);
    $("hint").hidden = strokes.length && !isExample;
  };
  const readPad = oncePerFrame(() => {
    if (!strokes.length) return;
    show ??= makeReading($("drawn"), true);
    const reading = read(rasterise(strokes));
    show(reading, "what it sees");
    if (!isExample) goTo(reading.mean);
  });
  const change = () => {
    draw();
    readPad();
  };
  const clear = () => {
    strokes.length = 0;
    [stroke, isExample] = [null, false];
  };
  const begin = (point) => {
    if (isExample) clear();
    strokes.push((stroke = [point]));
  };
  pad.onpointerdown = (event) => {
    pad.setPointerCapture(event.pointerId);
    begin(pointIn(pad, event));
    change();
  };
  pad.onpointermove = (event) => {
    if (!stroke || !event.buttons) return;
    stroke.push(...(event.getCoalescedEvents?.() ?? []).map((part) => pointIn(pad, part)), pointIn(pad, event));
    change();
  };
  pad.onpointerup = pad.onpointercancel = () => (stroke = null);
  pad.onkeydown = (event) => {
    const step = ARROWS[event.key];
    if (step && !event.shiftKey) stroke = null;
    if (step && event.shiftKey && !stroke) begin(pen);
    if (step) pen = pen.map((value, axis) => inUnit(value + 0.03 * step[axis]));
    else if (event.key === "Escape") clear();
    else return;
    stroke?.push(pen);
    change();
    event.preventDefault();
  };
  $("clear").onclick = () => change(clear());
  $("undo").onclick = () => change(isExample ? clear() : strokes.pop());
  pad.onfocus = pad.onblur = draw;
  new ResizeObserver(draw).observe(pad);
  readPad();
}

// ---- Texts, and the start

function writeTexts() {
  const { network, dataset, epochs, parameters, noun, losses, active, names, map, prior } = facts;
  const reader = facts.encoder.layers.some((layer) => layer.type === "Permute")
    ? "reads an image with two LSTMs, row by row and column by column," : "reads an image row by row with an LSTM";
  const coloured = names.length ? " The model never saw the labels: colours and names were added afterwards." : "";
  document.title = `${network} on ${dataset}: inside a variational autoencoder`;
  say("lede", `This page holds a whole model: the network *${network}*, trained for ${epochs} epochs on *${dataset}*.` +
    ` Its *encoder* ${reader} and puts what it has seen into ${latents} numbers, the latent vector *z*. ` +
    "Its *decoder* draws an image from z alone.");
  say("map-text", `Each of the ${count.toLocaleString("en")} dots is a test image` + (map.plane
    ? `, where its latent vector is: this map is the latent space itself.${coloured}`
    : `, which training did not use. Images with similar latent vectors are close on the map.${coloured}`));
  say("between", map.plane ? "" : "Its z is the weighted mean of those of the nearest dots.");
  say("latent-text", (active.length < latents
    ? `Of the ${latents} numbers of z, ${active.length} tell one test image from another; the decoder has learnt to ` +
      "ignore the others. Here they are, the most active first."
    : `These are the ${latents} numbers of z, the most active first.`) + " *Move one* and see what it means.");
  say("buttons-text", (prior ? "The prior says which latent vectors belong to images: it is a mixture of Gaussians. "
    : "The prior is N(0, I), so some of what is drawn from it lies between the classes. ") +
    `A walk goes from test image to test image, always to one that is alike.` +
    (names.length ? ` Below is one ${noun} of each label: choose one to go there.` : ""));
  const metrics = [
    [losses.general_loss?.toFixed(1), "nats to describe a test image, on average (the negative ELBO); lower is better"],
    [losses.reconstruction_loss?.toFixed(1), "of these for the reconstruction"],
    [losses.kl_loss?.toFixed(1), "of these for the latent vector (KL)"],
    [`${active.length} of ${latents}`, "latent dimensions are in use"],
    [parameters.toLocaleString("en"), "weights of the encoder and the decoder, all in this page"],
  ];
  $("metrics").append(...metrics.filter(([value]) => value).map(([value, meaning]) =>
    make("div", {}, make("b", {}, value), make("span", {}, meaning))));
}

async function start() {
  await unpack($("arrays").textContent);
  document.body.style.setProperty("--shape", `${width} / ${height}`);
  writeTexts();
  startLatents();
  startMap();
  startPad();
  document.body.dataset.ready = "yes";
}

start().catch((error) => {
  say("lede", `This browser cannot show the page (${error.message}). A newer one can.`);
  throw error;
});
