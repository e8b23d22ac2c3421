// SPDX-License-Identifier: MIT
#pragma once
// What both forms of the sub-pixel product share: which input a column reads, the x tile, and the way out.
//
// Columns (n, u) lie in one line, `row_columns` of them for each n. The line also holds the inputs: column (n, u) reads
// x[n, u - m * input_step] for tap m, at m * input_step places before its own. Wherever that leaves the row, the line
// holds zeros: the end of every row is followed by as many columns beyond L_in as its successor may look back.
//
// The contraction runs over chunks of 64 bytes of channels and, in each, over taps; a chunk and a tap are a step, which
// reads one tile of weights. A panel is what one x tile serves: a chunk and up to panel_taps taps. A part of the
// contraction is part_steps consecutive steps.
#include "types.cuh"

// A row of the x tile is one place of the line: 64 bytes of channels, padded so that eight rows meet all banks once.
// Taps look back at most CT_HALO places in one tile.
enum { CT_HALO = 32, CT_ROW_BYTES = 80, CT_ROW_UNITS = 4 };

struct ct_line {
  i64 first_u;  // u of the first column of every row
  int row_columns, batch;
  int n, v;  // of this block's first column: row and place in it
};
struct ct_column {
  int n;
  i64 u;
  bool inside;
};
CT_DEV ct_line ct_line_at(i64 column, i64 first_u, int row_columns, int batch) {
  return {first_u, row_columns, batch, (int)(column / row_columns), (int)(column % row_columns)};
}
// The column `place` places after (before, if negative) the block's first.
CT_DEV ct_column ct_column_at(const ct_line& line, int place) {
  int v = line.v + place, rows = 0;
  if (v < 0) rows = -((line.row_columns - 1 - v) / line.row_columns);
  if (v >= line.row_columns) rows = v / line.row_columns;
  int n = line.n + rows;
  return {n, line.first_u + (v - rows * line.row_columns), n >= 0 && n < line.batch};
}

// ---- x tile: from rows of time to [place][channel], through registers ----------------------------------------------

template <class T> struct ct_input {
  const T* x;  // first channel of the group
  i64 stride_n, stride_c, l_in;
  int channels;
};

// PLACES places of the line, of which the block's first column is number CT_HALO, by 64 bytes of channels. A thread
// gathers 16 bytes of channels of one place; lanes take consecutive places, so its loads are runs along time.
template <class T, int PLACES, int THREADS> struct ct_x_tile {
  enum { UNITS = PLACES * CT_ROW_UNITS, COUNT = (UNITS + THREADS - 1) / THREADS, CHANNELS = 16 / sizeof(T) };
  ct_unit<T> units[COUNT];

  // channels from `channel` on, `shift` places back; the first `unused` places are looked at by no tap
  CT_DEV void load(const ct_input<T>& input, const ct_line& line, int channel, int shift, int unused) {
    const T zero = ct_cvt<T>(ct_zero<ct_acc_t<T>>());
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      int e = i * THREADS + threadIdx.x, place = e % PLACES, first = channel + e / PLACES * CHANNELS;
      ct_column column = ct_column_at(line, place - CT_HALO - shift);
      bool read = e < UNITS && place >= unused && column.inside && column.u >= 0 && column.u < input.l_in;
      const T* p = input.x + (read ? column.n * input.stride_n + first * input.stride_c + column.u : 0);
#pragma unroll
      for (int k = 0; k < CHANNELS; ++k)
        units[i].v[k] = read && first + k < input.channels ? ct_ld(p + k * input.stride_c) : zero;
    }
  }
  CT_DEV void store(unsigned char* tile) const {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      int e = i * THREADS + threadIdx.x;
      if (e < UNITS) ct_st16(reinterpret_cast<T*>(tile + e % PLACES * CT_ROW_BYTES + e / PLACES * 16), units[i]);
    }
  }
};

// ---- rows (channel, phase), and the way out ------------------------------------------------------------------------

// Row m of the tile is channel first_channel + m / phase_tile and phase first_phase + m % phase_tile. Phase f holds
// taps f, f + tap_step, ... and its column u is sample u * stride + f * dilation - p_left.
struct ct_rows {
  int first_channel, channels, first_phase, phases, phase_tile;
};
CT_DEV ct_rows ct_rows_at(int tile, int channel_tile, int phase_tile, int phase_tiles, int channels, int phases) {
  int channel = tile / phase_tiles * channel_tile, phase = tile % phase_tiles * phase_tile;
  return {channel, min(channel_tile, channels - channel), phase, min(phase_tile, phases - phase), phase_tile};
}

template <class T> struct ct_output {
  T* out;  // first channel of the group
  const T* bias;
  i64 stride_n, stride_c, l_out, p_left;
  int stride, dilation, kernel_size, tap_step, inverse;  // inverse: of d/c modulo s/c
  int activation;
  double slope;
};

