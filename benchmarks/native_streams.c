/* Streams of udse.h on one core: memory, time of blocks, how many fit into real time, hours of audio.
 *
 * native_streams PRIOR POSTERIOR SPEECH.f32 [SECONDS of audio [SECONDS live [HOURS of audio]]]
 * SPEECH.f32: raw float samples at 16 kHz, a few seconds of noisy speech. Run it on a core that has nothing else to do:
 * taskset -c 1 native_streams ...
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "udse.h"

enum { RATE = 16000, CHUNK = 160, MOST_STREAMS = 8 };

static float* speech;
static int64_t speech_frames;

static double now(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Of this process, MB */
static double resident(void) {
  long pages = 0, ignored;
  FILE* const file = fopen("/proc/self/statm", "r");
  if (!file || fscanf(file, "%ld %ld", &ignored, &pages) != 2) pages = 0;
  if (file) fclose(file);
  return (double)pages * 4096e-6;
}

static void* checked(void* opened, const udse_error* error) {
  if (opened) return opened;
  fprintf(stderr, "native_streams: %s\n", error->text);
  exit(1);
}

static void read_speech(const char* path) {
  FILE* const file = fopen(path, "rb");
  if (!file || fseek(file, 0, SEEK_END)) exit((perror(path), 1));
  speech_frames = ftell(file) / (long)sizeof *speech / CHUNK * CHUNK;
  rewind(file);
  speech = malloc((size_t)speech_frames * sizeof *speech);
  if (!speech || fread(speech, sizeof *speech, (size_t)speech_frames, file) != (size_t)speech_frames) exit(1);
  fclose(file);
}

static int ascending(const void* a, const void* b) {
  const double x = *(const double*)a, y = *(const double*)b;
  return (x > y) - (x < y);
}

/* Every block as a callback sees it, in chunks of 10 ms: by the clock, and without the time of other programs */
static void blocks(const udse_prior* prior, double seconds) {
  udse_error error;
  const udse_options options = udse_default_options();
  udse_stream* const stream = checked(udse_open_with(prior, &options, &error), &error);
  const int64_t chunks = (int64_t)(seconds * RATE / CHUNK), room = udse_most(stream, CHUNK);
  double* const times[2] = {malloc((size_t)chunks * sizeof(double)), malloc((size_t)chunks * sizeof(double))};
  float* const out = malloc((size_t)room * sizeof *out);
  const clockid_t clocks[2] = {CLOCK_MONOTONIC, CLOCK_PROCESS_CPUTIME_ID};
  int64_t count = 0, block = 0;
  double total[2] = {0, 0};
  for (int64_t i = 0; i < chunks; ++i) {
    const double started[2] = {now(clocks[0]), now(clocks[1])};
    const int64_t n = udse_process(stream, speech + i * CHUNK % speech_frames, CHUNK, out, room);
    for (int k = 0; k < 2; ++k) {
      const double taken = now(clocks[k]) - started[k];
      total[k] += taken;
      if (n > 0) times[k][count] = 1000 * taken;
    }
    if (n > 0) ++count;
    block = n > block ? n : block;
  }
  puts(
      "| one stream, default settings | audio, s | real-time factor | block, ms | median, ms | 99 % | 99.9 % | longest "
      "|");
  puts("| --- | --- | --- | --- | --- | --- | --- | --- |");
  for (int k = 0; k < 2; ++k) {
    double* const t = times[k];
    qsort(t, (size_t)count, sizeof *t, ascending);
    printf("| %s | %.0f | %.3f | %.1f | %.1f | %.1f | %.1f | %.1f |\n",
           k ? "time of the processor" : "time by the clock", seconds, total[k] / seconds, 1000. * (double)block / RATE,
           t[count / 2], t[count * 99 / 100], t[count * 999 / 1000], t[count - 1]);
    free(t);
  }
  puts("");
  fflush(stdout);
  free(out);
  udse_close(stream);
}

/* In step with the clock, with a worker that has one block of time */
static void live(const udse_prior* prior, double seconds) {
  udse_error error;
  udse_options options = udse_default_options();
  options.buffer_frames = 512;
  udse_live* const stream = checked(udse_open_live(prior, &options, &error), &error);
  float out[CHUNK];
  const double started = now(CLOCK_MONOTONIC);
  for (int64_t i = 0; i < (int64_t)(seconds * RATE / CHUNK); ++i) {
    const double wait = started + (double)(i * CHUNK) / RATE - now(CLOCK_MONOTONIC);
    if (wait > 0) nanosleep(&(struct timespec){(time_t)wait, (long)(1e9 * (wait - (double)(time_t)wait))}, NULL);
    udse_process_live(stream, speech + i * CHUNK % speech_frames, out, CHUNK);
  }
  printf("Live for %.0f s, with one block of time for the worker: the output was late %lld times.\n\n", seconds,
         (long long)udse_live_missed(stream));
  fflush(stdout);
  udse_close_live(stream);
}

/* So many streams beside each other in turn and together, a second at a time; the fastest second of the processor
 * counts. */
