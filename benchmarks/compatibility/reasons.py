"""Why results differ where they are known to. Statements about mergekit hold for version 0.1.5."""

NO_ELEMENT = (
    "mergekit keeps int(density n) elements: none if that is 0. warpmerge keeps at least one element at a density "
    "above 0, as mergekit's TIES does."
)
NONE_SELECTED = (
    "mergekit keeps int(select_topk n) elements: none if that is 0. warpmerge keeps at least one at a select_topk "
    "above 0."
)
NONE_KEPT = (
    "PEFT keeps int(density n) elements: none if that is 0. warpmerge keeps at least one element at a density above 0."
)
TRUNCATED = (
    "mergekit rounds select_topk n to float32 before it truncates. With 0.57 it keeps 57 of 100 elements. warpmerge "
    "keeps 56, as both programs do with a density of 0.57."
)
OPPOSITE = (
    "The vectors are opposite. The sine of their angle is only rounding, and mergekit divides by it. warpmerge "
    "interpolates linearly."
)
CANCEL = (
    "The directions cancel. The rest of their sum is rounding; mergekit takes the result's direction from it. "
    "warpmerge returns the weighted mean."
)
STEP = (
    "mergekit adds a tangent step of length 0. It shortens the result by the factor cos(eps), 5e-7. At the default "
    "eps of 1e-8 the effect vanishes."
)
UNCHANGED = (
    "A tensor that no model changed has no direction, which is an error in mergekit. warpmerge returns the base."
)
NOTHING = "An empty tensor has no direction, which is an error in mergekit. warpmerge returns an empty tensor."
LONG_SUMS = (
    "mergekit's sums over a million elements lose digits. In extended precision its result is within 10 ulps of "
    "warpmerge's."
)
OPPOSITE_MEAN = (
    "Opposite models have no mean direction. In float32 rounding decides on which side of the first it lies."
)
SMALL_NORMS = (
    "mergekit counts a product of two norms below 1e-6 as 1e-6. So small deltas look unrelated, and the result stays "
    "near the base. warpmerge uses the cosine of the deltas."
)
NEGATIVE = (
    "With a negative weight the sign cancels in the division: mergekit adds the delta instead of subtracting it. "
    "warpmerge refuses it; normalize: false subtracts."
)
ZERO_SUM = "Weights that sum to zero cannot be normalized. mergekit's result is infinite."
SMALL_ENERGIES = (
    "mergekit gives all models the same weight if the sum of mean squares is below 1e-6, as in this case. "
    "uniform_below: 1e-6 does the same in warpmerge."
)
FLOOR = "mergekit divides t by the magnitude of the delta, but by no less than 1e-6. That shows if t is below 1e-6 too."
NEGATIVE_T = "mergekit returns the base for a negative t. warpmerge refuses it."
DIVERGENCE = (
    "The divergence of two similar rows is a difference of nearly equal numbers. In float32 it is mostly rounding, so"
    " elements near the threshold fall on either side. warpmerge takes it in float64. In float64 both agree."
)
SAMPLED = (
    "mergekit estimates the quartiles of more than a million elements from random samples, new ones in each run. "
    "warpmerge computes them exactly."
)
NO_QUARTILES = "An empty tensor has no quartiles, which is an error in mergekit."
FACTOR = "mergekit rounds its factor to float32. In float64 that shows."
ONE_COLUMN = (
    "A row of one element has no ranks, and a scalar has no rows; both are errors in mergekit. warpmerge keeps such "
    "an element with the probability density."
)
