// SPDX-License-Identifier: MIT
// y[n,co,q*s + r] = act(b[co] + sum_m w[ci, co, p + m*s/c] x[n,ci, q + shift - m*d/c]) + beta * y[n,co,q*s + r]
// with p, shift of residue class r
//
// Idea: one kernel for a block of overlap-save. x is loaded and transformed once, in shared memory and registers; for
// each residue class its spectrum is multiplied by that of the class's taps, transformed back, and what did not wrap
// around is staged at its interleaved place. So x is read once and the result written once, in runs.
//
// Thread mapping: M/E threads a block of overlap-save (radix.cuh), as many blocks as make two warps.
// Block mapping, fastest first: tile of neighbouring overlap-save blocks, output channel, n; all in blockIdx.x.
// Preconditions: time stride 1 in x and out; one input channel a group; the block length suffices for step and taps; no
// tanh and no beta on halves, which would be rounded twice.
#include "interleave.cuh"
#include "pairs.cuh"
#ifndef CONVT_X
#error "CONVT_X: element type of x"
#endif
#ifndef CONVT_Y
#error "CONVT_Y: element type of the result"
#endif
#ifndef CONVT_LOG
#error "CONVT_LOG: log2 of the complex points of a transform; a real block is twice as long"
#endif
typedef CONVT_X X;
typedef CONVT_Y Y;
typedef ct_acc_t<Y> A;
typedef ct_complex<A>::type C;
typedef ct_transform<C, CONVT_LOG> F;
enum {
  REAL = !ct_type<Y>::complex,
  LENGTH = F::M << REAL,  // samples of a block
  R = F::R,
  BLOCKS = F::TEAM < 64 ? 64 / F::TEAM : 1,
  // a multiprocessor's 512 threads of 128 registers; 448 of 144 where blocks are small; in double fewer, of more each
  WIDE = sizeof(C) == 16,
  LESS = F::TEAM <= 64 ? 3 : WIDE && F::TEAM == 128 ? 2 : WIDE && !REAL && F::TEAM <= 256 ? 1 : 0,
  RESIDENT = LESS == 3 ? 7 - WIDE : LESS == 2 ? 3 : 1,
};

CT_DEV int ct_clamp(i64 v, int most) { return (int)max((i64)0, min(v, (i64)most)); }

// The inputs of one block: samples [low, high) of it exist, the others are zero.
struct Inputs {
  const X* row;
  i64 start;
  int low, high;

  CT_DEV Inputs(const X* row, i64 start, i64 end)
      : row(row), start(start), low(ct_clamp(-start, LENGTH)), high(ct_clamp(end - start, LENGTH)) {}
  CT_DEV A one(int j) const {
    A value = ct_zero<A>();
    if (j >= low && j < high) ct_assign(value, ct_acc(ct_ld(row + (start + j))));
    return value;
  }
  // Lays them into `work`, single ones, `lanes` whole warps starting at cache lines; many loads under way at once.
  CT_DEV void lay(C* work, int lane, int lanes) const {
    enum { MANY = WIDE ? 4 : 8 };
#pragma unroll 1
    for (int first = lane - ct_line_shift(row + start); first < LENGTH; first += MANY * lanes) {
      A values[MANY];
#pragma unroll
      for (int k = 0; k < MANY; ++k) values[k] = one(first + k * lanes);
#pragma unroll
      for (int k = 0; k < MANY; ++k) {
        int j = first + k * lanes, m = j >> REAL;
        if (j >= 0 && j < LENGTH) ct_st(reinterpret_cast<A*>(work + m + m / F::LINE) + (REAL ? j & 1 : 0), values[k]);
      }
    }
  }
  CT_DEV C operator()(int m) const {
    int j = m << REAL;
    if (REAL && j >= low && j + 1 < high) {
      ct_two<X> two = ct_load_two(row + (start + j));
      return ct_join<C>(ct_acc(two.v[0]), ct_acc(two.v[1]));
    }
    return ct_join<C>(one(j), REAL ? one(j + 1) : ct_zero<A>());
  }
};

// The same from where they have been laid: the first pass finds each point at the place to which it returns it.
struct Staged {
  const C* work;
  CT_DEV C operator()(int m) const { return ct_ld<C>(work + m + m / F::LINE); }
};

// Identity, relu and leaky relu by their slope below zero; tanh is too long to be here for every sample.
CT_DEV float ct_bend(float v, float slope) { return v < 0 ? v * slope : v; }
CT_DEV double ct_bend(double v, double slope) { return v < 0 ? v * slope : v; }
template <class T> CT_DEV T ct_bend(T v, T) { return v; }

