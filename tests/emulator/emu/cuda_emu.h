// SPDX-License-Identifier: MIT
// cuda_emu.h -- test-only emulation of the CUDA execution model for g++ (x86-64 / Linux).
// A kernel source includes this header (through common.cuh) only when CT_EMU is defined.
// The run-time half is emu_rt.cpp (compiled once, never instrumented).
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__
#define __cluster_dims__(...)
#define __constant__
// The trick that keeps CUDA syntax intact: block-scope `thread_local` implies static storage (one copy per
// kernel instantiation), and `extern thread_local T a[];` is a legal declaration of the dynamic array, which
// the generated driver defines.  All of it lies in this .so's PT_TLS block, so the run time knows the exact
// address range of "shared memory" without any registration.  Needs -fno-extern-tls-init (no TLS wrapper
// calls) and -fno-gnu-unique (else template statics are unified across all loaded .so files).
#define __shared__ thread_local
// g++ 12's -fsanitize=thread does not instrument a struct *argument* read straight from memory (f(s[i]) with a
// non-inlined f(float4)), so helpers that take structs by value must be always_inline (EMU_INL here, CT_DEV in
// kernels).
#define EMU_INL static inline __attribute__((always_inline))
#define EMU_NOSAN __attribute__((no_sanitize("thread"), no_sanitize("undefined"), noinline))

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
#define EMU_VEC(T, N, A2, A4)                                        \
  struct __attribute__((aligned(A2))) N##2 { T x, y; };              \
  struct N##3 { T x, y, z; };                                        \
  struct __attribute__((aligned(A4))) N##4 { T x, y, z, w; };        \
  EMU_INL N##2 make_##N##2(T x, T y) { return N##2 {x, y}; }         \
  EMU_INL N##3 make_##N##3(T x, T y, T z) { return N##3 {x, y, z}; } \
  EMU_INL N##4 make_##N##4(T x, T y, T z, T w) { return N##4 {x, y, z, w}; }
EMU_VEC(float, float, 8, 16)
EMU_VEC(int, int, 8, 16)
EMU_VEC(short, short, 4, 8)
EMU_VEC(unsigned short, ushort, 4, 8)
EMU_VEC(unsigned char, uchar, 2, 4)
struct __attribute__((aligned(8))) uint2 {
  unsigned x, y;
};
struct __attribute__((aligned(16))) uint4 {
  unsigned x, y, z, w;
};
EMU_INL uint2 make_uint2(unsigned x, unsigned y) { return uint2{x, y}; }
EMU_INL uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return uint4{x, y, z, w}; }
struct __attribute__((aligned(16))) double2 {
  double x, y;
};
EMU_INL double2 make_double2(double x, double y) { return double2{x, y}; }
struct __attribute__((aligned(16))) longlong2 {
  long long x, y;
};
struct __attribute__((aligned(16))) ulonglong2 {
  unsigned long long x, y;
};
EMU_INL longlong2 make_longlong2(long long x, long long y) { return longlong2{x, y}; }
EMU_INL ulonglong2 make_ulonglong2(unsigned long long x, unsigned long long y) { return ulonglong2{x, y}; }

