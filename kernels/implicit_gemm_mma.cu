// SPDX-License-Identifier: MIT
// y[n,co,u*s + f*d - p_left] = act(bias[co] + sum_{ci,m} w[ci,co,f + m*s/c] * x[n,ci,u - m*d/c]) + beta * y[n,co,..]
// with c = gcd(s, d)
//
// Idea: the product of implicit_gemm on tensor cores, with float32 sums. ldmatrix wants rows of channels at multiples
// of 16 bytes, and an x tile kept as [place][channel] has one at every shift in time, so one tile serves all taps.
// Weights come through a ring of asynchronous copies; so do the rows of x, which are transposed in between.
// float operands are rounded to TF32, or split into two TF32 numbers of which three products are summed: a b is
// ah bh + (ah bl + al bh), and what is left out is below 2^-21 |a b|; an infinity becomes NaN.
//
// Thread mapping: 2 x BN/32 warps, each BM/2 rows by 32 columns in m16n8 fragments.
// Block mapping, fastest first: row tile (phases, then channels), column tile, part of the contraction, group; all in
// blockIdx.x. With several parts, `out` is where their sums wait for implicit_finish.
// Preconditions: sm_80; 2 * BN threads; w as pack_weights leaves it for CONVT_BM, row-major 1, 16-byte aligned; the
// line of columns as implicit.cuh says; (panel_taps - 1) * input_step <= CT_HALO.
#include "implicit_rows.cuh"
#include "implicit_x.cuh"
#ifndef CONVT_T
#error "CONVT_T: element type, __half, __nv_bfloat16 or float"
#endif
#ifndef CONVT_PRODUCTS
#error "CONVT_PRODUCTS: products on tensor cores for one of numbers: 1, or 3 for float operands split into two"
#endif
#ifndef CONVT_BM
#error "CONVT_BM: rows of a tile"
#endif
#ifndef CONVT_BN
#error "CONVT_BN: columns of a tile"
#endif
typedef CONVT_T T;
enum { BM = CONVT_BM, BN = CONVT_BN, BK = 64 / sizeof(T), STAGES = 3, THREADS = 2 * BN, PLACES = BN + CT_HALO };
enum { WARP_ROWS = BM / 2, WARP_COLUMNS = 32, ROW_FRAGMENTS = WARP_ROWS / 16, COLUMN_FRAGMENTS = WARP_COLUMNS / 8 };
enum { W_ROW_BYTES = 64, W_BYTES = BM * W_ROW_BYTES, X_BYTES = PLACES * CT_ROW_BYTES };
enum { TF32 = sizeof(T) == 4, SPLIT = TF32 && CONVT_PRODUCTS == 3 };
typedef ct_x_rows<T, PLACES, THREADS, CT_ROW_BYTES, 16> XRows;
static_assert(BM % 32 == 0 && BN % 32 == 0, "tile");

// Copies one tile of packed weights. Rows of 64 bytes have no padding; their 16-byte units change places with the row,
// so that eight rows of one unit, which ldmatrix reads at once, meet all banks.
CT_DEV void copy_weights(unsigned char* tile, const T* packed) {
#pragma unroll
  for (int i = 0; i < BM * CT_ROW_UNITS / THREADS; ++i) {
    int e = i * THREADS + threadIdx.x, row = e / CT_ROW_UNITS, unit = e % CT_ROW_UNITS ^ row / 2 % CT_ROW_UNITS;
    cp_async16(tile + row * W_ROW_BYTES + unit * 16, packed + e * (16 / sizeof(T)), 16);
  }
}

// Fragment of an operand: registers as the instruction takes them, and what TF32 leaves of them. An 8x8 matrix of
// 16-bit elements is one of 8x4 floats to ldmatrix, and its registers are those that m16n8k8 wants.
struct Fragment {
  u32 high[4], low[4];

