"""Why results are known to differ. What is said of mergekit holds for version 0.1.5."""

NO_ELEMENT = (
    "int(density n) is 0 there: nothing is left of the delta. Here a density above 0 keeps at least one element, as "
    "mergekit's TIES does."
)
NONE_SELECTED = "int(select_topk n) is 0 there: nothing is selected. Here a select_topk above 0 keeps one element."
NONE_KEPT = (
    "int(density n) is 0 there: nothing is left of the delta. Here a density above 0 keeps at least one element."
)
TRUNCATED = (
    "select_topk n is rounded to float32 there before it is truncated: of 100 elements 0.57 keeps 57, and here 56, as "
    "with the densities of both."
)
OPPOSITE = (
    "Opposite vectors: the sine of their angle is rounding alone, and mergekit divides by it. Here they are "
    "interpolated linearly."
)
CANCEL = (
    "The directions cancel: what is left of their sum in mergekit, and gives the result its direction, is rounding. "
    "Here the result is the weighted mean."
)
STEP = "A step of no length there shortens the result by the factor cos(eps), 5e-7; nothing is left of that at 1e-8."
UNCHANGED = "A tensor that no model changed has no direction there. Here the result is the base."
NOTHING = "An empty tensor has no direction there. Here the result is empty."
LONG_SUMS = (
    "Its sums over a million elements lose digits; in extended precision the result is within 10 ulps of this one."
)
OPPOSITE_MEAN = "Opposite models have no mean direction: in float32 rounding decides which way it goes from the first."
SMALL_NORMS = (
    "The product of two norms counts as 1e-6 there where it is less, which makes small deltas look like unrelated "
    "ones, so that the result stays near the base. Here the cosine is that of the deltas."
)
NEGATIVE = (
    "A negative weight that is divided by itself adds the delta that it should subtract; here that is refused: "
    "normalize: false subtracts."
)
ZERO_SUM = "Weights that sum to zero cannot be normalized: mergekit's result is infinite."
SMALL_ENERGIES = (
    "All models weigh the same there where the sum of mean squares is below 1e-6, as it is here; uniform_below: 1e-6 "
    "does so too."
)
FLOOR = "Changes below 1e-6 count as 1e-6 in the share that it takes of them, which shows where t is below that too."
NEGATIVE_T = "A negative t gives the base there, and is refused here."
DIVERGENCE = (
    "A divergence of two close rows is the difference of nearly equal numbers: in float32 it is largely rounding, and "
    "elements near the threshold fall on either side. Here it is taken in float64, and in float64 both agree."
)
SAMPLED = "Quartiles of more than a million elements come from random samples there, differently in each run; here not."
NO_QUARTILES = "An empty tensor has no quartiles there."
FACTOR = "Its factor is rounded to float32, which shows in float64 only."
ONE_COLUMN = "A row of one element has no ranks there, a number no rows. Here it is kept with probability density."
