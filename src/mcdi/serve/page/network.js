// A generated network, run in the browser: the operations that the server lists, on arrays of numbers.

const RUN = {
  convolve(x, { inputs: [channels, h, w], shape: [outputs, rows, columns], sizes: { kernel, stride, padding }, weight, bias }) {
    const y = new Float64Array(outputs * rows * columns);
    for (let o = 0, at = 0; o < outputs; o += 1) {
      for (let i = 0; i < rows; i += 1) {
        for (let j = 0; j < columns; j += 1, at += 1) {
          let sum = bias[o] ?? 0;
          for (let c = 0; c < channels; c += 1) {
            for (let a = 0; a < kernel; a += 1) {
              const row = i * stride + a - padding;
              if (row < 0 || row >= h) continue;
              for (let b = 0; b < kernel; b += 1) {
                const column = j * stride + b - padding;
                if (column >= 0 && column < w) {
                  sum += x[(c * h + row) * w + column] * weight[((o * channels + c) * kernel + a) * kernel + b];
                }
              }
            }
          }
          y[at] = sum;
        }
      }
    }
    return y;
  },

  pool(x, { inputs: [, h, w], shape: [channels, rows, columns], sizes: { kernel, maximum } }) {
    return new Float64Array(channels * rows * columns).map((_, at) => {
      const [c, i, j] = [Math.floor(at / (rows * columns)), Math.floor(at / columns) % rows, at % columns];
      let [sum, most] = [0, -Infinity];
      for (let a = 0; a < kernel; a += 1) {
        for (let b = 0; b < kernel; b += 1) {
          const value = x[(c * h + i * kernel + a) * w + j * kernel + b];
          sum += value;
          most = Math.max(most, value);
        }
      }
      return maximum ? most : sum / kernel ** 2;
    });
  },

  normalise(x, { inputs: [channels], sizes: { groups }, weight, bias, eps }) {
    const y = new Float64Array(x.length);
    const [size, pixels] = [x.length / groups, x.length / channels];
    for (let g = 0; g < groups; g += 1) {
      const group = x.subarray(g * size, (g + 1) * size);
      const mean = group.reduce((a, b) => a + b, 0) / size;
      const variance = group.reduce((a, b) => a + (b - mean) ** 2, 0) / size;
      group.forEach((value, i) => {
        const channel = Math.floor((g * size + i) / pixels);
        y[g * size + i] = ((value - mean) / Math.sqrt(variance + eps)) * weight[channel] + bias[channel];
      });
    }
    return y;
  },

  rectify: (x) => x.map((value) => Math.max(value, 0)),

  multiply(x, { shape: [outputs], weight, bias }) {
    return new Float64Array(outputs).map((_, o) => x.reduce((sum, value, i) => sum + value * weight[o * x.length + i], bias[o] ?? 0));
  },
};

// What every operation makes of an image, numbers in 0..1, channel after channel; the last are the logits.
export function activations(operations, image) {
  const made = [Float64Array.from(image)];
  for (const operation of operations) made.push(RUN[operation.kind](made[made.length - 1], operation));
  return made;
}

export function softmax(logits) {
  const most = Math.max(...logits);
  const powers = Array.from(logits, (v) => Math.exp(v - most));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((p) => p / sum);
}