static void many(const udse_prior* prior, int streams, uint32_t together, double* alone, double* shared) {
  udse_error error;
  udse_options options = udse_default_options();
  options.together = together;
  udse_feed feeds[MOST_STREAMS];
  for (int i = 0; i < streams; ++i) {
    options.seed = (uint64_t)i;
    udse_stream* const stream = checked(
        i ? udse_open_beside(feeds[0].stream, &options, &error) : udse_open_with(prior, &options, &error), &error);
    const int64_t room = udse_most(stream, RATE);
    feeds[i] = (udse_feed){stream, speech + (i * 5 * RATE / 7) % (speech_frames - RATE),
                           RATE,   malloc((size_t)room * sizeof(float)),
                           room,   0};
  }
  *alone = *shared = 1e9;
  for (int round = 0; round < 8; ++round) {
    const double started = now(CLOCK_PROCESS_CPUTIME_ID);
    if (round % 2)
      udse_process_many(feeds, (size_t)streams);
    else
      for (int i = 0; i < streams; ++i)
        udse_process(feeds[i].stream, feeds[i].in, RATE, feeds[i].out, feeds[i].capacity);
    const double taken = now(CLOCK_PROCESS_CPUTIME_ID) - started;
    double* const least = round % 2 ? shared : alone;
    if (taken < *least) *least = taken;
  }
  for (int i = 0; i < streams; ++i) {
    udse_close(feeds[i].stream);
    free(feeds[i].out);
  }
}

static void soak(const udse_prior* prior, double hours) {
  udse_error error;
  udse_options options = udse_default_options();
  options.steps = options.samples = 1;
  udse_stream* const stream = checked(udse_open_with(prior, &options, &error), &error);
  const int64_t room = udse_most(stream, RATE), seconds = (int64_t)(3600 * hours);
  float* const out = malloc((size_t)room * sizeof *out);
  double before = 0;
  int64_t given = 0;
  for (int64_t i = 0; i < seconds; ++i) {
    given += udse_process(stream, speech + i * CHUNK * 7 % (speech_frames - RATE), RATE, out, room);
    if (i == seconds / 10) before = resident();
  }
  printf(
      "%g hours of audio, one step and one sample: memory grew by %.2f MB after the first tenth; %lld blocks broke "
      "down; %lld frames came out of %lld.\n",
      hours, resident() - before, (long long)udse_recovered_blocks(stream), (long long)given,
      (long long)(seconds * RATE));
  free(out);
  udse_close(stream);
}

static void memory(const char* prior_path, const char* posterior_path) {
  udse_error error;
  const udse_options options = udse_default_options();
  udse_stream* streams[9];
  float out[2 * RATE];
  double first = 0;
  const double started = now(CLOCK_MONOTONIC);
  udse_prior* const prior = checked(udse_read_networks(prior_path, posterior_path, &error), &error);
  streams[0] = checked(udse_open_with(prior, &options, &error), &error);
  const double opening = now(CLOCK_MONOTONIC) - started;
  for (int i = 0; i < 9; ++i) {
    if (i) streams[i] = checked(udse_open_beside(streams[0], &options, &error), &error);
    udse_process(streams[i], speech, RATE, out, 2 * RATE);
    if (!i) first = resident();
  }
  printf(
      "A stream opens in %.0f ms, the checkpoints read from the disk's cache. Resident memory: %.1f MB with one "
      "stream, "
      "%.2f MB more for each further one beside it.\n\n",
      1000 * opening, first, (resident() - first) / 8);
  for (int i = 0; i < 9; ++i) udse_close(streams[i]);
  udse_close_prior(prior);
}

int main(int argc, char** argv) {
  if (argc < 4) return 2;
  const double seconds = argc > 4 ? atof(argv[4]) : 600, live_seconds = argc > 5 ? atof(argv[5]) : 60;
  const double hours = argc > 6 ? atof(argv[6]) : 0;
  double load = 0;
  if (getloadavg(&load, 1) == 1) printf("Load average at the start: %.1f.\n\n", load);
  read_speech(argv[3]);
  memory(argv[1], argv[2]);
  udse_error error;
  udse_prior* const prior = checked(udse_read_networks(argv[1], argv[2], &error), &error);
  if (seconds > 0) blocks(prior, seconds);
  if (live_seconds > 0) live(prior, live_seconds);
  puts("| streams | of them side by side | in turn, s per s | together, s per s | together / in turn | in real time |");
  puts("| --- | --- | --- | --- | --- | --- |");
  for (int streams = 2; streams <= MOST_STREAMS; streams *= 2)
    for (uint32_t together = 2; together <= (uint32_t)streams; together *= 2) {
      double alone, shared;
      many(prior, streams, together, &alone, &shared);
      printf("| %d | %u | %.3f | %.3f | %.2f | %.1f |\n", streams, together, alone, shared, shared / alone,
             streams / shared);
      fflush(stdout);
    }
  puts("");
  if (hours > 0) soak(prior, hours);
  udse_close_prior(prior);
}
