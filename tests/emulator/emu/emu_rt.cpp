// SPDX-License-Identifier: MIT
// Run time of the CUDA execution-model emulator. Compiled twice (fast, and with -DEMU_CHECK), never with a sanitizer,
// and linked into every kernel .so. One translation unit: the hooks are worth inlining.
#include "cuda_emu.h"
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim
#include <elf.h>
#include <link.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/time.h>

#include <algorithm>
#include <cstdarg>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "rt_core.h"
#include "rt_counters.h"
#include "rt_check.h"
#include "rt_sync.h"
#include "rt_mma.h"
#include "rt_hopper.h"

namespace emu {
// ------------------------------------------------------------------ launch
static void fiber_main() {
  g_thunk(g_args);
  Thread* me = CUR;
  me->state = DONE;
  live--;
  if (bars[0].have) {
    bars[0].have = 0;
    int w = bars[0].waiting[0];
    fail("divergent barrier: thread %d exited while thread %d waits at __syncthreads line %d", me->lin, w, th[w].line);
  }
  schedule(me);
  __builtin_unreachable();
}
static char sigstk[65536];
static void timer_set(int sec, int usec) {
  itimerval t{};
  t.it_value.tv_sec = sec;
  t.it_value.tv_usec = usec;
  setitimer(ITIMER_PROF, &t, nullptr);
}
static void timer_rearm() { timer_set(0, 20000); }  // hit libc code: try again a little later
static void on_segv(int sig, siginfo_t* si, void* uc) {
  uptr a = (uptr)si->si_addr, pc = ((ucontext_t*)uc)->uc_mcontext.gregs[REG_RIP];
  if (a - (uptr)stacks < (STK + GUARD) * MAXT) die(pc, "fiber stack overflow", "");
  if (sig == SIGPROF) {
    if (cur && pc >= img_lo && pc < img_hi) die(pc, "timeout", "kernel still running");
    timer_rearm();
    return;
  }
  die(pc, sig == SIGILL ? "trap" : sig == SIGFPE ? "division by zero" : "memory fault (guard page)", describe(a));
}
static int phdr_cb(dl_phdr_info* i, size_t, void*) {
  uptr lo = ~0ull, hi = 0;
  bool mine = false;
  uptr me = (uptr)&phdr_cb;
  size_t tn = 0;
  for (int k = 0; k < i->dlpi_phnum; k++) {
    auto& p = i->dlpi_phdr[k];
    if (p.p_type == PT_LOAD) {
      uptr a = i->dlpi_addr + p.p_vaddr;
      lo = std::min(lo, a);
      hi = std::max(hi, a + p.p_memsz);
      if (me >= a && me < a + p.p_memsz) mine = true;
    }
    if (p.p_type == PT_TLS) tn = p.p_memsz;
  }
  if (mine) {
    img_lo = lo;
    img_hi = hi;
    dyn_lo = (uptr)ct_smem;
    tls_lo = (uptr)i->dlpi_tls_data;
    tls_hi = tls_lo + tn;
    return 1;
  }
  return 0;
}
static void run_block() {
  order.resize(nth);
  live = nth;
  failed = false;
  for (int i = 0; i < nth; i++) th[i].trace.clear();
  tmaq.clear();
  mbars.clear();
  int nw = (nth + 31) / 32;
  pend.assign(nw * 4, Pend());
  wgp.assign((nth + 127) / 128, WgPend());
  wgq.assign((nth + 127) / 128, {});
  wg_grp.assign((nth + 127) / 128, 1);
  wg_fenced.assign(nw, 0);
  for (auto& b : bars) {
    b.have = 0;
    memset(b.wcnt, 0, sizeof b.wcnt);
    b.waiting.clear();
    b.acc.clear();
  }
  red_ph = 0;
  red_n[0] = red_n[1] = 0;
  for (int i = 0; i < nth; i++) {
    Thread& t = th[i];
    t.lin = i;
    t.warp = i / 32;
    t.lane = i % 32;
    t.state = READY;
    t.cp.clear();
    t.cpclk = 1;
    t.tid = {i % bdim.x, i / bdim.x % bdim.y, i / (bdim.x * bdim.y)};
    void** s = (void**)(stacks + (size_t)i * (STK + GUARD) + GUARD + STK) - 8;
    memset(s, 0, 64);
    s[6] = (void*)fiber_main;
    t.sp = s;
    order[i] = cfg->sched == 1 ? nth - 1 - i : i;
  }
  if (cfg->sched == 2)
    for (int i = nth - 1; i > 0; i--) std::swap(order[i], order[rnd() % (i + 1)]);
  if (cfg->sched == 3) {  // seed 0 warps ascending, 1 descending, else a random warp order
    int nw = (nth + 31) / 32;
    std::vector<int> wo(nw);
    for (int i = 0; i < nw; i++) wo[i] = cfg->seed == 1 ? nw - 1 - i : i;
    if (cfg->seed > 1)
      for (int i = nw - 1; i > 0; i--) std::swap(wo[i], wo[rnd() % (i + 1)]);
    int k = 0;
    for (int w : wo)
      for (int l = 0; l < 32 && w * 32 + l < nth; l++) order[k++] = w * 32 + l;
  }
  for (int i = 0; i < nth; i++) pos_of[order[i]] = i;
  if (cfg->poison) {
    memset((void*)tls_lo, 0xff, dyn_lo - tls_lo);
    memset((void*)dyn_lo, 0xff, std::min<size_t>(cfg->smem + 1024, SMEM_MAX));
    if (tls_hi > dyn_lo + SMEM_MAX) memset((void*)(dyn_lo + SMEM_MAX), 0xff, tls_hi - dyn_lo - SMEM_MAX);
  }
#ifdef EMU_CHECK
  NV = 2 * nth + 1 + (nth + 31) / 32;
  vcs.assign((size_t)nth * NV, 0);
  fence_clk.assign(nth, 0);
  tma_clk = 0;
  for (int i = 0; i < nth; i++) vc(i)[i] = 1;
  size_t need = (tls_hi - tls_lo + 1) / 2;
  if (sm.size() != need) sm.assign(need, Cell());
  else {
    size_t d0 = (dyn_lo - tls_lo) / 2, d1 = d0 + (cfg->smem + 1) / 2, d2 = d0 + SMEM_MAX / 2;
    std::fill(sm.begin(), sm.begin() + d1, Cell());
    if (d2 < need) std::fill(sm.begin() + d2, sm.end(), Cell());
  }
  armed = true;
#endif
  cur = nullptr;
  Thread* t = pick();
  cur = t;
  emu_switch(&main_sp, t->sp);
#ifdef EMU_CHECK
  armed = false;
#endif
  cur = nullptr;
  if (!failed) count_merge_block();
#ifdef EMU_CHECK
  if (!failed && cfg->poison)
    for (unsigned k = 0; k + 1 < cfg->smem; k += 2)
      if (!(sm[(dyn_lo - tls_lo + k) >> 1].fl & INIT) && *(u16*)(dyn_lo + k) != 0xffff) {
        report(0, "emulator: store without instrumentation", fmt("shared+%u", k));
        break;
      }
#endif
  if (!failed) {
    if (!tmaq.empty()) report(0, "block exited with bulk copies in flight", fmt("%zu", tmaq.size())), failed = true;
    for (auto& k : mbars)
      if (k.second.tx != 0) {
        report(0, "block exited with an mbarrier awaiting bytes",
               fmt("shared+%u, %ld bytes", k.first - SBASE, k.second.tx));
        failed = true;
        break;
      }
    for (size_t g = 0; g < wgq.size(); g++)
      if (!wgq[g].empty()) {
        report(0, "block exited with wgmma in flight", fmt("warpgroup %zu", g));
        failed = true;
        break;
      }
  }
  if (!failed && cfg->poison && cfg->smem + 1024 <= SMEM_MAX)
    for (unsigned k = 0; k < 1024; k++)
      if (((u8*)dyn_lo)[cfg->smem + k] != 0xff) {
        report(0, "shared out of bounds",
               fmt("write at dynamic offset %u, launch gave %u bytes (canary)", cfg->smem + k, cfg->smem));
        failed = true;
        break;
      }
}
int launch(void (*thunk)(void**), void** args, const Cfg* c) {
  cfg = c;
  g_thunk = thunk;
  g_args = args;
  errs.clear();
  n_suppressed = 0;
  rng = 0x9e3779b97f4a7c15ull ^ ((u64)c->seed * 0xbf58476d1ce4e5b9ull + 1);
  cur = nullptr;
  st = Stats();
  last_buf = 0;
  count_begin();
  if (!stacks) return 1;
  ct_smem[0] = 0;
  dl_iterate_phdr(phdr_cb, nullptr);
  unsigned long long n = (unsigned long long)c->block[0] * c->block[1] * c->block[2];
  auto bad = [&](const char* m) {
    errs.push_back({std::string("invalid launch: ") + m, 0});
    return 1;
  };
  if (n == 0 || n > 1024 || c->block[2] > 64) return bad("block size");
  if (!c->grid[0] || !c->grid[1] || !c->grid[2] || c->grid[0] > 0x7fffffffu || c->grid[1] > 65535 || c->grid[2] > 65535)
    return bad("grid size");
  if (c->smem > SMEM_MAX) return bad("dynamic shared memory");
  if ((uptr)ct_smem & 1023) return bad("TLS block misaligned (emulator)");
  nth = (int)n;
  bdim = dim3(c->block[0], c->block[1], c->block[2]);
  gdim = dim3(c->grid[0], c->grid[1], c->grid[2]);
  stack_t ss{}, os;
  ss.ss_sp = sigstk;
  ss.ss_size = sizeof sigstk;
  sigaltstack(&ss, &os);
  struct sigaction sa{}, old[5];
  sa.sa_sigaction = on_segv;
  sa.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  int sg[5] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGPROF};
  for (int i = 0; i < 5; i++) sigaction(sg[i], &sa, &old[i]);
  if (c->timeout) timer_set(c->timeout, 0);
  long long nb = (long long)c->grid[0] * c->grid[1] * c->grid[2], b0 = c->block_first < 0 ? 0 : c->block_first,
            cnt = c->block_first < 0 ? nb : c->block_count;
  std::vector<long long> perm;
  if (c->block_order == 2) {
    for (long long i = 0; i < cnt; i++) perm.push_back(i);
    for (long long i = cnt - 1; i > 0; i--) std::swap(perm[i], perm[rnd() % (i + 1)]);
  }
  for (long long k = 0; k < cnt; k++) {
    blk_lin = b0 + (c->block_order == 0 ? k : c->block_order == 1 ? cnt - 1 - k : perm[k]);
    bid = {(unsigned)(blk_lin % gdim.x), (unsigned)(blk_lin / gdim.x % gdim.y), (unsigned)(blk_lin / gdim.x / gdim.y)};
    run_block();
    if (failed) break;
  }
  if (c->timeout) timer_set(0, 0);
  for (int i = 0; i < 5; i++) sigaction(sg[i], &old[i], nullptr);
  sigaltstack(&os, nullptr);
  count_end();
  // the rest of a buffer's first and last page is filled with 0xff: writes just outside show even in the fast build
  for (int i = 0; i < c->nbufs; i++) {
    const Buf& b = c->bufs[i];
    if (!b.canary) continue;
    for (u8* q = (u8*)b.p + b.n; ((uptr)q & 4095) != 0; q++)
      if (*q != 0xff) {
        errs.push_back({fmt("global out of bounds: write %ld bytes past the end of %s (canary)",
                            (long)(q - (u8*)b.p - b.n), b.name),
                        0});
        break;
      }
    for (u8* q = (u8*)b.p - 1; ((uptr)q & 4095) != 4095; q--)
      if (*q != 0xff) {
        errs.push_back(
            {fmt("global out of bounds: write %ld bytes before %s (canary)", (long)((u8*)b.p - q), b.name), 0});
        break;
      }
  }
  return errs.empty() ? 0 : 1;
}
}  // namespace emu

#ifdef EMU_CHECK
#include "rt_hooks.h"
#endif
using namespace emu;
#pragma GCC visibility push(default)
extern "C" {
// One fiber-stack arena per process, handed from .so to .so: 1024 guard pages are 2048 kernel mappings, and
// vm.max_map_count (65530) would be exhausted after some thirty loaded kernels.
void* emu_stacks(void* p) {
  if (!p) {
    p = mmap(0, (STK + GUARD) * MAXT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return nullptr;
    for (int i = 0; i < MAXT; i++)
      if (mprotect((char*)p + (size_t)i * (STK + GUARD), GUARD, PROT_NONE)) return nullptr;
  }
  return stacks = (char*)p;
}
int emu_nerr() { return (int)errs.size(); }
const char* emu_err(int i, u64* off) {
  uptr pc = errs[i].pc;
  *off = pc > img_lo && pc < img_hi ? pc - img_lo : 0;
  return errs[i].msg.c_str();
}
void emu_stats(Stats* o) { *o = st; }
size_t emu_cell_size() {
#ifdef EMU_CHECK
  return sizeof(GCell);
#else
  return 0;
#endif
}
}
#pragma GCC visibility pop
