/* udse-fast in C: speech enhancement of streams, from samples to samples.
 *
 * Samples are float, full scale 1, frames of interleaved channels. Handles belong to one thread at a time; different
 * ones are independent. No function throws. Those that may run in a real-time thread say so: they allocate nothing,
 * take no lock and make no system call but, with a worker, the one that wakes it.
 */
#ifndef UDSE_H
#define UDSE_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32) && defined(UDSE_SHARED)
#ifdef UDSE_BUILDING
#define UDSE_API __declspec(dllexport)
#else
#define UDSE_API __declspec(dllimport)
#endif
#elif defined(__GNUC__)
#define UDSE_API __attribute__((visibility("default")))
#else
#define UDSE_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct udse_prior udse_prior;   /* checkpoints: about 10 MB for each network, shared by the streams */
typedef struct udse_stream udse_stream; /* chunks of any length in, what is ready out */
typedef struct udse_live udse_live;     /* as many frames out as in, with a fixed delay */

enum {
  UDSE_OK = 0,
  UDSE_INVALID = -1,  /* an argument that cannot be */
  UDSE_CAPACITY = -2, /* too little room for the output; nothing has happened */
  UDSE_FILE = -3,     /* a checkpoint that cannot be read, or is damaged */
  UDSE_MEMORY = -4,   /* no memory left */
  UDSE_STATE = -5     /* a saved state that is damaged, or of another stream */
};

typedef struct udse_error {
  int code;
  char text[252]; /* one line: what was expected, what came */
} udse_error;

/* Start from udse_default_options: `size` tells which fields the caller knows, 0 leaves a choice to the checkpoint. */
typedef struct udse_options {
  size_t size;
  uint32_t sample_rate;      /* 8000 to 1000000, default 16000 */
  uint32_t channels;         /* 1 to 64, default 1; enhanced one by one */
  uint64_t seed;             /* the same seed gives the same output */
  double max_attenuation_db; /* greatest attenuation of the noise; 0: no limit */
  uint32_t block_frames;     /* frames that are enhanced at once, 1 to 8: the latency */
  uint32_t steps, samples;   /* reverse steps and posterior samples: quality for time */
  uint32_t buffer_frames;    /* of udse_live: frames of time for a thread of its own; 0: the caller computes */
  uint32_t together;         /* signals that udse_process_many computes side by side, 3 MB each; 0: the channels */
  uint32_t sampler;          /* 0: UDSE_AMORTISED_DDRM where there is a posterior network, else UDSE_DDRM */
  uint32_t restraint;        /* UDSE_ON: speech that was taken for noise is given back; UDSE_OFF; 0 */
} udse_options;

enum {
  UDSE_DDRM = 1,           /* asks the prior alone */
  UDSE_AMORTISED_DDRM = 2, /* asks a posterior network too: less noise, less delay */
};

enum { UDSE_ON = 1, UDSE_OFF = 2 };

UDSE_API udse_options udse_default_options(void);
UDSE_API const char* udse_version(void);
/* Text of a code */
UDSE_API const char* udse_code_text(int64_t code);

/* All that open: null after an error, which is then described where `error` is not null. */
UDSE_API udse_prior* udse_read_prior(const char* path, udse_error* error);
UDSE_API udse_prior* udse_parse_prior(const void* bytes, size_t size, udse_error* error); /* bytes are copied */
/* A prior, and beside it a posterior network, which is told the recording; the latter may be null. */
UDSE_API udse_prior* udse_read_networks(const char* prior, const char* posterior, udse_error* error);
UDSE_API udse_prior* udse_parse_networks(const void* prior, size_t prior_size, const void* posterior,
                                         size_t posterior_size, udse_error* error);
/* Those that this library was built with, if any */
UDSE_API udse_prior* udse_embedded_prior(udse_error* error);
UDSE_API void udse_close_prior(udse_prior* prior); /* its streams go on; null is allowed here and in every close */

UDSE_API udse_stream* udse_open(const char* path, const udse_options* options, udse_error* error);
UDSE_API udse_stream* udse_open_with(const udse_prior* prior, const udse_options* options, udse_error* error);
/* One more stream that computes where `other` does: it takes half of the memory. Both then belong to one thread at a
 * time, and have the same sampler, block_frames, steps and samples; `together` is that of the first. */
UDSE_API udse_stream* udse_open_beside(const udse_stream* other, const udse_options* options, udse_error* error);
UDSE_API void udse_close(udse_stream* stream);

/* Real-time. Frames written, or a code below 0; `capacity` is the room of `out` in frames, at least udse_most(frames).
 * The output does not depend on how the input is cut. NaN and infinite samples count as silence. */
UDSE_API int64_t udse_process(udse_stream* stream, const float* in, int64_t frames, float* out, int64_t capacity);
/* What udse_process_many takes of a stream, and what it gives: as udse_process */
typedef struct udse_feed {
  udse_stream* stream;
  const float* in;
  int64_t frames;
  float* out;
  int64_t capacity;
  int64_t written; /* by the call */
} udse_feed;
/* Real-time. udse_process of streams that were opened beside each other, each of them once: the same samples, in less
 * time, as they are computed side by side. A code below 0: nothing has happened. */
UDSE_API int udse_process_many(udse_feed* feeds, size_t count);
/* Real-time. Frames that udse_process of so many gives, at most */
UDSE_API int64_t udse_most(const udse_stream* stream, int64_t frames);
/* Real-time. The rest of the signal: room for udse_remaining. In all as many frames came out as went in. */
UDSE_API int64_t udse_flush(udse_stream* stream, float* out, int64_t capacity);
UDSE_API int64_t udse_remaining(const udse_stream* stream);
UDSE_API int udse_reset(udse_stream* stream);
/* Real-time. Greatest attenuation of the noise from the next block on; 0: no limit */
UDSE_API int udse_set_max_attenuation(udse_stream* stream, double db);
/* Frames that must follow one before it is given, at most */
UDSE_API int64_t udse_latency(const udse_stream* stream);
/* Blocks whose computing broke down, and that were given as they came, 20 dB down */
UDSE_API int64_t udse_recovered_blocks(const udse_stream* stream);

/* Everything that the output to come depends on, for a stream with the same checkpoint and options, on a machine with
 * the same byte order. Bytes written, or a code below 0. */
UDSE_API int64_t udse_state_size(udse_stream* stream);
UDSE_API int64_t udse_save(udse_stream* stream, void* bytes, size_t size);
UDSE_API int udse_restore(udse_stream* stream, const void* bytes, size_t size);

UDSE_API udse_live* udse_open_live(const udse_prior* prior, const udse_options* options, udse_error* error);
UDSE_API void udse_close_live(udse_live* live);
/* Real-time. UDSE_OK or a code below 0; `in` and `out` may be the same. Output that is late is bridged by the noisy
 * input of the same moment, faded in and out. */
UDSE_API int udse_process_live(udse_live* live, const float* in, float* out, int64_t frames);
/* Real-time. Greatest attenuation of the noise from one of the next blocks on; 0: no limit */
UDSE_API int udse_live_set_max_attenuation(udse_live* live, double db);
/* Delay of the output in frames */
UDSE_API int64_t udse_live_latency(const udse_live* live);
/* Times that the output was late */
UDSE_API int64_t udse_live_missed(const udse_live* live);

#ifdef __cplusplus
}
#endif

#endif
