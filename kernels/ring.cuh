// SPDX-License-Identifier: MIT
#pragma once
// Buffers in shared memory that warps of one role fill and warps of another empty, in turn, by mbarriers of sm_90a.
#include "hopper.cuh"

// `full` opens when a buffer is written, `empty` when it may be written again. Each thread keeps its own place in the ring.
template <int STAGES, int BYTES> struct ct_ring {
  unsigned char* buffers;
  u64 *full, *empty;
  int stage, parity;

  CT_DEV ct_ring(unsigned char* buffers, unsigned char* barriers)
      : buffers(buffers), full(reinterpret_cast<u64*>(barriers)), empty(full + STAGES), stage(0), parity(0) {}
  CT_DEV void init(int writers, int readers) const {
    for (int i = 0; i < STAGES; ++i) {
      mbar_init(full + i, writers);
      mbar_init(empty + i, readers);
    }
  }
  CT_DEV unsigned char* buffer() const { return buffers + stage * BYTES; }
  CT_DEV void wait_full() const { mbar_wait(full + stage, parity); }
  CT_DEV void wait_empty() const { mbar_wait(empty + stage, parity ^ 1); }
  CT_DEV void advance() {
    if (++stage == STAGES) {
      stage = 0;
      parity ^= 1;
    }
  }
};
