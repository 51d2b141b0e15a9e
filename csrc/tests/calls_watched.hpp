// Counts allocations and locks between two moments: what a real-time thread must not do.
#pragma once

// Whether this build can count: sanitizers and other C libraries bring their own allocator.
extern const bool calls_are_watched;

struct WatchedCalls {
  long allocations, locks;
};

// Since the last call, of this thread
void start_watching();
WatchedCalls stop_watching();
