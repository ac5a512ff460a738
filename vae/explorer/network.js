// The model of the page that explore.py writes: both networks, the prior and the codes of the images on the map, in
// plain JavaScript. The layers are run as the Keras model lists them. What is on the screen is in page.js.
"use strict";

const facts = JSON.parse(document.getElementById("facts").textContent); // what vae/explorer/page.py describes
const [height, width] = facts.encoder.layers[0].shape;
const [latents] = facts.decoder.layers[0].shape;
const { count, prior, paper, ink } = facts; // images on the map; p(z), null for N(0, I); grey of ground and strokes

// ---- Arrays. In `facts` each is compressed and written in base64.

const READERS = {
  float16: (buffer) => Float32Array.from(new Uint16Array(buffer), fromHalf),
  float32: (buffer) => new Float32Array(buffer),
  uint16: (buffer) => new Uint16Array(buffer),
  uint8: (buffer) => new Uint8Array(buffer),
};

function fromHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  return exponent ? sign * (1 + fraction / 1024) * 2 ** (exponent - 15) : sign * fraction * 2 ** -24;
}

async function unpack(object) { // put numbers in the place of all arrays in it
  for (const [name, value] of Object.entries(object)) {
    if (value?.base64) {
      const bytes = Uint8Array.from(atob(value.base64), (character) => character.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
      object[name] = READERS[value.type](await new Response(stream).arrayBuffer());
    } else if (typeof value === "object" && value) await unpack(value);
  }
}

const range = (length) => Array.from({ length }, (_, i) => i);
const sum = (values) => values.reduce((total, value) => total + value, 0);
const least = (values) => values.reduce((a, b) => Math.min(a, b));
const most = (values) => values.reduce((a, b) => Math.max(a, b));
const size = (shape) => shape.reduce((product, length) => product * length, 1);

// ---- Layers. A tensor is {shape, data}, of one image or latent vector; layer.shape is the shape of a layer's output.

const sigmoid = (x) => 1 / (1 + Math.exp(-x));
const softplus = (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
const relu = (x) => (x > 0 ? x : 0);
const ACTIVATIONS = { linear: null, relu, sigmoid, silu: (x) => x * sigmoid(x), softplus, tanh: Math.tanh };

const reshape = (layer, x) => ({ shape: layer.shape, data: x.data });
const apply = (f) => (layer, x) => ({ shape: layer.shape, data: x.data.map(f) });

function activate(layer, data) {
  const activation = ACTIVATIONS[layer.activation];
  return { shape: layer.shape, data: activation ? data.map(activation) : data };
}

function affine(layer, x) { // by channel, the last axis
  const { scale, shift } = layer, channels = scale.length;
  return { shape: layer.shape, data: x.data.map((value, i) => value * scale[i % channels] + shift[i % channels]) };
}

function repeat(bias, rows, columns) { // the bias, or zeros, `rows` times
  const sums = new Float32Array(rows * columns);
  if (bias) for (let row = 0; row < rows; row++) sums.set(bias, row * columns);
  return sums;
}

// Add x (rows, depth) times kernel (depth, columns) to sums (rows, columns), and return them. Nearly all of the time is
// spent here. Four rows of the kernel are read at a time; those that meet only zeros, as after ReLU, are skipped.
function addProduct(sums, x, rows, depth, kernel, columns) {
  for (let row = 0; row < rows; row++) {
    const out = sums.subarray(row * columns, (row + 1) * columns), own = x.subarray(row * depth, (row + 1) * depth);
    let d = 0;
    for (; d + 3 < depth; d += 4) {
      const a = own[d], b = own[d + 1], c = own[d + 2], e = own[d + 3];
      if (a === 0 && b === 0 && c === 0 && e === 0) continue;
      const first = d * columns, second = first + columns, third = second + columns, fourth = third + columns;
      for (let j = 0; j < columns; j++) {
        out[j] += a * kernel[first + j] + b * kernel[second + j] + c * kernel[third + j] + e * kernel[fourth + j];
      }
    }
    for (; d < depth; d++) for (let j = 0; j < columns; j++) out[j] += own[d] * kernel[d * columns + j];
  }
  return sums;
}

const LAYERS = {
  InputLayer: (layer, x) => x,
  Dropout: (layer, x) => x, // it is for training
  Flatten: reshape,
  Reshape: reshape,
  Normalization: affine,
  BatchNormalization: affine, // page.py makes mean and variance a scale and a shift
  ReLU: apply(relu),
  Log: apply(Math.log),
  Multiply: (layer, number, x) => apply((value) => number * value)(layer, x), // only a number times a tensor
  Add: (layer, x, y) => ({ shape: layer.shape, data: x.data.map((value, i) => value + y.data[i]) }),
  Activation: (layer, x) => activate(layer, x.data),
  Concatenate: (layer, ...parts) => // of vectors
    ({ shape: layer.shape, data: Float32Array.from(parts.flatMap((part) => [...part.data])) }),

  Dense(layer, x) { // over the last axis
    const depth = x.shape.at(-1), rows = x.data.length / depth, units = layer.shape.at(-1);
    return activate(layer, addProduct(repeat(layer.bias, rows, units), x.data, rows, depth, layer.kernel, units));
  },

  LSTM(layer, x) { // in Keras's order of the gates: input, forget, candidate, output
    const [steps, features] = x.shape, units = layer.shape.at(-1), four = 4 * units;
    const gates = addProduct(repeat(layer.bias, steps, four), x.data, steps, features, layer.kernel, four);
    const states = new Float32Array(steps * units), cell = new Float32Array(units);
    let h = new Float32Array(units);
    for (let step = 0; step < steps; step++) {
      const own = addProduct(gates.subarray(step * four, (step + 1) * four), h, 1, units, layer.recurrent_kernel, four);
      h = states.subarray(step * units, (step + 1) * units);
      for (let u = 0; u < units; u++) {
        cell[u] = sigmoid(own[units + u]) * cell[u] + sigmoid(own[u]) * Math.tanh(own[2 * units + u]);
        h[u] = sigmoid(own[3 * units + u]) * Math.tanh(cell[u]);
      }
    }
    return { shape: layer.shape, data: layer.return_sequences ? states : h, states };
  },

  Conv2DTranspose(layer, x) { // each place of the input is spread over a kernel's size of places of the output
    const [rows, columns, depth] = x.shape, [outRows, outColumns, filters] = layer.shape;
    const [kernelRows, kernelColumns] = layer.kernel_size, [down, right] = layer.strides;
    const top = Math.max(kernelRows - down, 0) >> 1, left = Math.max(kernelColumns - right, 0) >> 1; // padding "same"
    const spread = kernelRows * kernelColumns * filters, places = rows * columns;
    const parts = addProduct(new Float32Array(places * spread), x.data, places, depth, layer.kernel, spread);
    const out = repeat(layer.bias, outRows * outColumns, filters);
    for (let place = 0, from = 0; place < places; place++) {
      for (let i = 0; i < kernelRows; i++) {
        const row = Math.floor(place / columns) * down + i - top;
        for (let j = 0; j < kernelColumns; j++, from += filters) {
          const column = (place % columns) * right + j - left;
          if (row < 0 || row >= outRows || column < 0 || column >= outColumns) continue;
          const to = (row * outColumns + column) * filters;
          for (let f = 0; f < filters; f++) out[to + f] += parts[from + f];
        }
      }
    }
    return activate(layer, out);
  },

  AveragePooling2D(layer, x) { // with stride 1: the mean of a place and of those right of it and below, in the image
    const [rows, columns, channels] = x.shape, [poolRows, poolColumns] = layer.pool_size;
    const data = x.data.map((_, i) => {
      const channel = i % channels, place = Math.floor(i / channels), values = [];
      const row = Math.floor(place / columns), column = place % columns;
      for (let y = row; y < Math.min(row + poolRows, rows); y++) {
        for (let z = column; z < Math.min(column + poolColumns, columns); z++) {
          values.push(x.data[(y * columns + z) * channels + channel]);
        }
      }
      return sum(values) / values.length;
    });
    return { shape: layer.shape, data };
  },

  Permute(layer, x) {
    const steps = layer.dims.map((dim) => size(x.shape.slice(dim))); // in x, along each axis of the output
    const copy = (axis, from) => range(layer.shape[axis]).flatMap((i) =>
      axis + 1 < steps.length ? copy(axis + 1, from + i * steps[axis]) : x.data[from + i * steps[axis]]);
    return { shape: layer.shape, data: Float32Array.from(copy(0, 0)) };
  },
};

function run(network, data) { // the outputs of all layers, by name
  const outputs = {};
  for (const layer of network.layers) {
    const inputs = layer.inputs.map((input) => (typeof input === "string" ? outputs[input] : input));
    outputs[layer.name] = LAYERS[layer.type](layer, ...(inputs.length ? inputs : [{ shape: layer.shape, data }]));
  }
  return outputs;
}

function encode(image) {
  const outputs = run(facts.encoder, image), [mean, logVar] = facts.encoder.outputs.map((name) => outputs[name].data);
  return { mean, logVar, outputs };
}

function decode(z) { // the last layer is the sigmoid of the logits
  const outputs = run(facts.decoder, z);
  return { pixels: outputs.pixels.data, logits: outputs.logits.data, outputs };
}

// ---- The prior: a mixture of Gaussians, or N(0, I)

const LOG_2PI = Math.log(2 * Math.PI);
const normal = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());

function choose(weights) { // an index, with a probability in proportion to its weight
  let rest = Math.random() * sum(weights);
  return Math.max(0, weights.findIndex((weight) => (rest -= weight) < 0));
}

function logSumExp(terms) {
  const largest = most(terms);
  return largest + Math.log(sum(terms.map((term) => Math.exp(term - largest))));
}

function priorTerms(z) { // for each component, the log of its weight times its density at z
  const { weights, means, factors } = prior, white = new Float64Array(latents);
  return Float64Array.from(weights, (weight, component) => {
    let term = Math.log(weight) - (latents / 2) * LOG_2PI;
    for (let i = 0; i < latents; i++) { // solve factor * white = z - mean, from the top
      const at = (component * latents + i) * latents;
      let rest = z[i] - means[component * latents + i];
      for (let j = 0; j < i; j++) rest -= factors[at + j] * white[j];
      white[i] = rest / factors[at + i];
      term -= white[i] ** 2 / 2 + Math.log(factors[at + i]);
    }
    return term;
  });
}

function drawPrior(weights = prior?.weights) {
  const noise = Float32Array.from({ length: latents }, normal);
  if (!prior) return noise;
  const component = choose(weights), { means, factors } = prior;
  return noise.map((_, i) => {
    const at = component * latents + i;
    return noise.reduce((total, value, j) => total + factors[at * latents + j] * value, means[at]);
  });
}

// p(label | z): from the prior, where it knows labels; else the share of each among the 20 nearest images of the map
function labelShares(z) {
  const shares = new Float64Array(facts.names.length);
  if (prior?.shares) {
    const terms = priorTerms(z), all = logSumExp(terms);
    terms.forEach((term, component) => {
      const weight = Math.exp(term - all);
      shares.forEach((_, label) => (shares[label] += weight * prior.shares[component * shares.length + label]));
    });
  } else if (facts.classes) {
    const nearest = findNearest(facts.codes, z, 20);
    for (const { index } of nearest) shares[facts.classes[index]] += 1 / nearest.length;
  }
  return shares;
}

// z of a label: from the prior, again where p(label | z) is below 0.9 (the surest draw stays). For a label that the
// prior does not know, the code of an image with that label; null where there is none.
function drawLabel(label) {
  const { names, classes } = facts;
  const weights = prior?.shares && prior.weights.map((weight, i) => weight * prior.shares[i * names.length + label]);
  if (!weights?.some((weight) => weight > 0)) {
    const own = classes?.map((other) => other === label);
    return own?.includes(1) ? codeOf(choose(own)) : null;
  }
  let surest = null, share = -1; // of the label, at the surest draw
  for (let tries = 0; tries < 11 && share < 0.9; tries++) {
    const z = drawPrior(weights), own = labelShares(z)[label];
    if (own > share) [surest, share] = [z, own];
  }
  return surest;
}

// ---- What an image costs, in nats, as model.py computes it. The expectations over q(z|x) are means over eight codes.
// Every other code has the noise of the one before it with the sign changed, which cancels most of the error.

function read(image) {
  const { mean, logVar, outputs } = encode(image), { noise } = facts, codes = (2 * noise.length) / latents;
  const std = logVar.map((value) => Math.exp(value / 2));
  const pixelLosses = new Float32Array(image.length); // their sum is the reconstruction loss
  const logQ = logVar.map((value) => -(value + 1 + LOG_2PI) / 2); // of each dimension, E[log q(z|x)]
  let logPrior = prior ? 0 : -sum(mean.map((value, i) => value ** 2 + std[i] ** 2 + LOG_2PI)) / 2; // E[log p(z)]
  for (let code = 0; code < codes; code++) {
    const own = noise.subarray((code >> 1) * latents), sign = code % 2 ? -1 : 1;
    const z = mean.map((value, i) => value + sign * std[i] * own[i]);
    measurePixels(image, decode(z)).forEach((loss, i) => (pixelLosses[i] += loss / codes));
    if (prior) logPrior += logSumExp(priorTerms(z)) / codes;
  }
  const reconstruction = sum(pixelLosses), kl = sum(logQ) - logPrior;
  const states = facts.encoder.layers.filter(({ type }) => type === "LSTM").map(({ name }) => outputs[name].states);
  const { pixels, outputs: stages } = decode(mean), shares = labelShares(mean);
  return { image, mean, std, states, stages, pixels, shares, pixelLosses, logQ, logPrior, reconstruction, kl };
}

function measurePixels(image, { logits, pixels }) { // -log p(x | z) of each pixel, Bernoulli or Gaussian
  const { variance } = facts;
  if (!variance) return logits.map((logit, i) => softplus(logit) - image[i] * logit);
  return pixels.map((pixel, i) => ((image[i] - pixel) ** 2 / variance + Math.log(2 * Math.PI * variance)) / 2);
}

function readRows(whole, rows) { // the encoder is shown so many rows of an image; the rest is empty
  const image = whole.map((pixel, i) => (i < rows * width ? pixel : paper)), { mean } = encode(image);
  return { image, mean, shares: labelShares(mean) };
}

// ---- The map: a place in the unit square for the code of each image

const codeOf = (index) => facts.codes.slice(index * latents, (index + 1) * latents);
const spotOf = (index) => Array.from(facts.map.places.subarray(2 * index, 2 * index + 2));
const mix = (a, b, share) => a.map((value, i) => value + share * (b[i] - value));

function imageOf(index) {
  const pixels = height * width;
  return Float32Array.from(facts.images.subarray(index * pixels, (index + 1) * pixels), (byte) => byte / 255);
}

function measure(points, index, query) { // the distance of one of the points (n, D) from a query (D,)
  let square = 0;
  for (let i = 0, at = index * query.length; i < query.length; i++) square += (points[at + i] - query[i]) ** 2;
  return Math.sqrt(square);
}

// The points (n, D) nearest to a query (D,), with weights that sum to one. The weight is zero at the distance of the
// first point that is left out, so nothing jumps when the query moves (Franke & Little's weights, 1980).
function findNearest(points, query, wanted) {
  const all = range(points.length / query.length), lengths = all.map((index) => measure(points, index, query));
  const order = all.sort((a, b) => lengths[a] - lengths[b]).slice(0, wanted + 1);
  const edge = lengths[order.length > wanted ? order.pop() : order.at(-1)];
  const weights = order.map((index) => (edge / (lengths[index] + 1e-6) - 1 + 1e-6) ** 2), total = sum(weights);
  return order.map((index, i) => ({ index, weight: weights[i] / total }));
}

function average(neighbours, rowOf) {
  return rowOf(0).map((_, i) => sum(neighbours.map(({ index, weight }) => weight * rowOf(index)[i])));
}

function codeAt(spot) { // z, exact where the map is the latent space, else between the codes of the nearest images
  const { plane, places } = facts.map;
  if (plane) return { z: codeOf(0).map((_, i) => plane.centre[i] + (spot[i] - 0.5) * plane.span[i]), neighbours: [] };
  const neighbours = findNearest(places, spot, 6);
  return { z: average(neighbours, codeOf), neighbours };
}

function spotAt(z) { // beside the image of the nearest code, between those of its neighbours that are close on the map
  const { plane } = facts.map;
  if (plane) return [0, 1].map((i) => Math.min(1, Math.max(0, ((z[i] ?? 0) - plane.centre[i]) / plane.span[i] + 0.5)));
  const neighbours = findNearest(facts.codes, z, 5), [x, y] = spotOf(neighbours[0].index);
  const close = neighbours.filter(({ index }) => Math.hypot(spotOf(index)[0] - x, spotOf(index)[1] - y) < 0.1);
  const total = sum(close.map(({ weight }) => weight));
  return average(close, spotOf).map((value) => value / total);
}

// A way from one image to another over images that are alike: the shortest path (Dijkstra, 1959), where a step costs
// the sixth power of its length in latent space, so that many short steps are better than a long one.
function findPath(start, end) {
  const costs = new Float64Array(count).fill(Infinity), before = new Int32Array(count), done = new Uint8Array(count);
  costs[start] = 0;
  for (let here = start; here !== end; ) {
    done[here] = 1;
    const z = codeOf(here);
    let next = end;
    for (let index = 0; index < count; index++) {
      if (done[index]) continue;
      const cost = costs[here] + measure(facts.codes, index, z) ** 6;
      if (cost < costs[index]) [costs[index], before[index]] = [cost, here];
      if (costs[index] < costs[next]) next = index;
    }
    here = next;
  }
  const path = [end];
  while (path[0] !== start) path.unshift(before[path[0]]);
  return path;
}
