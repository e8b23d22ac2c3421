// SPDX-License-Identifier: MIT
// spectra[f] = transform of filters[f], as fft_block multiplies with it
//
// Idea: the same transform as fft_block's (radix.cuh), so its order of frequencies needs no explanation. Of a real
// filter, each pair of frequencies keeps the spectra of the even and of the odd samples, pair 0 of rank 0 those of
// frequencies 0 and M/2, which are real. The factor of the transforms there and back is divided out here.
//
// Thread mapping: M/E threads a filter, as many filters as make two warps.
// Block mapping: tile of filters.
// Preconditions: filters contiguous, as long as the block.
#include "pairs.cuh"
#ifndef CONVT_T
#error "CONVT_T: element type of the filters"
#endif
#ifndef CONVT_LOG
#error "CONVT_LOG: log2 of the complex points of a transform; a real filter is twice as long"
#endif
typedef CONVT_T T;
typedef ct_complex<T>::type C;
typedef ct_complex<T>::real A;
typedef ct_transform<C, CONVT_LOG> F;
enum { REAL = !ct_type<T>::complex, R = F::R, FILTERS = F::TEAM < 64 ? 64 / F::TEAM : 1 };

struct Points {
  const T* filter;
  bool there;

  CT_DEV C operator()(int m) const {
    if (!there) return ct_zero<C>();
    if (!REAL) return ct_join<C>(ct_ld(filter + m), ct_zero<T>());
    ct_two<T> two = ct_load_two(filter + 2 * m);
    return ct_join<C>(two.v[0], two.v[1]);
  }
};

extern "C" __global__ void __launch_bounds__(512, 1)
fft_block_spectra(const T* __restrict__ filters, const C* __restrict__ roots, C* __restrict__ spectra, int count) {
  extern __shared__ __align__(1024) unsigned char ct_smem[];
  int rank = threadIdx.x % F::TEAM, filter = threadIdx.x / F::TEAM;
  i64 row = (i64)blockIdx.x * FILTERS + filter;
  C* work = reinterpret_cast<C*>(ct_smem) + filter * F::PITCH;
  Points points = {filters + row * (F::M << REAL), row < count};
  ct_passes<F, F::UPPER>::descend(work, roots, rank, points);
  ct_groups<F> groups(roots, rank);
  C va[R], vb[R];
  groups.descend(work, va, vb);
  if (row >= count) return;
  C* target = spectra + row * F::M;
  if (REAL) {
    // half for taking the filter's spectrum apart, half for x, 1/M for the way back; sums and differences are doubled
    const double scale = 0.25 / (int)F::M;
    C first[R], second[R];
    ct_to_pairs<F>(va, vb, first, second, rank);
#pragma unroll
    for (int i = 0; i < R; ++i) {
      C mirrored = ct_conj(second[i]);
      C even = ct_add(first[i], mirrored), odd = ct_turn(ct_sub(first[i], mirrored));
      if (i == 0 && rank == 0) {
        even = ct_add(first[0], first[0]);
        odd = ct_add(second[0], second[0]);
      }
      ct_store_pair(target, i, rank, F::TEAM, ct_scale(even, scale), ct_scale(odd, scale));
    }
  } else {
    const double scale = 1.0 / (int)F::M;
#pragma unroll
    for (int i = 0; i < R; ++i)
      ct_store_pair(target, i, rank, F::TEAM, ct_scale(va[i], scale), ct_scale(vb[i], scale));
  }
}
