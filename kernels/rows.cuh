// SPDX-License-Identifier: MIT
#pragma once
// Rows between global and shared memory: 16-byte units where the row is aligned; elsewhere single elements, warps
// starting at cache lines, so that no sector is asked for twice. `rank` of `team` threads work on one row.
#include "types.cuh"

// How many elements into its cache line a row starts.
template <class T> CT_DEV int ct_line_shift(const T* row) {
  return (int)(reinterpret_cast<u64>(row) / sizeof(T) % (128 / sizeof(T)));
}

// Copies elements [first, last) of a row of `width` to shared memory and zeroes the others.
template <class X>
CT_DEV void ct_load_row(X* tile, const X* row, int width, int first, int last, int rank, int team) {
  enum { UNIT = 16 / sizeof(X) };
  const X zero = ct_cvt<X>(ct_zero<ct_acc_t<X>>());
  if (ct_is_aligned16(row)) {
    for (int e = rank * UNIT; e < width; e += team * UNIT) {
      ct_unit<X> unit;
      if (e >= first && e + UNIT <= last) {
        unit = ct_ld16(row + e);
      } else {
#pragma unroll
        for (int i = 0; i < UNIT; ++i) unit.v[i] = e + i >= first && e + i < last ? ct_ld(row + e + i) : zero;
      }
      ct_st16(tile + e, unit);
    }
  } else {
    for (int e = rank - ct_line_shift(row); e < width; e += team)
      if (e >= 0) ct_st(tile + e, e >= first && e < last ? ct_ld(row + e) : zero);
  }
}

// A staging area that permutes 16-byte units inside aligned groups of eight. Lanes that write units `pitch` apart,
// pitch = odd * 2^shift, then meet eight different bank groups; consecutive units stay conflict-free. An odd pitch
// needs none, and single elements get none. `memory` is 128-byte aligned.
template <class Y> struct ct_unit_stage {
  enum { UNIT = 16 / sizeof(Y) };
  Y* data;
  int shift, mask;

  CT_DEV ct_unit_stage(unsigned char* memory, int pitch, bool whole_units)
      : data(reinterpret_cast<Y*>(memory)), shift(__ffs(pitch) - 1), mask(whole_units && pitch % 2 == 0 ? 7 : 0) {}
  CT_DEV Y* at(int e) const {
    int unit = e / UNIT;
    return data + (unit ^ (unit >> shift & mask)) * UNIT + e % UNIT;
  }
};

// Writes `count` staged elements, from `source` on, to consecutive addresses.
template <class Y>
CT_DEV void ct_store_run(Y* run, const ct_unit_stage<Y>& stage, int source, int count, int rank, int team) {
  enum { UNIT = 16 / sizeof(Y) };
  if (ct_is_aligned16(run) && source % UNIT == 0) {
    int units = count / UNIT;
    for (int u = rank; u < units; u += team) ct_st16(run + u * UNIT, ct_ld16<Y>(stage.at(source + u * UNIT)));
    for (int e = units * UNIT + rank; e < count; e += team) ct_st(run + e, ct_ld<Y>(stage.at(source + e)));
  } else {
    for (int e = rank - ct_line_shift(run); e < count; e += team)
      if (e >= 0) ct_st(run + e, ct_ld<Y>(stage.at(source + e)));
  }
}

// The same of samples that are staged unrounded, because beta times what is there is added first.
template <class Y>
CT_DEV void ct_blend_run(Y* run, const ct_unit_stage<ct_acc_t<Y>>& stage, int source, int count, int rank, int team,
                         double beta) {
  for (int e = rank - ct_line_shift(run); e < count; e += team)
    if (e >= 0) ct_st(run + e, ct_cvt<Y>(ct_blend_with(ct_ld<ct_acc_t<Y>>(stage.at(source + e)), run + e, beta)));
}
