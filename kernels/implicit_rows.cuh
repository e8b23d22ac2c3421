// SPDX-License-Identifier: MIT
#pragma once
// The way out of the sub-pixel product with float sums where a tile holds all phases of its channels: one division for
// 32 units of 16 bytes.
#include "implicit.cuh"

// Every phase is here, so between two ends of a row of the batch a channel's samples are one run of memory. Lanes take
// 16-byte units of it, whole sectors together; pieces of 32 units, or of fewer where runs are short, go to the warps.
template <class T, int COLUMNS, int THREADS> CT_DEV void ct_store_rows(const ct_stage<T, COLUMNS, THREADS>& stage) {
  enum { OUT = 16 / sizeof(T), SECTOR = 32 / sizeof(T) };
  const ct_output<T>& output = stage.output;
  int columns;
  for (int column = 0; column < COLUMNS; column += columns) {
    ct_column first = ct_column_at(stage.line, column);
    if (!first.inside) return;
    columns = (int)min((i64)(COLUMNS - column), stage.line.first_u + stage.line.row_columns - first.u);
    int source = column * output.stride, length = columns * output.stride;
    i64 t = stage.sample(first.u, 0);
    int begin = (int)min(max(-t, 0ll), (i64)length), end = (int)min(max(output.l_out - t, 0ll), (i64)length);
    int units = (length + SECTOR - 1 + OUT - 1) / OUT;
    int team = units > 16 ? 32 : units > 8 ? 16 : 8, pieces = (units + team - 1) / team;
    for (int i = threadIdx.x / team; i < stage.rows.channels * pieces; i += THREADS / team) {
      int channel = i / pieces;
      T* run = stage.row(channel, first.n) + t;
      int askew = (int)(reinterpret_cast<u64>(run) / sizeof(T) % SECTOR);
      int e = (i % pieces * team + threadIdx.x % team) * OUT - askew;
      // adding -0 changes nothing
      float bias = output.bias ? ct_acc(ct_ld(output.bias + stage.rows.first_channel + channel)) : -0.f;
      float sums[OUT];
#pragma unroll
      for (int k = 0; k < OUT; ++k) {
        sums[k] = bias;
        if (e + k >= begin && e + k < end) sums[k] += ct_ld(stage.at(channel, source + e + k));
      }
      if (output.activation != CT_IDENTITY) {
#pragma unroll
        for (int k = 0; k < OUT; ++k) sums[k] = ct_activate(sums[k], output.activation, output.slope);
      }
      ct_unit<T> unit;
#pragma unroll
      for (int k = 0; k < OUT; ++k) unit.v[k] = ct_cvt<T>(sums[k]);
      if (e >= begin && e + OUT <= end) {
        ct_st16(run + e, unit);
      } else {
#pragma unroll
        for (int k = 0; k < OUT; ++k)
          if (e + k >= begin && e + k < end) ct_st(run + e + k, unit.v[k]);
      }
    }
  }
}
