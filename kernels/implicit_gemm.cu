// SPDX-License-Identifier: MIT
// y[n,co,u*s + f*d - p_left] = act(bias[co] + sum_{ci,m} w[ci,co,f + m*s/c] * x[n,ci,u - m*d/c]) + beta * y[n,co,..]
// with c = gcd(s, d)
//
// Idea: one matrix product with rows (co, f), columns (n, u) and contraction (ci, m). A tile of x, kept as
// [place][channel], serves all taps as row offsets; tiles of packed weights stream past it, the next ones on their way
// while one is multiplied. Sums leave through shared memory, where phases interleave to runs of samples.
//
// Thread mapping: 8 x 16 threads, each BM/8 rows by BN/16 columns; a warp is 4 x 8 of them.
// Block mapping, fastest first: row tile (phases, then channels), column tile, part of the contraction, group; all in
// blockIdx.x. With several parts, `out` is where their sums wait for implicit_finish.
// Preconditions: 128 threads; w as pack_weights leaves it for CONVT_BM, row-major 0, 16-byte aligned; the line of
// columns as implicit.cuh says; (panel_taps - 1) * input_step <= CT_HALO.
#include "implicit_rows.cuh"
#ifndef CONVT_T
#error "CONVT_T: element type"
#endif
#ifndef CONVT_BM
#error "CONVT_BM: rows of a tile"
#endif
#ifndef CONVT_BN
#error "CONVT_BN: columns of a tile"
#endif
typedef CONVT_T T;
enum { BM = CONVT_BM, BN = CONVT_BN, BK = 64 / sizeof(T), UNIT = 16 / sizeof(T), THREADS = 128 };
enum { TM = BM / 8, TN = BN / 16, PLACES = BN + CT_HALO, W_UNITS = BK * BM / UNIT };
enum { W_BYTES = BK * BM * sizeof(T), X_BYTES = PLACES * CT_ROW_BYTES };
static_assert(TM % UNIT == 0 && BN % 16 == 0, "tile");

// One tile of packed weights on its way through registers.
struct Weights {
  enum { COUNT = (W_UNITS + THREADS - 1) / THREADS };
  ct_unit<T> units[COUNT];
  CT_DEV void load(const T* tile) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      int e = i * THREADS + threadIdx.x;
      if (e < W_UNITS) units[i] = ct_ld16(tile + e * UNIT);
    }
  }
  CT_DEV void store(unsigned char* tile) const {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      int e = i * THREADS + threadIdx.x;
      if (e < W_UNITS) ct_st16(reinterpret_cast<T*>(tile) + e * UNIT, units[i]);
    }
  }
};

// w: this thread's first row of [channel][row]; x: its first column of [place][channel]
CT_DEV void multiply(T (&sums)[TM][TN], const unsigned char* w, const unsigned char* x) {
// not unrolled: three blocks share a multiprocessor, so other warps hide the loads and registers are scarce
#pragma unroll 1
  for (int part = 0; part < CT_ROW_UNITS; ++part) {
    ct_unit<T> inputs[TN];
#pragma unroll
    for (int j = 0; j < TN; ++j) inputs[j] = ct_ld16(reinterpret_cast<const T*>(x + j * 16 * CT_ROW_BYTES + part * 16));
#pragma unroll
    for (int k = 0; k < UNIT; ++k) {
#pragma unroll
      for (int i = 0; i < TM; i += UNIT) {
        ct_unit<T> taps = ct_ld16(reinterpret_cast<const T*>(w) + (part * UNIT + k) * BM + i * 8);
#pragma unroll
        for (int e = 0; e < UNIT * TN; ++e)
          sums[i + e / TN][e % TN] = ct_fma(inputs[e % TN].v[k], taps.v[e / TN], sums[i + e / TN][e % TN]);
      }
    }
  }
}

