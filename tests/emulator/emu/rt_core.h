// SPDX-License-Identifier: MIT
// Threads, the error log, buffers, and how an address is described. Part of emu_rt.cpp.
#pragma once

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef uintptr_t uptr;

extern thread_local __attribute__((aligned(1024))) unsigned char ct_smem[];  // defined by the generated driver
static const size_t SMEM_MAX = 232448;                                       // 227 KiB

// A CUDA thread is a fiber. Switching saves the callee-saved registers only; swapcontext would cost a system call.
extern "C" void emu_switch(void** save, void* to);
asm(R"(
.text
.type emu_switch,@function
.hidden emu_switch
emu_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size emu_switch,.-emu_switch
)");

namespace emu {
ThreadPub* cur;
uint3 bid;
dim3 bdim, gdim;

enum { READY, BLOCKED, DONE };
struct CpOp { void* dst; const void* src; int n, sn; u32 clk; };
// One step of a lane's trace: an access (kind RD/WR/AT) or the entry of a basic block (kind MARK).
struct Event { u32 pc; u8 n, kind; int16_t buf; uptr a; };
enum { MARK = 3, SHARED_BUF = -1 };
struct Thread : ThreadPub {
  void* sp;
  int state;
  int line;
  const char* what;
  std::vector<CpOp> cp;
  u32 cpclk;
  std::vector<Event> trace;
};
#define CUR (static_cast<Thread*>(cur))

static const size_t STK = 96 << 10, GUARD = 4096;
static const int MAXT = 1024;
static Thread th[MAXT];  // in .bss, so that instrumented reads of threadIdx fall in the image range
static std::vector<int> order;
static int nth, live, pos_of[MAXT];
static char* stacks;
static void* main_sp;
static const Cfg* cfg;
static u64 rng;
static void (*g_thunk)(void**);
static void** g_args;
static bool failed;
static long long blk_lin;
static uptr tls_lo, tls_hi, dyn_lo, img_lo, img_hi;
static Stats st;

static inline u64 rnd() { rng ^= rng << 13; rng ^= rng >> 7; rng ^= rng << 17; return rng; }

// ---- error log -----------------------------------------------------------------------------------------------------
struct Err { std::string msg; uptr pc; };
static std::vector<Err> errs;
static int n_suppressed;

static std::string vfmt(const char* f, va_list ap) { char b[1024]; vsnprintf(b, sizeof b, f, ap); return b; }
static std::string fmt(const char* f, ...) { va_list ap; va_start(ap, f); auto s = vfmt(f, ap); va_end(ap); return s; }
static std::string where() {
  if (!cur) return "host";
  return fmt("block(%u,%u,%u) thread(%u,%u,%u)", bid.x, bid.y, bid.z, cur->tid.x, cur->tid.y, cur->tid.z);
}
// one report for each (place, kind of error); the kernel goes on
static void report(uptr pc, const std::string& key, const std::string& detail) {
  for (auto& e : errs) if (e.pc == pc && e.msg.compare(0, key.size(), key) == 0) { n_suppressed++; return; }
  if (errs.size() < 24) errs.push_back({key + ": " + detail + " [" + where() + "]", pc}); else n_suppressed++;
}
static void to_main() { failed = true; void* dummy; emu_switch(&dummy, main_sp); __builtin_unreachable(); }
// report and abandon the launch
[[noreturn]] static void die(uptr pc, const std::string& key, const std::string& detail) {
  report(pc, key, detail);
  to_main();
  __builtin_unreachable();
}
void fail(const char* f, ...) { va_list ap; va_start(ap, f); auto s = vfmt(f, ap); va_end(ap); die(0, s, ""); }

// ---- buffers: owned by the host side (memory.py), described by cfg->bufs ------------------------------------------
static const size_t GAP = 256u << 20;  // memory.py leaves this much unmapped on both sides of a buffer
static int last_buf;
[[maybe_unused]] static int find_buf(uptr a) {
  if (last_buf < cfg->nbufs && a - (uptr)cfg->bufs[last_buf].p < cfg->bufs[last_buf].n) return last_buf;
  for (int i = 0; i < cfg->nbufs; i++) if (a - (uptr)cfg->bufs[i].p < cfg->bufs[i].n) return last_buf = i;
  return -1;
}
static std::string describe(uptr a) {
  if (a >= tls_lo && a < tls_hi) return fmt("shared+%ld", (long)(a - dyn_lo));
  std::string best = fmt("0x%lx", (long)a);
  size_t best_distance = GAP;
  for (int i = 0; i < cfg->nbufs; i++) {
    const Buf& b = cfg->bufs[i];
    long off = (long)(a - (uptr)b.p);
    size_t d = off < 0 ? -off : off >= (long)b.n ? off - b.n + 1 : 0;
    if (d >= best_distance) continue;
    best_distance = d;
    if (d == 0) best = fmt("%s+%ld", b.name, off);
    else if (off < 0) best = fmt("%ld bytes before %s", -off, b.name);
    else best = fmt("%ld bytes past the end of %s (%lu bytes)", off - (long)b.n, b.name, (long)b.n);
  }
  return best;
}
}  // namespace emu