namespace emu {
struct Thread;  // full definition in rt_core.h
struct ThreadPub {
  uint3 tid;
  int lin, lane, warp;
};
extern ThreadPub* cur __attribute__((visibility("hidden")));
extern uint3 bid __attribute__((visibility("hidden")));
extern dim3 bdim __attribute__((visibility("hidden"))), gdim __attribute__((visibility("hidden")));

enum Kind { RD = 0, WR = 1, AT = 2 };
#ifdef EMU_CHECK
void mem(const volatile void* p, unsigned n, int kind);  // explicit access record (runtime-side accesses)
void load_bytes(void* dst, const void* src, unsigned n);
void store_bytes(void* dst, const void* src, unsigned n);
#else
EMU_INL void mem(const volatile void*, unsigned, int) {}
#endif
// ct_ld / ct_st: one checked and counted access of sizeof(V) bytes
template <class V> EMU_INL V load(const V* p) {
  static_assert(sizeof(V) <= 16 && (sizeof(V) & (sizeof(V) - 1)) == 0, "ct_ld: 1, 2, 4, 8 or 16 bytes");
#ifdef EMU_CHECK
  V v;
  load_bytes(&v, p, sizeof(V));
  return v;
#else
  return *p;
#endif
}
template <class V> EMU_INL void store(V* p, V v) {
  static_assert(sizeof(V) <= 16 && (sizeof(V) & (sizeof(V) - 1)) == 0, "ct_st: 1, 2, 4, 8 or 16 bytes");
#ifdef EMU_CHECK
  store_bytes(p, &v, sizeof(V));
#else
  *p = v;
#endif
}
[[noreturn]] void fail(const char* fmt, ...);
void syncthreads(int line);
int syncthreads_red(int line, int pred, int op);  // 0 count, 1 and, 2 or
void named_barrier(int id, int nthreads, int line, bool wait);
void syncwarp(unsigned mask, int line);
void threadfence();

// ---- warp collectives: every lane in `mask` deposits a pointer to its operand (on its own fiber
// stack), the last to arrive runs `fn` over all of them, then all become runnable again.
typedef void (*CollFn)(void** opnd, unsigned mask, int warp);
void warp_collective(unsigned mask, CollFn fn, void* opnd, int line, const char* name);
typedef void (*WgFn)(void** opnd, int wg);  // 128 threads, all must take part
void wg_collective(WgFn fn, void* opnd, int line, const char* name);

struct ShflOp {
  uint64_t val, out;
  int arg, width, mode;
};
void shfl_fn(void** o, unsigned mask, int warp);
struct VoteOp {
  int pred;
  unsigned out;
};
void ballot_fn(void** o, unsigned mask, int warp);
struct RedOp {
  long long v, out;
  int op;
};
void reduce_fn(void** o, unsigned mask, int warp);

// ---- memory helpers shared by mma.cuh / hopper.cuh host branches
unsigned smem_u32(const void* p);  // "shared window" address
void* smem_ptr(unsigned a);
void cp_async(void* dst, const void* src, int bytes, int src_bytes);
void cp_async_commit();
void cp_async_wait(int n);
void ldmatrix(unsigned* r, const void* row, int num, bool trans);
enum MmaType { F16, BF16, TF32 };
void mma(float* d, const unsigned* a, const unsigned* b, int type);  // d += a*b, m16n8k16 / m16n8k8
// ---- Hopper
void mbar_init(void* bar, int count);
void mbar_arrive(void* bar, int tx_expect);  // tx_expect 0 => plain arrive
void mbar_wait(void* bar, int parity);
void fence_proxy_async();
void mbar_init_fence();
void bulk_g2s(void* dst, const void* src, int bytes, void* bar);
void tma_load(void* dst, const void* map, const int* coord, int rank, void* bar);
void wgmma(float* d, int n, uint64_t da, uint64_t db, int scale_d, int type, int tnspA, int tnspB);
void wgmma_commit();
void wgmma_wait(int n);
void wgmma_fence();

// ---- kernel invocation: CUDA's void** convention
// The structs below are mirrored field by field in runner.py (ctypes).
struct Buf {  // one global-memory buffer of this launch
  char* p;
  uint64_t n;
  uint8_t* flags;  // one byte for each byte: initialised, loaded, stored; null: not tracked
  void* cells;     // race-detector state; null: not tracked
  const char* name;
  int ro;           // every pointer parameter to it is const
  int assume_init;  // initialisation unknown
  int canary;       // 0xff around it
  int pad;
  // counters of this launch
  uint64_t load_sectors, store_sectors;  // summed over warp-wide accesses
  uint64_t load_bytes, store_bytes;      // distinct bytes
  uint64_t load_sectors_distinct, store_sectors_distinct;
};
struct GlobalCount {
  uint64_t requests, sectors, sectors_min;
};
struct SharedCount {
  uint64_t requests, wavefronts, wavefronts_min;
};
struct Stats {
  uint64_t switches, ldmatrix, ldmatrix_conflicts, mma, counters_complete;
  GlobalCount global_load, global_store;
  SharedCount shared_load, shared_store;
};
struct Cfg {
  unsigned grid[3], block[3], smem;
  int sched, seed;                     // sched 0 ascending, 1 descending, 2 random, 3 fixed warp priorities (most skew)
  int block_order;                     // 0 ascending, 1 descending, 2 random
  int async_mode;                      // 0 latest possible, 1 at issue, 2 random
  int poison;                          // fill shared memory with 0xff before each block
  long long block_first, block_count;  // -1: all
  int preempt;                         // check build: yield with probability 1/preempt at every shared access
  int timeout;                         // CPU seconds, 0: none
  Buf* bufs;
  int nbufs;
  int counters;    // check build: keep the traffic counters
  unsigned epoch;  // number of this launch in the process, never 0
};
int launch(void (*thunk)(void**), void** args, const Cfg* cfg);
template <class T> using bare = std::remove_cv_t<std::remove_reference_t<T>>;
template <class... A, size_t... I>
__attribute__((no_sanitize("thread"), no_sanitize("undefined"), noinline)) void invoke_(void (*f)(A...), void** a,
                                                                                        std::index_sequence<I...>) {
  f(*(bare<A>*)a[I]...);
}
template <class... A> __attribute__((no_sanitize("thread"), noinline)) void invoke(void (*f)(A...), void** a) {
  invoke_(f, a, std::index_sequence_for<A...>{});
}
template <class T> void sig1(char*& o) {
  if constexpr (std::is_pointer_v<T>) {
    using E = std::remove_pointer_t<T>;
    if constexpr (std::is_void_v<std::remove_cv_t<E>>) o += sprintf(o, "p%d0 ", std::is_const_v<E>);
    else o += sprintf(o, "p%d%d ", std::is_const_v<E>, (int)sizeof(E));
  } else if constexpr (std::is_floating_point_v<T>) o += sprintf(o, "f%d ", (int)sizeof(T));
  else if constexpr (std::is_integral_v<T>) o += sprintf(o, "%c%d ", std::is_signed_v<T> ? 'i' : 'u', (int)sizeof(T));
  else o += sprintf(o, "s%d ", (int)sizeof(T));
}
template <class... A> const char* sig(void (*)(A...)) {
  static char buf[1024];
  char* o = buf;
  *o = 0;
  (sig1<bare<A>>(o), ...);
  return buf;
}
}  // namespace emu

