// SPDX-License-Identifier: MIT
// Every element type of common.cuh through its helpers: y[i] = conj(a[i]) * b[i] + c[i] and a reversed copy.
#include "common.cuh"
#ifndef CONVT_X
#error CONVT_X: the storage type
#endif
extern "C" __global__ void types(const CONVT_X* a, const CONVT_X* b, const CONVT_X* c, CONVT_X* y, int n, int step) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const CONVT_X* p = a + (i64)i * step;
  ct_acc_t<CONVT_X> sum = ct_fma(ct_conj(ct_acc(ct_ld(p))), ct_acc(ct_ld(b + i)), ct_acc(c[i]));
  ct_st(y + i, ct_cvt<CONVT_X>(ct_add(sum, ct_zero<ct_acc_t<CONVT_X>>())));
}
