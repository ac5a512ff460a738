// The model of the page that explore.py writes: both networks, the prior and the test images' codes, in plain
// JavaScript. The layers are run as the Keras model lists them. What is on the screen is in explorer_page.js.
"use strict";

const facts = JSON.parse(document.getElementById("facts").textContent); // what vae/explorer.py describes
const [height, width] = facts.encoder.layers[0].shape;
const [latents] = facts.decoder.layers[0].shape;
const { count } = facts; // test images

// ---- Arrays. All are in one compressed text. In `facts`, each is replaced by what its place in the text holds.

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(stream).arrayBuffer();
  const readers = {
    float16: (part) => Float32Array.from(new Uint16Array(part), fromHalf),
    float32: (part) => new Float32Array(part),
    uint16: (part) => new Uint16Array(part),
    uint8: (part) => new Uint8Array(part),
  };
  (function replace(object) {
    for (const [name, value] of Object.entries(object)) {
      if (value === null || typeof value !== "object") continue;
      if ("bytes" in value) object[name] = readers[value.type](buffer.slice(value.at, value.at + value.bytes));
      else replace(value);
    }
  })(facts);
}

function fromHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  return exponent ? sign * (1 + fraction / 1024) * 2 ** (exponent - 15) : sign * fraction * 2 ** -24;
}

// ---- Layers. A tensor is {shape, data}, of one image or latent vector; layer.shape is the shape of a layer's output.