extern "C" __global__ void __launch_bounds__(128, 3)
implicit_gemm(CT_PRODUCT_PARAMETERS(T), int parts, int part_steps, CT_WAY_OUT_PARAMETERS) {
  extern __shared__ __align__(1024) unsigned char ct_smem[];
  unsigned char* w_tiles = ct_smem;                // [2][BK][BM]
  unsigned char* x_tiles = ct_smem + 2 * W_BYTES;  // [2][PLACES][CT_ROW_BYTES]
  // the way out: of a row's first sum there, -1 if the row is padding; and the block, from which it starts afresh, as
  // registers are scarce
  __shared__ int places[BM + 1];
  ct_block block(blockIdx.x, row_tiles, column_tiles, parts);
  ct_line line = ct_line_at((i64)block.column_tile * BN, first_u, row_columns, batch);
  if (threadIdx.x < BM) {
    ct_rows rows = ct_rows_at(block.row_tile, channel_tile, phase_tile, phase_tiles, c_out_group, phases, UNIT);
    int2 row = rows.at(ct_fma_row<UNIT>(threadIdx.x));
    ct_st(places + threadIdx.x, row.x < 0 ? -1 : row.x * stage_pitch + row.y);
  }
  if (threadIdx.x == 0) ct_st(places + BM, (int)blockIdx.x);
  ct_input<T> input = {x + block.group * c_in_group * x_stride_c, x_stride_n, x_stride_c, l_in, c_in_group};
  int first_step = block.part * part_steps, chunk = first_step / taps, tap = first_step % taps;
  const T* weights = w + ((block.group * row_tiles + block.row_tile) * chunks * taps + first_step) * (BK * BM);
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int my_row = (warp / 2 * 4 + lane / 8) * UNIT, my_column = warp % 2 * 8 + lane % 8;

  T sums[TM][TN];
#pragma unroll
  for (int e = 0; e < TM * TN; ++e) sums[e / TN][e % TN] = ct_zero<T>();
  Weights next_w;
  ct_x_tile<T, PLACES, THREADS> next_x;
  int unused = CT_HALO - (panel_taps - 1) * input_step;
  next_w.load(weights);
  next_x.load(input, line, chunk * BK, tap * input_step, unused);
  next_w.store(w_tiles);
  next_x.store(x_tiles);
  __syncthreads();
  int steps = part_steps, step = 0;
  for (int panel = 0; step < steps; ++panel) {
    int last = min(tap + panel_taps, taps), end = min(step + last - tap, steps);
    bool chunk_done = last == taps;
    chunk += chunk_done;
    tap = chunk_done ? 0 : last;
    if (end < steps) next_x.load(input, line, chunk * BK, tap * input_step, unused);
    const unsigned char* x_rows = x_tiles + panel % 2 * X_BYTES + (CT_HALO + my_column) * CT_ROW_BYTES;
    for (; step < end; ++step, x_rows -= input_step * CT_ROW_BYTES) {
      if (step + 1 < steps) next_w.load(weights + (i64)(step + 1) * (BK * BM));
      multiply(sums, w_tiles + step % 2 * W_BYTES + my_row * sizeof(T), x_rows);
      if (step + 1 < steps) next_w.store(w_tiles + (step + 1) % 2 * W_BYTES);
      if (step + 1 == end && end < steps) next_x.store(x_tiles + (panel + 1) % 2 * X_BYTES);
      __syncthreads();
    }
  }

  T* sums_out = reinterpret_cast<T*>(ct_smem);
  ct_columns<T> spread(phase_tile, UNIT);
#pragma unroll
  for (int i = 0; i < TM; ++i) {
    int place = ct_ld(places + i / UNIT * 8 * UNIT + my_row + i % UNIT);
    T* p = sums_out + place + spread.step(my_column);
#pragma unroll
    for (int j = 0; j < TN; ++j, p += spread.step(16))
      if (place >= 0) ct_st(p, sums[i][j]);
  }
  __syncthreads();
  ct_block here(ct_ld(places + BM), row_tiles, column_tiles, parts);
  ct_rows rows = ct_rows_at(here.row_tile, channel_tile, phase_tile, phase_tiles, c_out_group, phases, UNIT);
  ct_output<T> output = {out + here.group * c_out_group * out_stride_c, bias ? bias + here.group * c_out_group : bias,
                         out_stride_n, out_stride_c, l_out, p_left, stride, dilation, kernel_size, tap_step, inverse,
                         activation, slope, beta};
  ct_stage<T, BN, THREADS> stage = {
      sums_out, stage_pitch, spread, output,
      ct_line_at((i64)here.column_tile * BN, first_u, row_columns, batch), rows};
  if (parts > 1)
    stage.store_part(reinterpret_cast<ct_acc_t<T>*>(out) + blockIdx.x * (i64)channel_tile * stage.run());
  else
    ct_store(stage, runs);
}