  CT_DEV void load(const unsigned char* row) {
    ldmatrix_x4(high, row);
    if constexpr (TF32) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float value = __uint_as_float(high[e]);
        high[e] = to_tf32(value);
        float rest = value - __uint_as_float(high[e]);
        if (SPLIT) low[e] = to_tf32(rest);
      }
    }
  }
};

// half: which two registers of the inputs are this fragment's 8 columns
CT_DEV void add_product(float (&sum)[4], const Fragment& taps, const Fragment& inputs, int half) {
  if constexpr (TF32) {
    if (SPLIT) {
      mma_m16n8k8_tf32(sum, taps.low, inputs.high + half);
      mma_m16n8k8_tf32(sum, taps.high, inputs.low + half);
    }
    mma_m16n8k8_tf32(sum, taps.high, inputs.high + half);
  } else {
    mma_m16n8k16<T>(sum, taps.high, inputs.high + half);
  }
}

// w: first row of the warp's weights; x: the row of the x tile that its first column reads
CT_DEV void multiply(float (&sums)[ROW_FRAGMENTS][COLUMN_FRAGMENTS][4], const unsigned char* w,
                     const unsigned char* x) {
  int lane = threadIdx.x % 32;
  const unsigned char* w_row = w + lane % 16 * W_ROW_BYTES;
  int w_unit = (lane / 16 ^ lane / 2 % CT_ROW_UNITS) * 16;
  // columns of a fragment in the order 0 4 1 5 2 6 3 7: the two that a lane holds are 4 apart, its neighbours' 1
  int x_place = lane % 8 / 2 + lane % 2 * 4 + lane / 16 * 8;
  const unsigned char* x_row = x + x_place * CT_ROW_BYTES + lane / 8 % 2 * 16;
#pragma unroll SPLIT ? 1 : 2  // registers of split operands: of one half at a time
  for (int bytes = 0; bytes < W_ROW_BYTES; bytes += 32) {
    Fragment inputs[COLUMN_FRAGMENTS / 2];
#pragma unroll
    for (int j = 0; j < COLUMN_FRAGMENTS / 2; ++j) inputs[j].load(x_row + j * 16 * CT_ROW_BYTES + bytes);
#pragma unroll
    for (int i = 0; i < ROW_FRAGMENTS; ++i) {
      Fragment taps;
      taps.load(w_row + i * 16 * W_ROW_BYTES + (w_unit ^ bytes));
#pragma unroll
      for (int j = 0; j < COLUMN_FRAGMENTS; ++j) add_product(sums[i][j], taps, inputs[j / 2], j % 2 * 2);
    }
  }
}