#define threadIdx (::emu::cur->tid)
#define blockIdx (::emu::bid)
#define blockDim (::emu::bdim)
#define gridDim (::emu::gdim)
static const int warpSize = 32;

EMU_INL void __syncthreads(int line = __builtin_LINE()) { emu::syncthreads(line); }
EMU_INL int __syncthreads_count(int p, int line = __builtin_LINE()) { return emu::syncthreads_red(line, p, 0); }
EMU_INL int __syncthreads_and(int p, int line = __builtin_LINE()) { return emu::syncthreads_red(line, p, 1); }
EMU_INL int __syncthreads_or(int p, int line = __builtin_LINE()) { return emu::syncthreads_red(line, p, 2); }
EMU_INL void __syncwarp(unsigned m = 0xffffffffu, int line = __builtin_LINE()) { emu::syncwarp(m, line); }
EMU_INL void __threadfence() { emu::threadfence(); }
EMU_INL void __threadfence_block() { emu::threadfence(); }
EMU_INL void __trap() { emu::fail("__trap()"); }
#define CT_ASSERT_FAIL(msg) emu::fail("assert: %s", msg)

template <class T> EMU_NOSAN T emu_shfl(unsigned m, T v, int a, int w, int mode, int line) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>, "shfl type");
  emu::ShflOp o;
  o.val = 0;
  memcpy(&o.val, &v, sizeof(T));
  o.arg = a;
  o.width = w;
  o.mode = mode;
  emu::warp_collective(m, emu::shfl_fn, &o, line, "__shfl_sync");
  T r;
  memcpy(&r, &o.out, sizeof(T));
  return r;
}
template <class T> T __shfl_sync(unsigned m, T v, int s, int w = 32, int line = __builtin_LINE()) {
  return emu_shfl(m, v, s, w, 0, line);
}
template <class T> T __shfl_up_sync(unsigned m, T v, int s, int w = 32, int line = __builtin_LINE()) {
  return emu_shfl(m, v, s, w, 1, line);
}
template <class T> T __shfl_down_sync(unsigned m, T v, int s, int w = 32, int line = __builtin_LINE()) {
  return emu_shfl(m, v, s, w, 2, line);
}
template <class T> T __shfl_xor_sync(unsigned m, T v, int s, int w = 32, int line = __builtin_LINE()) {
  return emu_shfl(m, v, s, w, 3, line);
}
static EMU_NOSAN unsigned emu_ballot(unsigned m, int p, int line) {
  emu::VoteOp o{p != 0, 0};
  emu::warp_collective(m, emu::ballot_fn, &o, line, "__ballot_sync");
  return o.out;
}
EMU_INL unsigned __ballot_sync(unsigned m, int p, int line = __builtin_LINE()) { return emu_ballot(m, p, line); }
EMU_INL int __any_sync(unsigned m, int p, int line = __builtin_LINE()) { return emu_ballot(m, p, line) != 0; }
EMU_INL int __all_sync(unsigned m, int p, int line = __builtin_LINE()) { return emu_ballot(m, p, line) == m; }
static EMU_NOSAN long long emu_reduce(unsigned m, long long v, int op, int line) {
  emu::RedOp o{v, 0, op};
  emu::warp_collective(m, emu::reduce_fn, &o, line, "__reduce_sync");
  return o.out;
}
EMU_INL int __reduce_add_sync(unsigned m, int v, int line = __builtin_LINE()) { return (int)emu_reduce(m, v, 0, line); }
EMU_INL int __reduce_max_sync(unsigned m, int v, int line = __builtin_LINE()) { return (int)emu_reduce(m, v, 1, line); }