const sigmoid = (x) => 1 / (1 + Math.exp(-x));
const softplus = (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
const relu = (x) => (x > 0 ? x : 0);
const ACTIVATIONS = { linear: null, relu, sigmoid, silu: (x) => x * sigmoid(x), softplus, tanh: Math.tanh };

const size = (shape) => shape.reduce((product, length) => product * length, 1);
const reshape = (layer, x) => ({ shape: layer.shape, data: x.data });
const apply = (f) => (layer, x) => ({ shape: layer.shape, data: x.data.map(f) });

function finish(layer, data) {
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
  BatchNormalization: affine, // vae/explorer.py makes mean and variance a scale and a shift
  ReLU: apply(relu),
  Log: apply(Math.log),
  Activation: (layer, x) => finish(layer, x.data),

  Multiply(layer, ...factors) { // numbers, and tensors of one shape
    const data = new Float32Array(size(layer.shape)).fill(1);
    for (const factor of factors) {
      data.forEach((_, i) => (data[i] *= typeof factor === "number" ? factor : factor.data[i]));
    }
    return { shape: layer.shape, data };
  },

  Dense(layer, x) { // over the last axis
    const depth = x.shape.at(-1), rows = x.data.length / depth, units = layer.shape.at(-1);
    return finish(layer, addProduct(repeat(layer.bias, rows, units), x.data, rows, depth, layer.kernel, units));
  },

  LSTM(layer, x) { // in Keras's order of the gates: input, forget, candidate, output
    const [steps, features] = x.shape, units = layer.shape.at(-1), four = 4 * units;
    const gates = addProduct(repeat(layer.bias, steps, four), x.data, steps, features, layer.kernel, four);
    const outputs = new Float32Array(steps * units), cell = new Float32Array(units);
    let h = new Float32Array(units);
    for (let step = 0; step < steps; step++) {
      const own = addProduct(gates.subarray(step * four, (step + 1) * four), h, 1, units, layer.recurrent_kernel, four);
      h = outputs.subarray(step * units, (step + 1) * units);
      for (let u = 0; u < units; u++) {
        cell[u] = sigmoid(own[units + u]) * cell[u] + sigmoid(own[u]) * Math.tanh(own[2 * units + u]);
        h[u] = sigmoid(own[3 * units + u]) * Math.tanh(cell[u]);
      }
    }
    return { shape: layer.shape, data: layer.return_sequences ? outputs : h };
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
    return finish(layer, out);
  },

  AveragePooling2D(layer, x) { // the mean of those places of a window that are inside the image
    const [rows, columns, channels] = x.shape, [outRows, outColumns] = layer.shape;
    const [poolRows, poolColumns] = layer.pool_size, [down, right] = layer.strides;
    const top = Math.max((outRows - 1) * down + poolRows - rows, 0) >> 1;
    const left = Math.max((outColumns - 1) * right + poolColumns - columns, 0) >> 1;
    const data = new Float32Array(size(layer.shape)).map((_, i) => {
      const place = Math.floor(i / channels), row = Math.floor(place / outColumns) * down - top;
      const column = (place % outColumns) * right - left;
      let sum = 0, inside = 0;
      for (let y = Math.max(row, 0); y < Math.min(row + poolRows, rows); y++) {
        for (let z = Math.max(column, 0); z < Math.min(column + poolColumns, columns); z++, inside++) {
          sum += x.data[(y * columns + z) * channels + (i % channels)];
        }
      }
      return sum / inside;
    });
    return { shape: layer.shape, data };
  },

  Permute(layer, x) {
    const steps = layer.dims.map((dim) => size(x.shape.slice(dim))); // in x, for each axis of the output
    const data = x.data.map((_, i) => {
      let from = 0;
      for (let axis = steps.length - 1, rest = i; axis >= 0; rest = Math.floor(rest / layer.shape[axis--])) {
        from += (rest % layer.shape[axis]) * steps[axis];
      }
      return x.data[from];
    });
    return { shape: layer.shape, data };
  },

  Concatenate(layer, ...parts) { // along the last axis
    const data = new Float32Array(size(layer.shape)), columns = layer.shape.at(-1);
    let start = 0;
    for (const part of parts) {
      const own = part.shape.at(-1);
      part.data.forEach((value, i) => (data[Math.floor(i / own) * columns + start + (i % own)] = value));
      start += own;
    }
    return { shape: layer.shape, data };
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
  return { mean, logVar };
}

function decode(z) { // the last layer is the sigmoid of the logits
  const outputs = run(facts.decoder, z), last = facts.decoder.layers.at(-1);
  return { pixels: outputs[last.name].data, logits: outputs[last.inputs[0]].data };
}

// ---- The prior: a mixture of Gaussians, or N(0, I)

const normal = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
const range = (length) => Array.from({ length }, (_, i) => i);

function choose(weights) { // an index, with a probability in proportion to its weight
  let rest = Math.random() * weights.reduce((sum, weight) => sum + weight, 0);
  return Math.max(0, weights.findIndex((weight) => (rest -= weight) < 0));
}

function logSumExp(terms) {
  const largest = terms.reduce((a, b) => Math.max(a, b));
  return largest + Math.log(terms.reduce((sum, term) => sum + Math.exp(term - largest), 0));
}

function priorTerms(z) { // for each component, the log of its weight times its density at z
  const { weights, means, factors } = facts.prior, white = new Float64Array(latents);
  return Float64Array.from(weights, (weight, component) => {
    let sum = Math.log(weight) - (latents / 2) * Math.log(2 * Math.PI);
    for (let i = 0; i < latents; i++) { // solve factor * white = z - mean, from the top
      const at = (component * latents + i) * latents;
      let rest = z[i] - means[component * latents + i];
      for (let j = 0; j < i; j++) rest -= factors[at + j] * white[j];
      white[i] = rest / factors[at + i];
      sum -= white[i] ** 2 / 2 + Math.log(factors[at + i]);
    }
    return sum;
  });
}

function drawPrior(weights = facts.prior?.weights) {
  const noise = Float32Array.from({ length: latents }, normal);
  if (!facts.prior) return noise;
  const component = choose(weights), { means, factors } = facts.prior;
  return noise.map((_, i) => {
    const at = component * latents + i;
    return noise.reduce((sum, value, j) => sum + factors[at * latents + j] * value, means[at]);
  });
}

// p(label | z): from the prior, where it knows labels; else the share of each among the 20 nearest test images
function labelShares(z) {
  const shares = new Float64Array(facts.names.length), known = facts.prior?.shares;
  if (known) {
    const terms = priorTerms(z), all = logSumExp(terms);
    terms.forEach((term, component) => {
      const weight = Math.exp(term - all);
      shares.forEach((_, label) => (shares[label] += weight * known[component * shares.length + label]));
    });
  } else if (facts.classes) {
    const nearest = findNearest(facts.codes, z, 20);
    for (const { index } of nearest) shares[facts.classes[index]] += 1 / nearest.length;
  }
  return shares;
}

// z of a label: from the prior, again where p(label | z) is below 0.9 (the surest draw stays); without labels in the
// prior the code of a test image with that label
function drawLabel(label) {
  const { prior, names, classes } = facts;
  if (!prior?.shares) return codeOf(choose(classes.map((own) => own === label)));
  const weights = prior.weights.map((weight, i) => weight * prior.shares[i * names.length + label]);
  let surest = null, most = -1;
  for (let tries = 0; tries < 11 && most < 0.9; tries++) {
    const z = drawPrior(weights), sure = labelShares(z)[label];
    if (sure > most) [surest, most] = [z, sure];
  }
  return surest;
}

// ---- What an image costs, in nats: means over eight codes. Every other code has the noise of the one before it with
// the sign changed, which cancels most of the error.

function read(image) {
  const { mean, logVar } = encode(image), { noise, prior } = facts, codes = (2 * noise.length) / latents;
  let reconstruction = 0, logPrior = 0;
  for (let code = 0; code < codes; code++) {
    const own = noise.subarray((code >> 1) * latents), sign = code % 2 ? -1 : 1;
    const z = mean.map((value, i) => value + sign * Math.exp(logVar[i] / 2) * own[i]);
    reconstruction += measureReconstruction(image, decode(z)) / codes;
    if (prior) logPrior += logSumExp(priorTerms(z)) / codes;
  }
  const kl = prior
    ? logVar.reduce((sum, value) => sum - (value + 1 + Math.log(2 * Math.PI)) / 2, -logPrior)
    : logVar.reduce((sum, value, i) => sum + (mean[i] ** 2 + Math.exp(value) - value - 1) / 2, 0);
  return { image, mean, logVar, reconstruction, kl, pixels: decode(mean).pixels, shares: labelShares(mean) };
}

function measureReconstruction(image, { logits, pixels }) { // -log p(x | z), of Bernoulli or Gaussian pixels
  const { variance } = facts;
  if (!variance) return logits.reduce((sum, logit, i) => sum + softplus(logit) - image[i] * logit, 0);
  const constant = Math.log(2 * Math.PI * variance);
  return pixels.reduce((sum, pixel, i) => sum + ((image[i] - pixel) ** 2 / variance + constant) / 2, 0);
}

// ---- The map: a place in the unit square for each test image's code

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
  const weights = order.map((index) => (edge / (lengths[index] + 1e-6) - 1 + 1e-6) ** 2);
  const sum = weights.reduce((a, b) => a + b);
  return order.map((index, i) => ({ index, weight: weights[i] / sum }));
}

function average(neighbours, rowOf) {
  return rowOf(0).map((_, i) => neighbours.reduce((sum, { index, weight }) => sum + weight * rowOf(index)[i], 0));
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
  const sum = close.reduce((total, { weight }) => total + weight, 0);
  return average(close, spotOf).map((value) => value / sum);
}

// A way from one test image to another over images that are alike: the shortest path (Dijkstra, 1959), where a step
// costs the sixth power of its length in latent space, so that many short steps are better than a long one.
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
