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

// What the products take first: arrays, strides, lengths, and how columns and rows fall into tiles.
#define CT_PRODUCT_PARAMETERS(T)                                                                                       \
  const T *__restrict__ x, const T *__restrict__ w, const T *__restrict__ bias, T *__restrict__ out, i64 x_stride_n,   \
      i64 x_stride_c, i64 out_stride_n, i64 out_stride_c, i64 l_in, i64 l_out, i64 p_left, i64 first_u,                \
      int row_columns, int batch, int c_in_group, int c_out_group, int chunks, int taps, int panel_taps,               \
      int input_step, int phases, int channel_tile, int phase_tile, int phase_tiles, int row_tiles, int column_tiles
// What they and implicit_finish take last: which sample a row and a column are, the staging area's pitch, the epilogue.
#define CT_WAY_OUT_PARAMETERS                                                                                          \
  int kernel_size, int stride, int dilation, int tap_step, int inverse, int runs, int stage_pitch, int activation,     \
      double slope, double beta

// A row of the x tile is one place of the line: 64 bytes of channels, padded so that eight rows meet all banks once.
// Taps look back at most CT_HALO places in one tile.
enum { CT_HALO = 32, CT_ROW_BYTES = 80, CT_ROW_UNITS = 4 };

// Blocks, fastest first: row tile (phases, then channels), column tile, part of the contraction, group.
struct ct_block {
  int row_tile, column_tile, part;
  i64 group;

  CT_DEV ct_block(int index, int row_tiles, int column_tiles, int parts)
      : row_tile(index % row_tiles), column_tile(index / row_tiles % column_tiles),
        part(index / row_tiles / column_tiles % parts), group(index / row_tiles / column_tiles / parts) {}
};

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

// ---- x tile: from rows of time to [place][channel], through registers (without cp.async; else implicit_x.cuh) ------

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

// ---- rows (channel, phase) -----------------------------------------------------------------------------------------

// A tile is channel_tile channels by phase_tile phases. Phase f holds taps f, f + tap_step, ... and its column u is
// sample u * stride + f * dilation - p_left.
//
// Rows are in an order that spares banks: when sums leave, a warp stores `at_once` rows, a power of two, of neighbouring
// columns with one instruction. A column is phase_tile elements further, so the rows beside it have to be phases while
// that is a power of two and channels, each at banks of its own, beyond: blocks of `channel_block` channels hold pieces
// of 2^phase_shift phases, channel by channel.
struct ct_rows {
  int first_channel, channels, first_phase, phases, channel_tile, phase_tile, channel_block, phase_shift;

  // channel and phase of row m of the tile; a channel of -1 if the row is padding
  CT_DEV int2 at(int m) const {
    int block = m / (channel_block * phase_tile), rest = m - block * channel_block * phase_tile;
    int height = max(1, min(channel_block, channel_tile - block * channel_block));
    int piece = rest >> phase_shift, channel = block * channel_block + piece % height;
    int phase = (piece / height << phase_shift) + (rest & (1 << phase_shift) - 1);
    bool there = m < channel_tile * phase_tile && channel < channels && phase < phases;
    return make_int2(there ? channel : -1, phase);
  }
};
CT_DEV ct_rows ct_rows_at(int tile, int channel_tile, int phase_tile, int phase_tiles, int channels, int phases,
                          int at_once) {
  int channel = tile / phase_tiles * channel_tile, phase = tile % phase_tiles * phase_tile;
  int piece = min(phase_tile & -phase_tile, at_once);
  return {channel, min(channel_tile, channels - channel), phase, min(phase_tile, phases - phase),
          channel_tile, phase_tile, at_once / piece, __ffs(piece) - 1};
}
// Warpgroups have four columns of eight at once. Of a multiple of 16 phases, two of them store eight rows and the others
// the eight rows after those. Columns two apart, of an odd number of phases, lie an even number of banks apart: eight rows
// are then two phases of four channels, fewer of which are left over. Blocks of few phases would end inside those eight.
CT_DEV int ct_gmma_at_once(int phase_tile) {
  return phase_tile % 16 == 0 ? 16 : phase_tile % 2 && phase_tile > 8 ? 4 : 8;
}
// The multiply-add form stores UNIT rows of a thread one after the other, and those of four threads at once.
template <int UNIT> CT_DEV int ct_fma_row(int m) { return m / (4 * UNIT) * (4 * UNIT) + m % UNIT * 4 + m / UNIT % 4; }
