// SPDX-License-Identifier: MIT
#pragma once
// Wrappers of the tensor-core and asynchronous-copy instructions of sm_80 and later, one instruction each. Two bodies:
// PTX, and a call of the emulator. tests/emulator/conform.py compares them with models of their register layouts.
#include "common.cuh"

// address in the shared window, as PTX takes it
CT_DEV u32 smem_u32(const void* p) {
#if CT_HOST
  return emu::smem_u32(p);
#else
  return (u32)__cvta_generic_to_shared(p);
#endif
}

// ---- asynchronous copies to shared memory --------------------------------------------------------------------------
// Copies src_bytes of 16 (or of 4) and fills the rest of the destination with zeros.
CT_DEV void cp_async16(void* dst, const void* src, int src_bytes) {
#if CT_HOST
  emu::cp_async(dst, src, 16, src_bytes);
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem_u32(dst)), "l"(src), "r"(src_bytes) : "memory");
#endif
}
CT_DEV void cp_async4(void* dst, const void* src, int src_bytes) {
#if CT_HOST
  emu::cp_async(dst, src, 4, src_bytes);
#else
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(smem_u32(dst)), "l"(src), "r"(src_bytes) : "memory");
#endif
}
CT_DEV void cp_async_commit() {
#if CT_HOST
  emu::cp_async_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int N> CT_DEV void cp_async_wait() {
#if CT_HOST
  emu::cp_async_wait(N);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// ---- matrix fragments ----------------------------------------------------------------------------------------------
// Four 8x8 matrices of 16-bit elements: lane l gives the address of row l % 8 of matrix l / 8, 16 bytes, and gets
// elements 2 * (l % 4) and the next one of row l / 4 of each (of column l / 4 if transposed).
CT_DEV void ldmatrix_x4(u32 (&r)[4], const void* row) {
#if CT_HOST
  emu::ldmatrix(r, row, 4, false);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(smem_u32(row)) : "memory");
#endif
}
CT_DEV void ldmatrix_x4_trans(u32 (&r)[4], const void* row) {
#if CT_HOST
  emu::ldmatrix(r, row, 4, true);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(smem_u32(row)) : "memory");
#endif
}

// d += a b, 16 x 8 x 16, float32 sums. Lane l holds d of rows l / 4 and l / 4 + 8, columns 2 * (l % 4) and the next
// one; a as ldmatrix leaves the 8x8 quarters of a 16 x 16 tile (rows 0-7, rows 8-15, then the same of the right half);
// b as ldmatrix leaves the two halves of k of an [n][k] tile.
template <class T> CT_DEV void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], const u32* b) {
#if CT_HOST
  emu::mma(d, a, b, ct_type<T>::id);
#else
  if constexpr (ct_type<T>::id == 0)
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// float to the 19 bits of tf32: to nearest, ties away from zero
CT_DEV u32 to_tf32(float f) {
#if CT_HOST
  u32 u = __float_as_uint(f);                                     // round to nearest, ties away
  return (u & 0x7f800000u) == 0x7f800000u ? u : (u + 0x1000u) & 0xffffe000u;
#else
  u32 u; asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(u) : "f"(f)); return u;
#endif
}
// d += a b, 16 x 8 x 8, float32 sums of tf32 products
CT_DEV void mma_m16n8k8_tf32(float (&d)[4], const u32 (&a)[4], const u32* b) {
#if CT_HOST
  emu::mma(d, a, b, emu::TF32);
#else
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
