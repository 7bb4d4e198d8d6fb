"""The texts of docs/compatibility.md around its tables."""

INTRODUCTION = """# Compatibility with mergekit and PEFT

`make compatibility` gives warpmerge, mergekit and PEFT the same tensors, compares the results, and makes this page.
Only the reasons are written by hand.

{about}

- **Calls.** Only documented ones: `mergekit.merge_methods.merge_tensors`, `warpmerge.merge_tensors`, and the functions
  of `peft.utils.merge_utils`. PEFT's functions take deltas: the base is subtracted before and added after.
- **Shapes.** Each in float32 and in float64: {shapes}.
- **ulps.** One ulp is the distance of neighbouring numbers at the largest operand of an element, base or model.
- **Agreement.** In float32, results agree if they differ by up to {order} ulps. The bound is {sums} ulps for methods
  with angles or energies from sums over a tensor, because mergekit takes these sums in float32: {summing}.
  In float64 the bound is {wide} ulps, 2.3e-13 of an operand. Another formula would exceed it.
- **Verdicts.** *Agrees*: within the bound. *Differs by design*: the difference is known, and the page says why.
  *Refuses* and *fails*: the program raises an error.
- **Data.** The [end of this page](#data) describes them. If a method has a threshold or an election, its data have no
  ties, because mergekit keeps any of the ties and warpmerge the first ones."""

DROPS = """One model of weight 1 and 300,000 elements. Each program draws its own random numbers.

- **kept**: the share of the delta's elements that are kept.
- **least**, **largest**: the same share among the tenth of each row with the smallest magnitudes, and among that with
  the largest magnitudes. DELLA keeps more of the largest.
- **norm**: the L1 norm of the result's delta, divided by that of the model's delta. 1 if it is restored.
- **as it should be**: the programs whose shares are within five standard deviations of the expected ones."""

ACCURACY = """The models are bfloat16, and so is the result. Methods that drop at random are left out.

- **error**: the largest distance from the result in float64, in bfloat16 ulps of the largest operand. Correct rounding
  has errors of up to 0.5.
- **wrong**: the share of elements that are not the float64 result, correctly rounded.
- **mergekit** computes in bfloat16. **mergekit, float32** computes in float32, by its option `dtype`. If rounding
  changes a threshold or an election, the whole element changes.
- **float64**: the distance of both programs' results for the same numbers in float64, in float64 ulps. If it is small,
  both programs compute the same formula. It is large for methods with a top-k mask: deltas of bfloat16 models have many
  ties, and mergekit keeps any of them.
- **mergekit returns**: the dtype of mergekit's result if `out_dtype` is not set. warpmerge returns bfloat16."""

DATA = """## Data

| name | base and models |
| --- | --- |
{rows}"""
