// SPDX-License-Identifier: MIT
#pragma once
// The way out of the sub-pixel product where a tile holds all phases of its channels: one division for 32 units of 16
// bytes, and every bank met once.
#include "implicit_stage.cuh"

// Columns of a row that are worth a loop of their own.
enum { CT_LEAST_RUN = 24 };

// A thread's 16 bytes of samples, from sample e of a channel on: sums of consecutive banks, 16 bytes at a time; of two
// such units, half of the lanes begin with the second.
template <class T, int COLUMNS, int THREADS>
CT_DEV void ct_take_unit(ct_acc_t<T> (&values)[16 / sizeof(T)], const ct_stage<T, COLUMNS, THREADS>& stage, int channel,
                         int e) {
  typedef ct_acc_t<T> A;
  enum { OUT = 16 / sizeof(T), UNIT = 16 / sizeof(A) };
  int turn = OUT > UNIT ? threadIdx.x / 4 % 2 : 0;
  ct_unit<A> first = ct_ld16<A>(stage.at(channel, e + turn * UNIT)), second = first;
  if (OUT > UNIT) second = ct_ld16<A>(stage.at(channel, e + (1 - turn) * UNIT));
#pragma unroll
  for (int k = 0; k < OUT; ++k) values[k] = k / UNIT == turn ? first.v[k % UNIT] : second.v[k % UNIT];
}

// Every phase is here, so between two ends of a row of the batch a channel's samples are one run of memory. Pieces of
// 32 units of 16 bytes, or of fewer where runs are short, go to the warps, whole sectors together. Where the units of
// the run are units of shared memory too, a lane takes one of them; elsewhere lanes take consecutive samples, 4 bytes
// or more at a time. What the run has of a sector at either end leaves with the first piece, one sample a lane, unless
// the lanes take single samples anyway.
template <class T, int COLUMNS, int THREADS> CT_DEV void ct_store_rows(const ct_stage<T, COLUMNS, THREADS>& stage) {
  typedef ct_acc_t<T> A;
  enum { OUT = 16 / sizeof(T), UNIT = 16 / sizeof(A), SECTOR = 32 / sizeof(T), BANKS = 128 / sizeof(A) };
  enum { WIDTH = sizeof(T) == 2 ? 2 : 1, LEAST = 8 * WIDTH };
  const ct_output<T>& output = stage.output;
  int columns;
  for (int column = 0; column < COLUMNS; column += columns) {
    ct_column first_column = ct_column_at(stage.line, column);
    if (!first_column.inside) return;
    columns = (int)min((i64)(COLUMNS - column), stage.line.first_u + stage.line.row_columns - first_column.u);
    int source = column * output.stride, length = columns * output.stride;
    i64 t = stage.sample(first_column.u, 0);
    int begin = (int)min(max(-t, 0ll), (i64)length), end = (int)min(max(output.l_out - t, 0ll), (i64)length);
    int units = (length + (WIDTH == 1 ? SECTOR - 1 : 0) + OUT - 1 + (stage.spread.pad ? BANKS : 0)) / OUT;
    int team = units * WIDTH > 16 ? 32 : units > 8 ? 16 : LEAST, pieces = (units + team - 1) / team;
    int rank = threadIdx.x % team;
    for (int i = threadIdx.x / team; i < stage.rows.channels * pieces; i += THREADS / team) {
      int channel = i / pieces;
      T* run = stage.row(channel, first_column.n) + t;
      int askew = (int)(reinterpret_cast<u64>(run) / sizeof(T) % SECTOR);
      bool alike = (source + SECTOR - askew) % UNIT == 0, ends = alike || WIDTH == 2;
      // from a sector's first sample on; if the ends are apart, [first, last) are whole ones
      int first = (begin + askew + (ends ? SECTOR - 1 : 0)) / SECTOR * SECTOR - askew;
      int last = ends ? max(first, (end + askew) / SECTOR * SECTOR - askew) : end;
      int base = first + i % pieces * team * OUT;
      // no 32 units across a gap between lines
      int ahead = (source + base) & (BANKS - 1);
      if (stage.spread.pad && ahead % OUT == 0) base -= ahead;
      // of sample k: its place, if lanes take units or else WIDTH consecutive samples
      int unit = base + rank * OUT;
      A values[OUT];
      if (alike) {
        if (unit >= first && unit < last) ct_take_unit(values, stage, channel, source + unit);
      } else {
        // half of the lanes begin in odd banks
        int turn = WIDTH == 2 ? (threadIdx.x / 16 + source + base) & 1 : 0;
#pragma unroll
        for (int k = 0; k < OUT; ++k) {
          int e = base + (k / WIDTH * team + rank) * WIDTH + (k % WIDTH ^ turn);
          values[k] = e >= max(first, begin) && e < last ? ct_ld<A>(stage.at(channel, source + e)) : ct_zero<A>();
        }
#pragma unroll
        for (int k = 0; k + 1 < OUT; k += WIDTH) {
          if (WIDTH == 1 || !turn) continue;
          A later = values[k];
          values[k] = values[k + 1], values[k + 1] = later;
        }
      }
      if (output.bias) {
        A bias = ct_acc(ct_ld(output.bias + stage.rows.first_channel + channel));
#pragma unroll
        for (int k = 0; k < OUT; ++k) values[k] = ct_add(values[k], bias);
      }
      if (output.activation != CT_IDENTITY) {
#pragma unroll
        for (int k = 0; k < OUT; ++k) values[k] = ct_activate(values[k], output.activation, output.slope);
      }
      if (alike) {
        if (unit >= first && unit < last) ct_put_unit(run + unit, values, output.beta);
      } else {
#pragma unroll
        for (int k = 0; k < OUT; k += WIDTH) {
          int e = base + (k / WIDTH * team + rank) * WIDTH;
          if (e < max(first, begin) || e >= last) continue;
          if constexpr (WIDTH == 2) {
            u32* target = reinterpret_cast<u32*>(run + e);
            u32 pair = output.beta != 0 ? ct_ld(target) : 0;
            T two[2];
            memcpy(two, &pair, 4);
#pragma unroll
            for (int v = 0; v < 2; ++v) {
              if (output.beta != 0) values[k + v] = ct_blend(values[k + v], ct_acc(two[v]), output.beta);
              two[v] = ct_cvt<T>(values[k + v]);
            }
            memcpy(&pair, two, 4);
            ct_st(target, pair);
          } else {
            ct_st(run + e, ct_cvt<T>(ct_blend_with(values[k], run + e, output.beta)));
          }
        }
      }
      if (!ends || i % pieces || (first == begin && last == end)) continue;
#pragma unroll 1
      for (int k = rank; k < 2 * SECTOR; k += team) {
        int e = k < SECTOR ? first - SECTOR + k : last - SECTOR + k;
        if (e >= begin && e < end) stage.put(run + e, ct_ld<A>(stage.at(channel, source + e)), channel);
      }
    }
  }
}

// The way that the tile and the rows of the batch allow. Halves leave by units where rows are short and where tiles
// hold some of the phases; of larger types single samples fill sectors as well.
template <class T, int COLUMNS, int THREADS>
CT_DEV void ct_store(const ct_stage<T, COLUMNS, THREADS>& stage, bool runs) {
  bool whole = runs && stage.rows.phases == stage.output.stride;
  if constexpr (sizeof(T) == 2) {
    if (whole && stage.line.row_columns >= CT_LEAST_RUN)
      ct_store_rows(stage);
    else if (runs)
      stage.store_runs();
    else
      stage.store_scattered();
  } else {
    if (whole)
      ct_store_rows(stage);
    else
      stage.store_scattered();
  }
}
