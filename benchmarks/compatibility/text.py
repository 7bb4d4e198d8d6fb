"""What docs/compatibility.md says around its tables."""

INTRODUCTION = """# Compatibility with mergekit and PEFT

Made by `make compatibility`, which gives warpmerge, mergekit and PEFT the same tensors and compares the results. Only
the reasons are written by hand.

{about}

- Only documented calls are used: `mergekit.merge_methods.merge_tensors`, the functions of `peft.utils.merge_utils` (on
  deltas: the base comes off before and on again after), and `warpmerge.merge_tensors`.
- **Shapes**, each in float32 and in float64: {shapes}.
- **ulps** are distances of neighbouring numbers at the size of the largest operand of an element, base or model. In
  float32 results agree up to {order} of them, and up to {sums} for methods that take angles or energies from sums over
  a tensor, which mergekit takes in float32: {summing}.
  In float64 they agree up to {wide} ulps, 2.3e-13 of an operand; another formula does not stay below that.
- **Data** are described at the [end of this page](#data). Where a threshold or an election decides there are no ties:
  of equal magnitudes mergekit keeps any, warpmerge the first."""

DROPS = """One model of weight 1 and 300,000 elements; each program draws its own random numbers. **kept** is the share
of the delta that is left, **least** and **largest** that of the tenth of each row with the smallest and the largest
changes (DELLA keeps more of these), **norm** the sum of magnitudes against the delta's: 1 where it is restored. The
last column says whose shares are within five standard deviations of what they should be."""

ACCURACY = """bfloat16 models, merged to bfloat16. **error** is the largest distance from the result in float64, in
bfloat16 ulps of the largest operand; 0.5 is what correct rounding may cost. **wrong** is the share of elements that are
not that result, correctly rounded. mergekit computes in bfloat16 unless its `dtype` says float32; a threshold or an
election that falls otherwise there changes an element as a whole. **float64** says how far apart both programs are,
given the same numbers in float64, in ulps of that type: where it is small, the exact result is beyond doubt. It is not
where deltas are trimmed: those of bfloat16 models have many equal magnitudes, of which mergekit keeps any. **mergekit
returns** the last column's type where `out_dtype` does not say bfloat16; warpmerge returns bfloat16. Methods that drop
at random are left out."""

DATA = """## Data

| name | base and models |
| --- | --- |
{rows}"""
