// SPDX-License-Identifier: MIT
// y[n,co,u*s + f*d - p_left] = act(bias[co] + sum_{ci,m} w[ci,co,f + m*s/c] * x[n,ci,u - m*d/c]) + beta * y[n,co,..]
// with c = gcd(s, d)
//
// Idea: the product of implicit_gemm by warpgroups (sm_90a), halves or TF32, float32 sums. Warps have roles: consumer
// warpgroups of 64 rows each do nothing but wgmma and the way out; of the producer warps one asks for tiles of weights,
// each one run of memory, by bulk copies, and the others carry x, which has to be turned from rows of time into
// [place][channel]: units of rows come by asynchronous copies, and their elements leave for the tile one by one.
// mbarriers tell who may go on. A block takes one tile after the other, and its producers are tiles ahead while the
// consumers write results.
//
// Layout: neither operand is swizzled. 16-byte units of channels lie in columns of places (or rows), so eight places
// are 128 bytes that follow one another, whatever place they start at: a tap, which is a shift by places, is 16 bytes
// more in the descriptor's address, and one x tile serves all taps of a panel. A swizzled tile would make the shift
// depend on how the hardware counts rows of an operand that starts inside a swizzle atom. Reads of core matrices and the
// producers' stores meet every bank once.
//
// Tensor maps: none. Weights are packed in the order in which they are used, so 1-D copies, which want 16-byte
// addresses and no driver call, bring them. x could come by a tensor map only as it lies, [channel][time]: as an operand
// with rows contiguous (halves only) a tap would shift it along its contiguous side, where addresses go in units of
// eight samples; it would take a copy for each tap, and rows whose pitch is no multiple of 16 bytes would be left out.
//
// Block mapping: tiles blockIdx.x, blockIdx.x + gridDim.x, ...; fastest first: row tile (phases, then channels), column
// tile, group.
// Preconditions: sm_90a; 2 * BM + 256 threads; w as pack_weights leaves it for CONVT_BM, row-major 2, 16-byte aligned;
// the line of columns as implicit.cuh says; (panel_taps - 1) * input_step <= CT_HALO.
#include "implicit_rows.cuh"
#include "implicit_x.cuh"
#include "ring.cuh"
#ifndef CONVT_T
#error "CONVT_T: element type, __half, __nv_bfloat16 or float"
#endif
#ifndef CONVT_BM
#error "CONVT_BM: rows of a tile"
#endif
#ifndef CONVT_BN
#error "CONVT_BN: columns of a tile"
#endif
typedef CONVT_T T;
enum { BM = CONVT_BM, BN = CONVT_BN, PLACES = BN + CT_HALO };
enum { STEP_BYTES = 64, BK = STEP_BYTES / sizeof(T), UNITS = STEP_BYTES / 16 };
enum { CONSUMERS = 2 * BM, FIRST_LOADER = CONSUMERS + 32, LOADERS = PLACES };
enum { W_BYTES = BM * STEP_BYTES, X_BYTES = PLACES * STEP_BYTES, W_STAGES = 8, X_STAGES = 2 };
enum { PASS = BN % 128 ? BN / 2 : 128 };  // columns that leave at once: all or half
// registers of a thread, together those of a multiprocessor
enum { PRODUCER_REGISTERS = BM == 64 ? 128 : 96, CONSUMER_REGISTERS = BM == 64 ? 240 : 160 };
static_assert(BM % 64 == 0 && LOADERS <= 224 && PASS % 8 == 0 && (BN == PASS || BN == 2 * PASS), "tile");

struct Arguments {
  const T *x, *w, *bias;
  T* out;
  i64 x_stride_n, x_stride_c, out_stride_n, out_stride_c, l_in, l_out, p_left, first_u;
  int row_columns, batch, c_in_group, c_out_group, chunks, taps, panel_taps, input_step, phases, channel_tile, phase_tile;
  int phase_tiles, row_tiles, column_tiles, kernel_size, stride, dilation, tap_step, inverse, runs, stage_pitch;
  int activation;
  double slope, beta;

  CT_DEV int row_tile(u32 tile) const { return (int)(tile % row_tiles); }
  CT_DEV int column_tile(u32 tile) const { return (int)(tile / row_tiles % column_tiles); }
  CT_DEV i64 group(u32 tile) const { return tile / row_tiles / column_tiles; }
  CT_DEV ct_line line(u32 tile, int column) const {
    return ct_line_at((i64)column_tile(tile) * BN + column, first_u, row_columns, batch);
  }
};

typedef ct_ring<W_STAGES, W_BYTES> WeightRing;
typedef ct_ring<X_STAGES, X_BYTES> InputRing;

// wgmma cuts float operands to TF32; on their way they are rounded
struct Rounded {
  CT_DEV float operator()(float v) const { return __uint_as_float(to_tf32(v)); }
  template <class H> CT_DEV H operator()(H v) const { return v; }
};
typedef ct_x_rows<T, PLACES, LOADERS, 16, PLACES * 16, Rounded> XRows;
enum { UNITS_BYTES = XRows::COUNT * LOADERS * 16, X_UNITS = W_STAGES * W_BYTES + X_STAGES * X_BYTES };
enum { BARRIERS = X_UNITS + 2 * UNITS_BYTES, STAGING = BARRIERS + 256 };

