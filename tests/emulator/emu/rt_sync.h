// SPDX-License-Identifier: MIT
// Scheduler of the fibers, barriers, warp and warpgroup collectives. Part of emu_rt.cpp.
#pragma once
namespace emu {
// ------------------------------------------------------------------ scheduler
struct TmaOp;
static bool run_one_tma();
static Thread* pick() {
  int n = nth, p;
  if (cfg->sched == 3) p = 0;  // fixed priorities: whoever is first in `order` runs as far ahead as it can
  else if (cfg->sched == 2) p = rnd() % n;
  else {
    p = cur ? pos_of[cur->lin] + 1 : 0;
    if (p >= n) p = 0;
  }
  for (int k = 0; k < n; k++) {
    Thread* t = &th[order[p]];
    if (t->state == READY) return t;
    if (++p == n) p = 0;
  }
  return nullptr;
}
static void deadlock() {
  std::string d;
  int shown = 0;
  std::map<std::string, int> m;
  for (int i = 0; i < nth; i++)
    if (Thread& t = th[i]; t.state == BLOCKED) m[fmt("%s (line %d)", t.what, t.line)]++;
  for (auto& k : m)
    if (shown++ < 6) d += fmt("%d thread(s) at %s; ", k.second, k.first.c_str());
  die(0, "deadlock / divergent barrier", d + fmt("%d exited", nth - live));
}
static void schedule(Thread* me) {  // me is blocked / done / ready-but-yielding
  for (;;) {
    Thread* t = pick();
    if (t == me) { return; }
    if (t) {
      cur = t;
      st.switches++;
      emu_switch(&me->sp, t->sp);
      return;
    }
    if (live == 0) {
      cur = nullptr;
      emu_switch(&me->sp, main_sp);
    }
    if (!run_one_tma()) deadlock();
  }
}
static void block(const char* what, int line) {
  Thread* me = CUR;
  me->state = BLOCKED;
  me->what = what;
  me->line = line;
  schedule(me);
}
[[maybe_unused]] static void yield_ready() { schedule(CUR); }

// ------------------------------------------------------------------ barriers
struct Bar {
  int have = 0, expect = 0;
  int wline[32] = {0}, wcnt[32] = {0};
  std::vector<int> waiting;
  std::vector<u32> acc;
};
static Bar bars[16];
static void bar_arrive(int id, int expect, int line, bool wait, const char* what) {
  Thread* me = CUR;
  Bar& b = bars[id];
  if (b.have && b.expect != expect)
    fail("barrier %d: thread counts differ (%d vs %d), line %d", id, b.expect, expect, line);
  if (expect % 32) {
    if (expect != nth)
      fail("barrier %d: thread count %d is not a multiple of the warp size, line %d", id, expect, line);
  }
  if (live < nth && expect == nth)
    fail("divergent barrier: %s (line %d) after %d thread(s) already exited", what, line, nth - live);
  if (b.wcnt[me->warp]++ == 0) b.wline[me->warp] = line;
  else if (b.wline[me->warp] != line)
    fail("divergent barrier: lanes of warp %d wait at lines %d and %d", me->warp, b.wline[me->warp], line);
  b.expect = expect;
  b.have++;
#ifdef EMU_CHECK
  if (b.acc.size() != (size_t)NV) b.acc.assign(NV, 0);
  vjoin(b.acc.data(), vc(me->lin));
  release_self(me->lin);
#endif
  if (b.have == expect) {
#ifdef EMU_CHECK
    for (int o : b.waiting) {
      u32 own = vc(o)[o];
      memcpy(vc(o), b.acc.data(), NV * 4);
      vc(o)[o] = own;
    }
    if (wait) {
      u32 own = vc(me->lin)[me->lin];
      memcpy(vc(me->lin), b.acc.data(), NV * 4);
      vc(me->lin)[me->lin] = own;
    }
    b.acc.assign(NV, 0);
#endif
    for (int w = 0; w * 32 < nth; w++)
      if (expect == nth || b.wcnt[w] == 32) count_merge(w, ~0u);
    for (int o : b.waiting) th[o].state = READY;
    b.waiting.clear();
    b.have = 0;
    memset(b.wcnt, 0, sizeof b.wcnt);
    if (cfg->sched >= 2) yield_ready();
  } else if (wait) {
    b.waiting.push_back(me->lin);
    block(what, line);
  }
}
void syncthreads(int line) { bar_arrive(0, nth, line, true, "__syncthreads"); }
void named_barrier(int id, int n, int line, bool wait) {
  bar_arrive(id, n, line, wait, wait ? "bar.sync" : "bar.arrive");
}
static int red_acc[2], red_n[2], red_ph;
int syncthreads_red(int line, int pred, int op) {
  int ph = red_ph;
  int& acc = red_acc[ph];
  if (red_n[ph]++ == 0) acc = op == 1;
  acc = op == 0 ? acc + (pred != 0) : op == 1 ? (acc && pred) : (acc || pred);
  if (red_n[ph] == nth) {
    red_ph ^= 1;
    red_n[red_ph] = 0;
  }
  bar_arrive(0, nth, line, true, "__syncthreads_red");
  return red_acc[ph];
}
void threadfence() {}

// ------------------------------------------------------------------ warp / warpgroup collectives
struct Pend {
  unsigned mask = 0, have = 0;
  CollFn fn;
  int line;
  const char* name;
  void* op[32];
};
static std::vector<Pend> pend;  // 4 per warp
void warp_collective(unsigned mask, CollFn fn, void* opnd, int line, const char* name) {
  Thread* me = CUR;
  unsigned bit = 1u << me->lane;
  int lanes = std::min(32, nth - me->warp * 32);
  if (lanes < 32) mask &= (1u << lanes) - 1;
  if (!(mask & bit)) fail("%s line %d: executing lane %d is not in its mask 0x%08x", name, line, me->lane, mask);
  Pend* e = nullptr;
  Pend* fr = nullptr;
  for (int i = 0; i < 4; i++) {
    Pend& p = pend[me->warp * 4 + i];
    if (p.have == 0) {
      if (!fr) fr = &p;
    } else if (p.mask == mask) e = &p;
  /* other pending masks are legal: each waiting lane sits in exactly one of them */ }
  if (!e) {
    e = fr;
    e->mask = mask;
    e->fn = fn;
    e->line = line;
    e->name = name;
  } else if (e->fn != fn || e->line != line)
    fail("divergent warp collective: %s line %d while lanes wait in %s line %d", name, line, e->name, e->line);
  e->op[me->lane] = opnd;
  e->have |= bit;
  for (unsigned m = mask & ~e->have; m; m &= m - 1) {
    Thread& o = th[me->warp * 32 + __builtin_ctz(m)];
    if (o.state == DONE) fail("%s line %d: lane %d of the mask has exited", name, line, o.lane);
  }
  if (e->have == mask) {
    count_merge(me->warp, mask);
    fn(e->op, mask, me->warp);
    e->have = 0;
    for (unsigned m = mask & ~bit; m; m &= m - 1) th[me->warp * 32 + __builtin_ctz(m)].state = READY;
    if (cfg->sched >= 2) yield_ready();
  } else block(name, line);
}
struct WgPend {
  int have = 0;
  WgFn fn;
  int line;
  const char* name;
  void* op[128];
};
static std::vector<WgPend> wgp;
void wg_collective(WgFn fn, void* opnd, int line, const char* name) {
  Thread* me = CUR;
  int wg = me->lin / 128;
  WgPend& e = wgp[wg];
  if (e.have && e.fn != fn) fail("divergent warpgroup collective: %s while lanes wait in %s", name, e.name);
  if (!e.have) {
    e.fn = fn;
    e.line = line;
    e.name = name;
  }
  e.op[me->lin % 128] = opnd;
  e.have++;
  if (e.have == 128) {
    for (int w = 0; w < 4; w++) count_merge(wg * 4 + w, ~0u);
    fn(e.op, wg);
    e.have = 0;
    for (int i = 0; i < 128; i++) th[wg * 128 + i].state = READY;
    me->state = READY;
  } else block(name, line);
}
void shfl_fn(void** o, unsigned mask, int) {
  for (unsigned m = mask; m; m &= m - 1) {
    int l = __builtin_ctz(m);
    ShflOp* s = (ShflOp*)o[l];
    int w = s->width, seg = l & ~(w - 1), src;
    if (s->mode == 0) src = seg | (s->arg & (w - 1));
    else if (s->mode == 1) src = l - s->arg < seg ? l : l - s->arg;
    else if (s->mode == 2) src = l + s->arg >= seg + w ? l : l + s->arg;
    else {
      src = l ^ s->arg;
      if (src >= seg + w) src = l;
    }
    if (!((mask >> src) & 1))
      fail("__shfl_sync: lane %d reads from lane %d, which is not in mask 0x%08x", l, src, mask);
    s->out = ((ShflOp*)o[src])->val;
  }
}
void ballot_fn(void** o, unsigned mask, int) {
  unsigned r = 0;
  for (unsigned m = mask; m; m &= m - 1) {
    int l = __builtin_ctz(m);
    if (((VoteOp*)o[l])->pred) r |= 1u << l;
  }
  for (unsigned m = mask; m; m &= m - 1) ((VoteOp*)o[__builtin_ctz(m)])->out = r;
}
void reduce_fn(void** o, unsigned mask, int) {
  long long r = 0;
  bool first = true;
  for (unsigned m = mask; m; m &= m - 1) {
    RedOp* x = (RedOp*)o[__builtin_ctz(m)];
    r = first ? x->v : x->op == 0 ? r + x->v : std::max(r, x->v);
    first = false;
  }
  for (unsigned m = mask; m; m &= m - 1) ((RedOp*)o[__builtin_ctz(m)])->out = r;
}
static void syncwarp_fn(void**, unsigned mask, int warp) {
#ifdef EMU_CHECK
  std::vector<u32> j(NV, 0);
  for (unsigned m = mask; m; m &= m - 1) vjoin(j.data(), vc(warp * 32 + __builtin_ctz(m)));
  for (unsigned m = mask; m; m &= m - 1) {
    int t = warp * 32 + __builtin_ctz(m);
    memcpy(vc(t), j.data(), NV * 4);
    vc(t)[t]++;
  }
#endif
}
void syncwarp(unsigned mask, int line) { warp_collective(mask, syncwarp_fn, nullptr, line, "__syncwarp"); }

}  // namespace emu
