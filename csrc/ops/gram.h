// Squared norms and pairwise squared distances of P vectors, in the order of reduce.h. Distances are accumulated from
// differences, never derived from dot products: the angle between two near-identical models would cancel. Differences
// are taken, squared and summed in float64: an angle near pi, or between vectors of very different
// lengths, is a small remainder of these sums (float32 lanes were 2e-4 off there, float64 ones are within 1e-9).
// Layout of the results: P norms, then the distances of (0,1), (0,2), ..., (0,P-1), (1,2), ...
#pragma once

#include "common.h"

namespace warpmerge {

WM_FN int gram_size(int vectors) { return vectors + vectors * (vectors - 1) / 2; }

}  // namespace warpmerge
