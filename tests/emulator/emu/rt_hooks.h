// SPDX-License-Identifier: MIT
// The functions that g++ calls from instrumented code: -fsanitize=thread, -fsanitize=undefined parts and
// -fsanitize-coverage=trace-pc. No sanitizer run time is linked. Part of emu_rt.cpp, check build only.
#pragma once
using namespace emu;
#pragma GCC visibility push(default)
extern "C" {
#define PC ((uptr)__builtin_return_address(0))
#define H(N)                                                                  \
  void __tsan_read##N(void* p) { hook((uptr)p, N, RD, PC, true); }            \
  void __tsan_write##N(void* p) { hook((uptr)p, N, WR, PC, true); }           \
  void __tsan_unaligned_read##N(void* p) { hook((uptr)p, N, RD, PC, false); } \
  void __tsan_unaligned_write##N(void* p) { hook((uptr)p, N, WR, PC, false); }
H(1)
H(2) H(4) H(8) H(16)
#undef H
    void __tsan_read_range(void* p, size_t n) {
  hook((uptr)p, n, RD, PC, false);
}
void __tsan_write_range(void* p, size_t n) { hook((uptr)p, n, WR, PC, false); }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __sanitizer_cov_trace_pc() {
  if (counting && armed) trace_push(CUR, PC, 0, MARK, 0, 0);
}

// every UBSan handler's first argument starts with a source location
struct Loc {
  const char* file;
  u32 line, col;
};
static void ub(const char* kind, const Loc* l, std::string detail = "") {
  if (armed) report((uptr)l, fmt("%s at %s:%u:%u", kind, l->file, l->line, l->col), detail);
}
struct TypeMismatch {
  Loc loc;
  void* type;
  u8 logalign, kind;
};
void __ubsan_handle_type_mismatch_v1(TypeMismatch* d, uptr p) {
  if (p & ((1ull << d->logalign) - 1))
    ub("misaligned access (UBSan)", &d->loc,
       fmt("address %s needs alignment %d", describe(p).c_str(), 1 << d->logalign));
  else ub("null pointer (UBSan)", &d->loc);
}
void __ubsan_handle_out_of_bounds(Loc* l, uptr i) {
  if (armed) {
    ub("array index out of bounds (UBSan)", l, fmt("index %ld", (long)i));
    to_main();
  }
}
void __ubsan_handle_shift_out_of_bounds(Loc* l, uptr, uptr) { ub("shift out of bounds (UBSan)", l); }
void __ubsan_handle_add_overflow(Loc* l, uptr, uptr) { ub("signed overflow in + (UBSan)", l); }
void __ubsan_handle_sub_overflow(Loc* l, uptr, uptr) { ub("signed overflow in - (UBSan)", l); }
void __ubsan_handle_mul_overflow(Loc* l, uptr, uptr) { ub("signed overflow in * (UBSan)", l); }
void __ubsan_handle_negate_overflow(Loc* l, uptr) { ub("signed overflow in negation (UBSan)", l); }
void __ubsan_handle_divrem_overflow(Loc* l, uptr, uptr) {
  if (armed) {
    ub("division by zero (UBSan)", l);
    to_main();
  }
}
void __ubsan_handle_float_cast_overflow(Loc* l, uptr) { ub("float to int overflow (UBSan)", l); }
}
#pragma GCC visibility pop
