// SPDX-License-Identifier: MIT
#pragma once
// The way out of the sub-pixel product: sums in shared memory, of which phases interleave to runs of samples.
#include "implicit.cuh"

// 16 bytes of samples, which have had all but beta.
template <class T> CT_DEV void ct_put_unit(T* samples, ct_acc_t<T> (&values)[16 / sizeof(T)], double beta) {
  enum { OUT = 16 / sizeof(T) };
  ct_unit<T> unit;
  if (beta != 0) {
    unit = ct_ld16(samples);
#pragma unroll
    for (int k = 0; k < OUT; ++k) values[k] = ct_blend(values[k], ct_acc(unit.v[k]), beta);
  }
#pragma unroll
  for (int k = 0; k < OUT; ++k) unit.v[k] = ct_cvt<T>(values[k]);
  ct_st16(samples, unit);
}

template <class T> struct ct_output {
  T* out;  // first channel of the group
  const T* bias;
  i64 stride_n, stride_c, l_out, p_left;
  int stride, dilation, kernel_size, tap_step, inverse;  // inverse: of d/c modulo s/c
  int activation;
  double slope, beta;
};

// Columns of the sums on their way out. Where columns share banks however their rows lie, their phases being a multiple
// of twice the rows at once, `pad` elements are left out after as many columns as fill whole lines of 128 bytes.
template <class A> struct ct_columns {
  enum { BANKS = 128 / sizeof(A) };
  int phase_tile, pad, shift;

  // at_once: rows that a warp stores at once; 0 if only whole units are stored
  CT_DEV ct_columns(int phase_tile, int at_once) : phase_tile(phase_tile) {
    int power = phase_tile & -phase_tile;
    pad = at_once && power >= 2 * at_once ? at_once : 0;
    shift = power < BANKS ? __ffs(BANKS / power) - 1 : 0;
  }
  // elements from a tile's first column to another, or from any to one that is a multiple of 4 columns further
  CT_DEV int step(int columns) const { return columns * phase_tile + (columns >> shift) * pad; }
  // to element e of a run of columns by phases
  CT_DEV int place(int e) const { return e + (pad ? e / (phase_tile << shift) * pad : 0); }
};