// ---- producers -----------------------------------------------------------------------------------------------------

CT_DEV void produce_weights(const Arguments& a, WeightRing ring, u32 tiles) {
  int steps = a.chunks * a.taps;
  for (u32 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const T* weights = a.w + (a.group(tile) * a.row_tiles + a.row_tile(tile)) * steps * (BK * BM);
    for (int step = 0; step < steps; ++step, weights += BK * BM, ring.advance()) {
      ring.wait_empty();
      mbar_arrive_expect_tx(ring.full + ring.stage, W_BYTES);
      bulk_g2s(ring.buffer(), weights, W_BYTES, ring.full + ring.stage);
    }
  }
}

// The x tiles of a block in the order of their use: a chunk of channels, and up to panel_taps taps from `tap` on.
struct Panels {
  const Arguments& a;
  u32 tiles, tile;
  int chunk, tap;
  ct_input<T> input;
  ct_line line;

  CT_DEV Panels(const Arguments& a, u32 tiles) : a(a), tiles(tiles), tile(blockIdx.x), chunk(0), tap(0) { enter(); }
  CT_DEV void enter() {
    input = {a.x + a.group(tile) * a.c_in_group * a.x_stride_c, a.x_stride_n, a.x_stride_c, a.l_in, a.c_in_group};
    line = a.line(tile, 0);
  }
  CT_DEV XRows::Panel panel() const {
    return {input, line, chunk * BK, CT_HALO - (a.panel_taps - 1) * a.input_step, tap * a.input_step};
  }
  // whether there is another one
  CT_DEV bool next() {
    tap += a.panel_taps;
    if (tap < a.taps) return true;
    tap = 0;
    if (++chunk < a.chunks) return true;
    chunk = 0;
    tile += gridDim.x;
    if (tile >= tiles) return false;
    enter();
    return true;
  }
};

// The units of `rows`, which were asked for before the last ones, to the ring.
CT_DEV void hand_over(InputRing& ring, XRows& rows, unsigned char* units, Panels& here, int rank) {
  cp_async_commit();
  cp_async_wait<1>();
  ring.wait_empty();
  rows.store(ring.buffer(), units, here.panel(), rank);
  fence_proxy_async();
  __syncwarp();
  if (threadIdx.x % 32 == 0) mbar_arrive(ring.full + ring.stage);
  ring.advance();
  here.next();
}

// Units of one x tile are under way while those of the one before are stored in the ring.
CT_DEV void produce_inputs(const Arguments& a, InputRing ring, unsigned char* units, u32 tiles) {
  int rank = threadIdx.x - FIRST_LOADER;
  Panels ahead(a, tiles), here(a, tiles);
  XRows even, odd;
  even.load(units, ahead.panel(), rank);
  cp_async_commit();
  for (;;) {
    bool more = ahead.next();
    if (more) odd.load(units + UNITS_BYTES, ahead.panel(), rank);
    hand_over(ring, even, units, here, rank);
    if (!more) return;
    more = ahead.next();
    if (more) even.load(units, ahead.panel(), rank);
    hand_over(ring, odd, units + UNITS_BYTES, here, rank);
    if (!more) return;
  }
}

// ---- consumers -----------------------------------------------------------------------------------------------------

// Sums of one tile: rows of this warpgroup by BN columns. A buffer is given back when the products that read it are
// done, one step later.
CT_DEV void multiply(const Arguments& a, WeightRing& w, InputRing& x, float (&sums)[BN / 2]) {
  int warpgroup = threadIdx.x / 128;
  bool leader = threadIdx.x % 32 == 0;
  u64 *w_read = nullptr, *x_read = nullptr;
  int scale = 0;  // the first product overwrites
  for (int chunk = 0; chunk < a.chunks; ++chunk)
    for (int tap = 0; tap < a.taps; tap += a.panel_taps) {
      x.wait_full();
      u64 x_place = gmma_desc(x.buffer() + CT_HALO * 16, PLACES * 16, 128, 0);
      for (int left = min(a.panel_taps, a.taps - tap); left > 0; --left, x_place -= a.input_step) {
        w.wait_full();
        u64 w_rows = gmma_desc(w.buffer() + warpgroup * (64 * 16), BM * 16, 128, 0);
        reg_fence(sums);
        wgmma_fence();
#pragma unroll
        for (int unit = 0; unit < UNITS; unit += 2) {
          wgmma<T, 0, 0>(sums, w_rows + unit * BM, x_place + unit * PLACES, scale);
          scale = 1;
        }
        wgmma_commit();
        reg_fence(sums);
        wgmma_wait<1>();
        if (leader && w_read) mbar_arrive(w_read);
        if (leader && x_read) mbar_arrive(x_read);
        w_read = w.empty + w.stage;
        x_read = left == 1 ? x.empty + x.stage : nullptr;
        w.advance();
      }
      x.advance();
    }
  wgmma_wait<0>();
  reg_fence(sums);
  if (leader) {
    mbar_arrive(w_read);
    mbar_arrive(x_read);
  }
}

