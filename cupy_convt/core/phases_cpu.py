# SPDX-License-Identifier: MIT
"""Products phase by phase: forms of the short filters, and how their tiles are cut.

Sample u s + f of the full response is a filter of J = ceil(K / s) taps on x itself, the same for every f:

    F[u s + f] = sum_{m < J} w[f + m s] x[u - m]

A form computes `outputs` consecutive u at once from `points` products of sums of a few x with sums of a few taps.
Winograd's minimal filters F(m, r) give m outputs of r taps in m + r - 1 products instead of m r (S. Winograd,
Arithmetic Complexity of Computations, SIAM 1980); with the points 0, 1, -1, infinity there are two of them,
F(3, 2) and F(2, 3), whose only constant is 1/2, and with 0, 1, infinity there is F(2, 2), which has none and fewer sums
to make. Longer filters are sections of r taps; a last section that is not full is padded with zeros. Sections are
summed where the products are, or, in F(2, 2), where they start as far apart as groups of outputs do, are more rows of
one product, whose columns serve them all. The form of one output and one tap is the plain sum.
"""

from __future__ import annotations

from dataclasses import dataclass

from cupy_convt.core.problem import Problem, ceil_div
from cupy_convt.core.rows_cpu import RealShape
from cupy_convt.core.tiles_cpu import fit

#: From this stride on a phase-minor order of the products has loops long enough to be read and written as they lie.
PHASES_INNER_FROM = 32
#: Groups of outputs up to which whole rows are put together from sums in the order of the products, which are of all
#: items: longer rows have loops of their own that are long enough.
SHORT_ROWS = 64
#: Numbers that the products of a tile may have: at least, at most, and between them for each channel summed over:
#: long sums are worth large products, short ones want theirs in the cache.
LEAST_RESULTS, MOST_RESULTS, RESULTS_PER_CHANNEL = 1 << 19, 1 << 22, 1 << 13
#: Inputs that the plain form may copy for a row of its product, and rows that a minimal filter wants for a section.
COPIES_PER_ROW, ROWS_PER_SECTION = 4, 256
#: Rows from which the few sums of F(2, 2) pay.
LEAST_ROWS = 64
#: Sums of x that go into one product.
MOST_INPUTS = 1 << 19
#: Columns below which a product is too narrow to be worth a tile of its own, and rows above which it gains nothing.
LEAST_COLUMNS, MOST_ROWS = 256, 1024


@dataclass(frozen=True)
class Form:
    """F(outputs, section): so many outputs of so many taps at once."""

    outputs: int
    section: int

    @property
    def points(self) -> int:
        """Products for each group of outputs."""
        return self.outputs + self.section - 1

    @property
    def name(self) -> str:
        """As plans are called."""
        return "phases" if self.points == 1 else f"winograd{self.outputs}x{self.section}"

    def sections(self, taps: int) -> int:
        """Sections of a filter."""
        return ceil_div(max(taps, 1), self.section)

    def summed(self, taps: int) -> int:
        """Sections that a product sums over."""
        return 1 if self == HALVES else self.sections(taps)

    def beside(self, taps: int) -> int:
        """Sections that are rows of a product, each of them later than the one before by one group of outputs."""
        return self.sections(taps) // self.summed(taps)


PLAIN, HALVES = Form(1, 1), Form(2, 2)
FORMS = (PLAIN, HALVES, Form(3, 2), Form(2, 3))


def phase_forms(problem: Problem) -> tuple[Form, ...]:
    """Forms that pay for a problem: the plain one, and the minimal filter with the fewest products.

    What is made of x for a column serves as many results as the product has rows: with few of them it costs more than
    it saves, whatever the sizes.
    """
    taps = problem.phases.max_taps
    if problem.dilation != 1 or problem.kernel_size < problem.stride:
        return ()
    real = RealShape.of(problem)
    rows = real.c_out * problem.stride
    # x is read as it lies where there is one tap
    found = [PLAIN] if taps == 1 or taps * real.c_in <= COPIES_PER_ROW * rows else []
    if taps == 1 or problem.precision == "ieee":
        return tuple(found)

    def products(form: Form) -> float:
        return form.points / form.outputs * form.sections(taps)

    minimal = min(FORMS[2:], key=lambda form: (products(form), form.sections(taps)))
    if rows >= ROWS_PER_SECTION * minimal.sections(taps):
        found.append(minimal)
    if rows >= LEAST_ROWS and products(HALVES) < taps:
        found.append(HALVES)
    return tuple(found)


def rows_of(problem: Problem) -> tuple[int, int]:
    """The u of the first and past the last sample of the result."""
    return problem.p_left // problem.stride, ceil_div(problem.p_left + problem.l_out, problem.stride)


@dataclass(frozen=True)
class PhaseTiles:
    """Items, channels and groups of outputs in a tile."""

    items: int
    channels: int
    groups: int


def phase_tiles(problem: Problem, form: Form, most: int, workers: int) -> PhaseTiles:
    """Tiles of at most about `most` numbers, a whole number of them for every worker where there are few.

    Cutting channels makes the sums of x again for each part; cutting time reads the weight again for each part.
    """
    real = RealShape.of(problem)
    first, stop = rows_of(problem)
    groups = ceil_div(stop - first, form.outputs)
    depth = form.summed(problem.phases.max_taps) * real.c_in
    per_channel = real.c_out // problem.c_out_group * problem.stride * form.beside(problem.phases.max_taps)
    results = min(max(LEAST_RESULTS, depth * RESULTS_PER_CHANNEL), MOST_RESULTS, most // 2)
    inputs = min(MOST_INPUTS, most // 4)
    rows = min(MOST_ROWS, per_channel * problem.c_out_group)
    columns = max(min(max(inputs // depth, LEAST_COLUMNS), results // (form.points * rows)) // real.planes, 1)
    group_tile, item_tile = fit(columns, (groups, 1), (problem.batch, 1))
    channels = max(min(problem.c_out_group, results // (form.points * per_channel * group_tile * item_tile)), 1)
    extents = problem.batch, problem.c_out_group, groups
    items, cuts, parts = (ceil_div(*pair) for pair in zip(extents, (item_tile, channels, group_tile), strict=True))
    for _ in range(workers):
        total = items * cuts * parts * problem.groups
        if total % workers == 0 or total >= 8 * workers:
            break
        if group_tile * item_tile <= 2 * LEAST_COLUMNS and cuts < problem.c_out_group:
            cuts += 1
        elif item_tile > 1:
            items += 1
        else:
            parts += 1
    return PhaseTiles(*(ceil_div(*pair) for pair in zip(extents, (items, cuts, parts), strict=True)))