// ---- atomics (one OS thread: a plain read-modify-write is atomic)
#define EMU_ATOMIC(NAME, EXPR)                                         \
  template <class T> EMU_NOSAN T NAME(T* p, std::common_type_t<T> v) { \
    emu::mem(p, sizeof(T), emu::AT);                                   \
    T old = *p;                                                        \
    *p = (EXPR);                                                       \
    return old;                                                        \
  }
EMU_ATOMIC(atomicAdd, T(old + v))
EMU_ATOMIC(atomicSub, T(old - v))
EMU_ATOMIC(atomicMax, old > v ? old : v)
EMU_ATOMIC(atomicMin, old < v ? old : v)
EMU_ATOMIC(atomicExch, v)
EMU_ATOMIC(atomicOr, T(old | v))
EMU_ATOMIC(atomicAnd, T(old& v))
template <class T> EMU_NOSAN T atomicCAS(T* p, std::common_type_t<T> c, std::common_type_t<T> v) {
  emu::mem(p, sizeof(T), emu::AT);
  T old = *p;
  if (old == c) *p = v;
  return old;
}

template <class T> EMU_INL T __ldg(const T* p) { return *p; }
template <class T> EMU_INL T __ldcs(const T* p) { return *p; }
template <class T> EMU_INL T __ldcg(const T* p) { return *p; }
template <class T> EMU_INL void __stcs(T* p, T v) { *p = v; }
template <class T> EMU_INL void __stcg(T* p, T v) { *p = v; }

// ---- maths / bit intrinsics
#define EMU_MM(T)                                   \
  EMU_INL T min(T a, T b) { return b < a ? b : a; } \
  EMU_INL T max(T a, T b) { return a < b ? b : a; }
EMU_MM(int)
EMU_MM(unsigned) EMU_MM(long long) EMU_MM(unsigned long long) EMU_MM(long) EMU_MM(unsigned long) EMU_MM(float)
    EMU_MM(double) EMU_INL float rsqrtf(float x) {
  return 1.0f / sqrtf(x);
}
EMU_INL float __fdividef(float a, float b) { return a / b; }
// glibc declares __expf & co. itself, so these must be macros, not functions
#define __expf(x) expf(x)
#define __logf(x) logf(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __powf(x, y) powf(x, y)
EMU_INL float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
EMU_INL float __fmul_rn(float a, float b) {
  volatile float r = a * b;
  return r;
}
EMU_INL float __fadd_rn(float a, float b) {
  volatile float r = a + b;
  return r;
}
EMU_INL int __popc(unsigned v) { return __builtin_popcount(v); }
EMU_INL int __clz(int v) { return v ? __builtin_clz((unsigned)v) : 32; }
EMU_INL int __ffs(int v) { return __builtin_ffs(v); }
EMU_INL unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)(((uint64_t)a * b) >> 32); }
EMU_INL int __mulhi(int a, int b) { return (int)(((int64_t)a * b) >> 32); }
template <class D, class S> EMU_INL D emu_bits(S s) {
  static_assert(sizeof(D) == sizeof(S), "");
  D d;
  memcpy(&d, &s, sizeof d);
  return d;
}
EMU_INL int __float_as_int(float f) { return emu_bits<int>(f); }
EMU_INL unsigned __float_as_uint(float f) { return emu_bits<unsigned>(f); }
EMU_INL float __int_as_float(int i) { return emu_bits<float>(i); }
EMU_INL float __uint_as_float(unsigned i) { return emu_bits<float>(i); }
EMU_INL unsigned __byte_perm(unsigned a, unsigned b, unsigned s) {
  uint64_t v = ((uint64_t)b << 32) | a;
  unsigned r = 0;
  for (int i = 0; i < 4; i++) {
    unsigned c = (s >> (4 * i)) & 0xf, y = (v >> (8 * (c & 7))) & 0xff;
    if (c & 8) y = (y & 0x80) ? 0xff : 0;
    r |= y << (8 * i);
  }
  return r;
}
EMU_INL size_t __cvta_generic_to_shared(const void* p) { return emu::smem_u32(p); }

#include "emu_half.h"