// Sums of one block on their way out: for each channel, `pitch` apart, a run of columns by phases, which is a run of
// samples when the phases are all there. One element is left out after every 128 bytes, so that neither lanes on
// columns 128 bytes apart nor lanes that each read 16 bytes meet in a bank; the pitch comes from the planner.
template <class T, int COLUMNS, int THREADS> struct ct_stage {
  typedef ct_acc_t<T> A;
  enum { OUT = 16 / sizeof(T), SECTOR = 32 / sizeof(T), LINE = 128 / sizeof(A) };
  A* sums;
  int pitch;
  ct_output<T> output;
  ct_line line;
  ct_rows rows;

  CT_DEV A* at(int channel, int e) const { return sums + channel * pitch + e + e / LINE; }
  CT_DEV int run() const { return COLUMNS * rows.phase_tile; }
  // where row m of the first column goes, its channel in `channel`; -1 if the row is padding
  CT_DEV int place(int m, int& channel) const {
    channel = m / rows.phase_tile;
    int phase = m % rows.phase_tile;
    return channel < rows.channels && phase < rows.phases ? phase : -1;
  }
  // Sums of one part of the contraction, for implicit_finish: the tile's channels by runs, in 16-byte units.
  CT_DEV void store_part(A* part) const {
    enum { UNIT = 16 / sizeof(A) };
    bool whole = rows.phases == rows.phase_tile;
    int units = run() / UNIT;
    for (int e = threadIdx.x; e < rows.channels * units; e += THREADS) {
      int channel = e / units, first = e % units * UNIT;
      ct_unit<A> unit;
#pragma unroll
      for (int k = 0; k < UNIT; ++k)
        unit.v[k] = whole || (first + k) % rows.phase_tile < rows.phases ? ct_ld(at(channel, first + k)) : ct_zero<A>();
      ct_st16(part + e * UNIT, unit);
    }
  }
  // Back from there: the sums of all parts, added in ascending order.
  CT_DEV void load_parts(const A* part, i64 part_stride, int parts) const {
    enum { UNIT = 16 / sizeof(A) };
    int units = run() / UNIT;
    for (int e = threadIdx.x; e < rows.channels * units; e += THREADS) {
      ct_unit<A> total = ct_ld16(part + e * UNIT);
#pragma unroll 8
      for (int p = 1; p < parts; ++p) {
        ct_unit<A> unit = ct_ld16(part + p * part_stride + e * UNIT);
#pragma unroll
        for (int k = 0; k < UNIT; ++k) total.v[k] = ct_add(total.v[k], unit.v[k]);
      }
#pragma unroll
      for (int k = 0; k < UNIT; ++k) ct_st(at(e / units, e % units * UNIT + k), total.v[k]);
    }
  }
  CT_DEV T* row(int channel, int n) const {
    return output.out + n * output.stride_n + (rows.first_channel + channel) * output.stride_c;
  }
  CT_DEV i64 sample(i64 u, int phase) const { return u * output.stride + (i64)phase * output.dilation - output.p_left; }
  CT_DEV T finish(A sum, int channel) const {
    if (output.bias) sum = ct_add(sum, ct_acc(ct_ld(output.bias + rows.first_channel + channel)));
    return ct_cvt<T>(ct_activate(sum, output.activation, output.slope));
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
        ct_unit<T> unit;
#pragma unroll
        for (int k = 0; k < OUT; ++k) unit.v[k] = finish(ct_ld(at(channel, first + k)), channel);
        ct_st16(p, unit);
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
      ct_st(row(channel, column.n) + t, finish(ct_ld(at(channel, e)), channel));
  }

  // Dilated taps, or residues without any: sample by sample; the first phase tile also writes the residues without
  // taps.
  CT_DEV void store_scattered() const {
    int stride = output.stride, common = stride / output.tap_step, per_channel = COLUMNS * stride;
    for (i64 e = threadIdx.x; e < (i64)rows.channels * per_channel; e += THREADS) {
      int channel = (int)(e / per_channel), rest = (int)(e % per_channel), c = rest / stride, residue = rest % stride;
      ct_column column = ct_column_at(line, c);
      int first = residue % common ? output.kernel_size
                                   : (int)((u64)(residue / common) * output.inverse % output.tap_step);
      bool taps = first < output.kernel_size;
      int phase = first - rows.first_phase;
      bool ours = taps ? phase >= 0 && phase < rows.phases : rows.first_phase == 0;
      i64 t = taps ? sample(column.u, first) : column.u * stride + residue - output.p_left;
      if (!ours || !column.inside || t < 0 || t >= output.l_out) continue;
      A sum = taps ? ct_ld(at(channel, c * rows.phase_tile + phase)) : ct_zero<A>();
      ct_st(row(channel, column.n) + t, finish(sum, channel));
    }
  }
};