extern "C" __global__ void __launch_bounds__(2 * CONVT_BN, BN == 128 ? 2 : BN == 32 ? 8 : BM == 128 ? 3 : 4)
implicit_gemm_mma(CT_PRODUCT_PARAMETERS(T), int parts, int part_steps, CT_WAY_OUT_PARAMETERS) {
  extern __shared__ __align__(1024) unsigned char ct_smem[];
  unsigned char* w_tiles = ct_smem;                     // [STAGES][BM][W_ROW_BYTES]
  unsigned char* x_tile = ct_smem + STAGES * W_BYTES;   // [PLACES][CT_ROW_BYTES]
  unsigned char* x_units = x_tile + X_BYTES;            // [XRows::COUNT][THREADS][16]
  // the way out: of a row's first sum there, -1 if the row is padding; and the block, from which it starts afresh, as
  // registers are scarce
  __shared__ int places[BM + 1];
  // from which every panel starts afresh: the block's first column, a zero that hides the thread's number from the
  // compiler, and the group's first element of x
  __shared__ int start[3];
  __shared__ i64 first_x[1];
  ct_block block(blockIdx.x, row_tiles, column_tiles, parts);
  ct_line line = ct_line_at((i64)block.column_tile * BN, first_u, row_columns, batch);
  if (threadIdx.x < BM) {
    ct_rows rows = ct_rows_at(block.row_tile, channel_tile, phase_tile, phase_tiles, c_out_group, phases, 8);
    int2 row = rows.at(threadIdx.x);
    ct_st(places + threadIdx.x, row.x < 0 ? -1 : row.x * stage_pitch + row.y);
  }
  ct_input<T> input = {x + block.group * c_in_group * x_stride_c, x_stride_n, x_stride_c, l_in, c_in_group};
  if (threadIdx.x == 0) {
    ct_st(places + BM, (int)blockIdx.x);
    ct_st(start, line.n);
    ct_st(start + 1, line.v);
    ct_st(start + 2, 0);
    ct_st(first_x, (i64)(input.x - x));
  }
  int first_step = block.part * part_steps, chunk = first_step / taps, tap = first_step % taps;
  const T* weights = w + ((block.group * row_tiles + block.row_tile) * chunks * taps + first_step) * (BK * BM);
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int warp_row = warp % 2 * WARP_ROWS, warp_column = warp / 2 * WARP_COLUMNS;

  float sums[ROW_FRAGMENTS][COLUMN_FRAGMENTS][4] = {};
  XRows next_x;
  int unused = CT_HALO - (panel_taps - 1) * input_step, steps = part_steps;
  next_x.load(x_units, {input, line, chunk * BK, unused, tap * input_step}, threadIdx.x);
#pragma unroll
  for (int stage = 0; stage < STAGES - 1; ++stage) {
    if (stage < steps) copy_weights(w_tiles + stage * W_BYTES, weights + stage * (BK * BM));
    cp_async_commit();
  }
  bool last_group = false;  // whether units of x are on their way in the group that was committed last
  for (int step = 0; step < steps;) {
    if (last_group)
      cp_async_wait<0>();
    else
      cp_async_wait<STAGES - 2>();
    __syncthreads();  // nobody reads the x tile any more
    int rank = threadIdx.x + ct_ld(start + 2);
    line.n = ct_ld(start), line.v = ct_ld(start + 1), input.x = x + ct_ld(first_x);
    next_x.store(x_tile, x_units, {input, line, chunk * BK, unused, tap * input_step}, rank);
    int last = min(tap + panel_taps, taps), end = min(step + last - tap, steps);
    bool chunk_done = last == taps;
    chunk += chunk_done;
    tap = chunk_done ? 0 : last;
    last_group = end == step + 1;
    if (end < steps) next_x.load(x_units, {input, line, chunk * BK, unused, tap * input_step}, rank);
    const unsigned char* x_rows = x_tile + (CT_HALO + warp_column) * CT_ROW_BYTES;
    for (; step < end; ++step, x_rows -= input_step * CT_ROW_BYTES) {
      cp_async_wait<STAGES - 2>();
      __syncthreads();  // this step's tiles are there, and nobody reads those of the step before any more
      int ahead = step + STAGES - 1;
      if (ahead < steps) copy_weights(w_tiles + ahead % STAGES * W_BYTES, weights + (i64)ahead * (BK * BM));
      cp_async_commit();
      multiply(sums, w_tiles + step % STAGES * W_BYTES + warp_row * W_ROW_BYTES, x_rows);
    }
  }
  __syncthreads();

  float* sums_out = reinterpret_cast<float*>(ct_smem);
  ct_columns<float> spread(phase_tile, 8);
#pragma unroll
  for (int i = 0; i < 2 * ROW_FRAGMENTS; ++i) {
    int place = ct_ld(places + warp_row + i * 8 + lane / 4);
    float* p = sums_out + place + spread.step(warp_column + lane % 4);
#pragma unroll
    for (int j = 0; j < 2 * COLUMN_FRAGMENTS; ++j, p += spread.step(4))
      if (place >= 0) ct_st(p, sums[i / 2][j / 2][i % 2 * 2 + j % 2]);
  }
  __syncthreads();
  ct_block here(ct_ld(places + BM), row_tiles, column_tiles, parts);
  ct_rows rows = ct_rows_at(here.row_tile, channel_tile, phase_tile, phase_tiles, c_out_group, phases, 8);
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