// Where the samples of one residue class go: sample j of the block is that of q = j + base, if it is in [from, to).
struct Outputs {
  ct_stage<Y> stage;
  int first, base, from, to;
  A offset, slope;

  CT_DEV void put(int q, A sum) const {
    ct_st(stage.at(first + q * stage.pitch), ct_cvt<Y>(ct_bend(ct_add(sum, offset), slope)));
  }
  CT_DEV void one(int q, A sum) const {
    if (q >= from && q < to) put(q, sum);
  }
  CT_DEV void operator()(int m, C value) const {
    A parts[2];
    ct_part(value, parts);
    one((m << REAL) + base, parts[0]);
    if (REAL) one(2 * m + 1 + base, parts[1]);
  }
};

// The spectrum of x as the products want it. Real: sums, and differences times -i, of pairs, which are the spectra of
// even and of odd samples; pair 0 of rank 0 keeps its two real spectra in sum and difference. Complex: both groups.
struct Spectrum {
  C sum[R], difference[R];

  CT_DEV Spectrum(const ct_groups<F>& groups, C* work, int rank) {
    C va[R], vb[R];
    groups.descend(work, va, vb);
    if (REAL) {
      C first[R], second[R];
      ct_to_pairs<F>(va, vb, first, second, rank);
#pragma unroll
      for (int i = 0; i < R; ++i) {
        C mirrored = ct_conj(second[i]);
        sum[i] = ct_add(first[i], mirrored);
        difference[i] = ct_turn(ct_sub(first[i], mirrored));
      }
      if (rank == 0) {
        sum[0] = ct_add(first[0], first[0]);
        difference[0] = ct_add(second[0], second[0]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < R; ++i) {
        sum[i] = va[i];
        difference[i] = vb[i];
      }
    }
  }

  // The spectrum of the filtered block, as the way back wants it.
  CT_DEV void filter(const C* taps, const ct_groups<F>& groups, int rank, C* va, C* vb) const {
    if (REAL) {
      C first[R], second[R];
#pragma unroll
      for (int i = 0; i < R; ++i) {
        C of_even, of_odd;
        ct_load_pair(taps, i, rank, F::TEAM, of_even, of_odd);
        C turned = ct_mul(difference[i], ct_pair_root(groups, i, rank));
        C even = ct_fma(of_even, sum[i], ct_mul(of_odd, turned));
        C odd = ct_fma(of_odd, sum[i], ct_mul(of_even, difference[i]));
        first[i] = ct_make(even.x - odd.y, even.y + odd.x);
        second[i] = ct_make(even.x + odd.y, odd.x - even.y);
        if (i == 0 && rank == 0) {
          // frequency 0: both parts of sum and of of_even; frequency M/2: those of difference and of_odd
          C x = sum[0], w = of_even;
          first[0] = ct_make(ct_fma(w.x, x.x, w.y * x.y), ct_fma(w.y, x.x, w.x * x.y));
          x = difference[0], w = of_odd;
          second[0] = ct_make(ct_fma(w.x, x.x, -(w.y * x.y)), ct_fma(w.y, x.x, w.x * x.y));
        }
      }
      ct_from_pairs<F>(va, vb, first, second, rank);
    } else {
#pragma unroll
      for (int i = 0; i < R; ++i) {
        C of_a, of_b;
        ct_load_pair(taps, i, rank, F::TEAM, of_a, of_b);
        va[i] = ct_mul(of_a, sum[i]);
        vb[i] = ct_mul(of_b, difference[i]);
      }
    }
  }
};

CT_DEV C* work_of(unsigned char* memory, int block) { return reinterpret_cast<C*>(memory) + block * F::PITCH; }

// `roots` without __restrict__: else its loads are moved out of the loops, and there are no registers for that
extern "C" __global__ void __launch_bounds__(512 >> LESS, RESIDENT)
fft_block(const X* __restrict__ x, const C* __restrict__ spectra, const C* roots, const Y* __restrict__ bias,
          Y* __restrict__ out, i64 x_stride_n, i64 x_stride_c, i64 out_stride_n, i64 out_stride_c, i64 end, i64 u_end,
          i64 l_out, i64 q_total, i64 first, i64 p_q, int p_r, int step, int tiles, int c_out, int c_out_group,
          int classes, int kernel_size, int stride, int dilation, int tap_step, int inverse, int residue_tile,
          int activation, double slope, double beta) {
  extern __shared__ __align__(1024) unsigned char ct_smem[];
  int rank = threadIdx.x % F::TEAM, block = threadIdx.x / F::TEAM, rest = blockIdx.x;
  i64 first_q = (i64)(rest % tiles) * BLOCKS * step;
  rest /= tiles;
  int co = rest % c_out, n = rest / c_out;
  C* work = work_of(ct_smem, block);
  ct_stage<Y> stage(ct_smem + BLOCKS * F::PITCH * sizeof(C), residue_tile << REAL);  // lanes are one or two q apart
  stage.pitch = residue_tile;

  i64 q = first_q + (i64)block * step, start = first + q;
  const X* row = x + n * x_stride_n + co / c_out_group * x_stride_c;
  // blocks beyond the row read nothing, so all start at sectors if the first one does; else two samples are never
  // loaded at once, and sectors would be asked for twice
  i64 last = q < q_total ? end : start;
  if (reinterpret_cast<u64>(row + (first + first_q)) % 32 == 0) {
    ct_passes<F, F::UPPER>::descend(work, roots, rank, Inputs(row, start, last));
  } else {
    // a warp lays out a block, or a part of one
#pragma unroll 1
    for (int b = F::TEAM < 32 ? threadIdx.x / 32 : block; b < BLOCKS; b += F::TEAM < 32 ? blockDim.x / 32 : BLOCKS) {
      i64 from = (i64)b * step, other = first + first_q + from;
      Inputs inputs(row, other, first_q + from < q_total ? end : other);
      inputs.lay(work_of(ct_smem, b), F::TEAM < 32 ? threadIdx.x % 32 : rank, F::TEAM < 32 ? 32 : F::TEAM);
    }
    __syncthreads();
    ct_passes<F, F::UPPER>::descend(work, roots, rank, Staged{work});
  }
  Spectrum spectrum(ct_groups<F>(roots, rank), work, rank);

  ct_taps taps = {p_q, p_r, kernel_size, stride, dilation, tap_step, inverse};
  int low = ct_clamp(-start, LENGTH), high = ct_clamp(u_end - start, LENGTH), count = ct_clamp(q_total - q, step);
  A below;  // slope of the activation below zero
  ct_assign(below, ct_complex<A>::real(activation == CT_RELU ? 0 : activation == CT_LEAKY_RELU ? slope : 1));
  A offset = bias ? ct_acc(ct_ld(bias + co)) : ct_zero<A>();
#pragma unroll 1
  for (int residue = 0; residue < stride; ++residue) {
    int r = residue % residue_tile;
    ct_phase phase = ct_phase_of(residue, taps);
    Outputs outputs = {stage, block * step * residue_tile + r, 0, count, count, offset, below};
    __syncthreads();  // of the staging area and of `work` before they are written again
    if (phase.count) {
      // beyond these limits the block holds none of the samples
      outputs.base = (int)max((i64)-LENGTH, min(first - phase.shift, (i64)step));
      outputs.from = max(0, low + outputs.base);
      outputs.to = min(count, high + outputs.base);
      // the compiler does not see what thread this is, so it keeps no addresses in registers between residues
      int thread = __shfl_sync(0xffffffffu, threadIdx.x, threadIdx.x % 32), rank = thread % F::TEAM;
      C* work = work_of(ct_smem, thread / F::TEAM);
      C va[R], vb[R];
      ct_groups<F> groups(roots, rank);
      spectrum.filter(spectra + ((i64)co * classes + phase.first) * F::M, groups, rank, va, vb);
      groups.ascend(work, va, vb);
      ct_passes<F, F::UPPER>::ascend(work, roots, rank, outputs);
    }
    // the others see no input
    for (int q = rank; q < min(outputs.from, count); q += F::TEAM) outputs.put(q, ct_zero<A>());
    for (int q = max(outputs.from, outputs.to) + rank; q < count; q += F::TEAM) outputs.put(q, ct_zero<A>());
    if (r + 1 < residue_tile && residue + 1 < stride) continue;
    __syncthreads();
    int q_count = ct_clamp(q_total - first_q, BLOCKS * step);
    if (activation == CT_TANH) {
#pragma unroll 1
      for (int e = threadIdx.x; e < q_count * residue_tile; e += blockDim.x)
        if (e % residue_tile <= r)
          ct_st(stage.at(e), ct_cvt<Y>(ct_activate(ct_acc(ct_ld<Y>(stage.at(e))), CT_TANH, slope)));
      __syncthreads();
    }
    ct_tile tile = {first_q, q_count, residue - r, r + 1, residue_tile, stride};
    ct_store_tile(out + n * out_stride_n + co * out_stride_c, stage, tile, l_out, sizeof(A) > sizeof(Y) ? 0.0 : beta);
  }
}