typedef ct_stage<T, PASS, CONSUMERS> Stage;

// Leaves the sums of columns FIRST to FIRST + PASS in the staging area. A lane has two neighbouring columns; lanes 1 and
// 2 of four begin with their second, so that four columns meet the banks as four in a row would, unless columns two
// apart are wanted. Where 16 rows are stored at once, lanes 2 and 3 begin with the later ones.
template <int FIRST> CT_DEV void stage_sums(const Stage& stage, float (&sums)[BN / 2]) {
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, at_once = ct_gmma_at_once(stage.rows.phase_tile);
  int odd = at_once == 4 ? 0 : (lane ^ lane >> 1) % 2, later = at_once == 16 ? lane / 2 % 2 : 0;
  if (at_once == 16) {
#pragma unroll
    for (int j = 0; j < PASS / 4; ++j) {
      float &here = sums[FIRST / 2 + j / 2 * 4 + j % 2], &there = sums[FIRST / 2 + j / 2 * 4 + j % 2 + 2], kept = here;
      here = later ? there : here;
      there = later ? kept : there;
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    int2 row = stage.rows.at(warp * 16 + (i ^ later) * 8 + lane / 4);
    if (row.x < 0) continue;
    float* sum = stage.at(row.x, row.y);
    float *p = sum + stage.spread.step(lane % 4 * 2 + odd), *q = sum + stage.spread.step(lane % 4 * 2 + 1 - odd);
#pragma unroll
    for (int j = 0; j < PASS / 8; ++j, p += stage.spread.step(8), q += stage.spread.step(8)) {
      float first = sums[(FIRST / 8 + j) * 4 + i * 2], second = sums[(FIRST / 8 + j) * 4 + i * 2 + 1];
      ct_st(p, odd ? second : first);
      ct_st(q, odd ? first : second);
    }
  }
}

CT_DEV void store(const Arguments& a, u32 tile, float (&sums)[BN / 2], unsigned char* staging) {
  i64 group = a.group(tile);
  int at_once = ct_gmma_at_once(a.phase_tile);
  ct_output<T> output = {a.out + group * a.c_out_group * a.out_stride_c, a.bias ? a.bias + group * a.c_out_group : a.bias,
                         a.out_stride_n, a.out_stride_c, a.l_out, a.p_left, a.stride, a.dilation, a.kernel_size,
                         a.tap_step, a.inverse, a.activation, a.slope, a.beta};
  ct_rows rows = ct_rows_at(a.row_tile(tile), a.channel_tile, a.phase_tile, a.phase_tiles, a.c_out_group, a.phases,
                            at_once);
#pragma unroll 1
  for (int column = 0; column < BN; column += PASS) {
    Stage stage = {reinterpret_cast<float*>(staging), a.stage_pitch, ct_columns<float>(a.phase_tile, at_once), output,
                   a.line(tile, column), rows};
    bar_sync(1, CONSUMERS);  // nobody reads the staging area any more
    if (column == 0)
      stage_sums<0>(stage, sums);
    else
      stage_sums<BN - PASS>(stage, sums);
    bar_sync(1, CONSUMERS);
    ct_store(stage, a.runs);
  }
}

extern "C" __global__ void __launch_bounds__(256 + 2 * CONVT_BM, 1)
implicit_gemm_wgmma(CT_PRODUCT_PARAMETERS(T), int tiles, CT_WAY_OUT_PARAMETERS) {
  extern __shared__ __align__(1024) unsigned char ct_smem[];
  Arguments a = {x, w, bias, out, x_stride_n, x_stride_c, out_stride_n, out_stride_c, l_in, l_out, p_left, first_u,
                 row_columns, batch, c_in_group, c_out_group, chunks, taps, panel_taps, input_step, phases, channel_tile,
                 phase_tile, phase_tiles, row_tiles, column_tiles, kernel_size, stride, dilation, tap_step, inverse,
                 runs, stage_pitch, activation, slope, beta};
  WeightRing weights(ct_smem, ct_smem + BARRIERS);
  InputRing inputs(ct_smem + W_STAGES * W_BYTES, ct_smem + BARRIERS + 2 * W_STAGES * 8);
  if (threadIdx.x == 0) {
    weights.init(1, CONSUMERS / 32);
    inputs.init(LOADERS / 32, CONSUMERS / 32);
    mbar_init_fence();
  }
  __syncthreads();
  if (threadIdx.x >= CONSUMERS) {
    reg_release<PRODUCER_REGISTERS>();
    if (threadIdx.x == CONSUMERS)
      produce_weights(a, weights, tiles);
    else if (threadIdx.x >= FIRST_LOADER && threadIdx.x < FIRST_LOADER + LOADERS)
      produce_inputs(a, inputs, ct_smem + X_UNITS, tiles);
  } else {
    reg_request<CONSUMER_REGISTERS>();
    float sums[BN / 2];
    for (u32 tile = blockIdx.x; tile < (u32)tiles; tile += gridDim.x) {
      multiply(a, weights, inputs, sums);
      store(a, tile, sums, ct_smem + STAGING);
    }
  }
}
