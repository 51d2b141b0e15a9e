// Draws spectrograms: 128 bands up to 8 kHz or half the rate, in decibels.
const SIZE = 256, BANDS = 128;
const WINDOW = Float32Array.from({ length: SIZE }, (_, n) => Math.sin((Math.PI * n) / SIZE) ** 2);

// Transform of SIZE numbers in place, (real, imaginary)
function transform(re, im) {
  for (let i = 1, j = 0; i < SIZE; ++i) {
    let bit = SIZE >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) [re[i], re[j]] = [re[j], re[i]];
  }
  for (let length = 2; length <= SIZE; length *= 2) {
    for (let k = 0; k < length / 2; ++k) {
      const c = Math.cos((2 * Math.PI * k) / length), s = -Math.sin((2 * Math.PI * k) / length);
      for (let a = k; a < SIZE; a += length) {
        const b = a + length / 2, x = c * re[b] - s * im[b], y = c * im[b] + s * re[b];
        (re[b] = re[a] - x), (im[b] = im[a] - y), (re[a] += x), (im[a] += y);
      }
    }
  }
}

// Of samples at `rate`; a column of pixels is a frame
async function drawSpectrogram(samples, rate, canvas) {
  const step = Math.max(1, Math.floor(rate / 16000)), image = new ImageData(canvas.width, BANDS);
  const re = new Float32Array(SIZE), im = new Float32Array(SIZE);
  for (let x = 0; x < canvas.width; ++x) {
    const start = Math.floor((x * Math.max(0, samples.length - SIZE * step)) / canvas.width);
    for (let n = 0; n < SIZE; ++n) (re[n] = WINDOW[n] * (samples[start + n * step] || 0)), (im[n] = 0);
    transform(re, im);
    for (let band = 0; band < BANDS; ++band) {
      const level = Math.max(0, 1 + Math.log10((re[band] ** 2 + im[band] ** 2) / 10 + 1e-9) / 4.5);
      const colour = [255 * level, 255 * level ** 2, 160 * level * (1 - level), 255];
      image.data.set(colour, 4 * ((BANDS - 1 - band) * canvas.width + x));
    }
  }
  canvas.getContext("2d").drawImage(await createImageBitmap(image), 0, 0, canvas.width, canvas.height);
}
