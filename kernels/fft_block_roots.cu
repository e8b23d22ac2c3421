// SPDX-License-Identifier: MIT
// roots[B] = exp(-pi i v(B)),   v(B): the bits of B behind the binary point, lowest first
//
// Idea: the table of radix.cuh in double, rounded once. The angle is folded into an eighth of the circle, where Taylor's
// series of sine and cosine are short and exact to the last bit or two.
//
// Thread mapping: one root a thread, 256 threads.
#include "radix.cuh"
#ifndef CONVT_T
#error "CONVT_T: complex element type, float2 or double2"
#endif
typedef CONVT_T T;
typedef ct_complex<T>::real A;

extern "C" __global__ void __launch_bounds__(256) fft_block_roots(T* __restrict__ roots, int count) {
  int b = blockIdx.x * 256 + threadIdx.x;
  if (b >= count) return;
  double v = 0, weight = 0.5;
#pragma unroll 1
  for (int bits = b; bits; bits >>= 1, weight *= 0.5) v += bits & 1 ? weight : 0;
  bool left = v > 0.5;  // of the imaginary axis
  if (left) v = 1 - v;
  bool steep = v > 0.25;
  if (steep) v = 0.5 - v;
  double angle = 3.14159265358979323846 * v, square = angle * angle, cosine = 1, sine = 1;
#pragma unroll
  for (int k = 9; k > 0; --k) {
    cosine = fma(cosine, -square / ((2 * k - 1) * (2 * k)), 1.0);
    sine = fma(sine, -square / (2 * k * (2 * k + 1)), 1.0);
  }
  sine *= angle;
  double x = steep ? sine : cosine, y = steep ? cosine : sine;
  ct_st(roots + b, ct_make(A(left ? -x : x), A(-y)));
}
