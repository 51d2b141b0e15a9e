/* Enhances one channel of raw samples (32-bit floats) from standard input to standard output:
 *
 *     sox noisy.wav -t f32 - | enhance_raw causal.safetensors posterior_causal.safetensors 16000 |
 *         play -t f32 -r 16000 -
 */
#include <stdio.h>
#include <stdlib.h>

#include "udse.h"

enum { CHUNK = 480 };

int main(int argc, char** argv) {
  if (argc != 4) {
    fprintf(stderr, "usage: %s PRIOR.safetensors POSTERIOR.safetensors RATE < noisy.f32 > speech.f32\n", argv[0]);
    return 2;
  }
  udse_options options = udse_default_options();
  options.sample_rate = (uint32_t)strtoul(argv[3], NULL, 10);
  udse_error error;
  udse_prior* prior = udse_read_networks(argv[1], argv[2], &error);
  udse_stream* stream = prior ? udse_open_with(prior, &options, &error) : NULL;
  udse_close_prior(prior);
  if (!stream) {
    fprintf(stderr, "%s\n", error.text);
    return 2;
  }
  const int64_t room = udse_most(stream, CHUNK) + udse_latency(stream) + CHUNK;
  float* out = malloc((size_t)room * sizeof *out);
  float in[CHUNK];
  size_t frames;
  if (!out) return 2;
  while ((frames = fread(in, sizeof *in, CHUNK, stdin)) > 0) {
    const int64_t ready = udse_process(stream, in, (int64_t)frames, out, room);
    fwrite(out, sizeof *out, (size_t)ready, stdout);
  }
  fwrite(out, sizeof *out, (size_t)udse_flush(stream, out, room), stdout);
  free(out);
  udse_close(stream);
  return 0;
}