// Sums of one block on their way out: for each channel, `pitch` apart, a run of columns by phases, which is a run of
// samples when the phases are all there. The pitch comes from the planner, and everything is a multiple of 16 bytes.
template <class T, int COLUMNS, int THREADS> struct ct_stage {
  typedef ct_acc_t<T> A;
  enum { OUT = 16 / sizeof(T), UNIT = 16 / sizeof(A), SECTOR = 32 / sizeof(T) };
  A* sums;
  int pitch;
  ct_columns<A> spread;
  ct_output<T> output;
  ct_line line;
  ct_rows rows;

  CT_DEV A* at(int channel, int e) const { return sums + channel * pitch + spread.place(e); }
  CT_DEV int run() const { return COLUMNS * rows.phase_tile; }
  // Sums of one part of the contraction, for implicit_finish: the tile's channels by runs, in 16-byte units.
  CT_DEV void store_part(A* part) const {
    bool whole = rows.phases == rows.phase_tile;
    int units = run() / UNIT;
    for (int e = threadIdx.x; e < rows.channels * units; e += THREADS) {
      int channel = e / units, first = e % units * UNIT;
      ct_unit<A> unit;
      if (whole) {
        unit = ct_ld16<A>(at(channel, first));
      } else {
#pragma unroll
        for (int k = 0; k < UNIT; ++k)
          unit.v[k] = (first + k) % rows.phase_tile < rows.phases ? ct_ld<A>(at(channel, first + k)) : ct_zero<A>();
      }
      ct_st16(part + e * UNIT, unit);
    }
  }
  // Back from there: the sums of all parts, added in ascending order.
  CT_DEV void load_parts(const A* part, i64 part_stride, int parts) const {
    int units = run() / UNIT;
    for (int e = threadIdx.x; e < rows.channels * units; e += THREADS) {
      ct_unit<A> total = ct_ld16(part + e * UNIT);
#pragma unroll 8
      for (int p = 1; p < parts; ++p) {
        ct_unit<A> unit = ct_ld16(part + p * part_stride + e * UNIT);
#pragma unroll
        for (int k = 0; k < UNIT; ++k) total.v[k] = ct_add(total.v[k], unit.v[k]);
      }
      ct_st16(at(e / units, e % units * UNIT), total);
    }
  }
  CT_DEV T* row(int channel, int n) const {
    return output.out + n * output.stride_n + (rows.first_channel + channel) * output.stride_c;
  }
  CT_DEV i64 sample(i64 u, int phase) const { return u * output.stride + (i64)phase * output.dilation - output.p_left; }
  CT_DEV A finish(A sum, int channel) const {
    if (output.bias) sum = ct_add(sum, ct_acc(ct_ld(output.bias + rows.first_channel + channel)));
    return ct_activate(sum, output.activation, output.slope);
  }
  // one sample on its way to memory
  CT_DEV void put(T* sample, A sum, int channel) const {
    ct_st(sample, ct_cvt<T>(ct_blend_with(finish(sum, channel), sample, output.beta)));
  }

  // Every phase is a residue of its own, in order: 16-byte units of memory, from a whole sector on. Units that are not
  // all there, or lie askew because the tile spans two rows, go element by element.
  CT_DEV void store_runs() const {
    int total = run(), units = (total + 2 * SECTOR - 2) / SECTOR * (SECTOR / OUT);
    for (int e = threadIdx.x; e < rows.channels * units; e += THREADS) {
      int channel = e / units, first = e % units * OUT - askew(channel);
      int c = max(first, 0) / rows.phase_tile, phase = max(first, 0) % rows.phase_tile;
      ct_column column = ct_column_at(line, c);
      i64 t = sample(column.u, rows.first_phase + phase);
      T* p = row(channel, column.n) + t;
      bool there = first >= 0 && first + OUT <= total && column.inside && t >= 0 && t + OUT <= output.l_out;
      // a row's last column holds its last sample, so samples below l_out are of one row
      int end = rows.phases == output.stride ? total : rows.phases;
      if (there && phase + OUT <= end && ct_is_aligned16(p)) {
        A values[OUT];
        if (first % UNIT == 0) {
#pragma unroll
          for (int k = 0; k < OUT; k += UNIT) {
            ct_unit<A> part = ct_ld16<A>(at(channel, first + k));
#pragma unroll
            for (int v = 0; v < UNIT; ++v) values[k + v] = part.v[v];
          }
        } else {
#pragma unroll
          for (int k = 0; k < OUT; ++k) values[k] = ct_ld<A>(at(channel, first + k));
        }
#pragma unroll
        for (int k = 0; k < OUT; ++k) values[k] = finish(values[k], channel);
        ct_put_unit(p, values, output.beta);
      } else {
        for (int k = max(first, 0); k < min(first + OUT, total); ++k) store_one(channel, k);
      }
    }
  }
  // samples from a sector of memory to the channel's first one
  CT_DEV int askew(int channel) const {
    u64 address = reinterpret_cast<u64>(row(channel, line.n)) / sizeof(T);
    return (int)((address + (u64)sample(line.first_u + line.v, rows.first_phase)) % SECTOR);
  }
  CT_DEV void store_one(int channel, int e) const {
    int phase = e % rows.phase_tile;
    ct_column column = ct_column_at(line, e / rows.phase_tile);
    i64 t = sample(column.u, rows.first_phase + phase);
    if (phase < rows.phases && column.inside && t >= 0 && t < output.l_out)
      put(row(channel, column.n) + t, ct_ld<A>(at(channel, e)), channel);
  }

  // Dilated taps, or residues without any: sample by sample; the first phase tile also writes the residues without
  // taps.
  CT_DEV void store_scattered() const {
    int stride = output.stride, common = stride / output.tap_step, per_channel = COLUMNS * stride;
    int channel = 0;
    for (int rest = threadIdx.x;; rest += THREADS) {
      for (; rest >= per_channel; ++channel) rest -= per_channel;
      if (channel >= rows.channels) return;
      int c = rest / stride, residue = rest % stride;
      ct_column column = ct_column_at(line, c);
      int first = residue % common ? output.kernel_size
                                   : (int)((u64)(residue / common) * output.inverse % output.tap_step);
      bool taps = first < output.kernel_size;
      int phase = first - rows.first_phase;
      bool ours = taps ? phase >= 0 && phase < rows.phases : rows.first_phase == 0;
      i64 t = taps ? sample(column.u, first) : column.u * stride + residue - output.p_left;
      if (!ours || !column.inside || t < 0 || t >= output.l_out) continue;
      A sum = taps ? ct_ld<A>(sums + channel * pitch + phase + spread.step(c)) : ct_zero<A>();
      put(row(channel, column.n) + t, sum, channel);
    }
  }
};
