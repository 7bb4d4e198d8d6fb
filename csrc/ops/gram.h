// Squared norms and pairwise squared distances of P vectors, in the order of reduce.h: the request `Gram`
// (python/warpmerge/requests.py).
//
// Distances are sums of squared differences. They never come from dot products, which cancel for models that are alike.
// Differences are taken, squared and summed in float64: an angle near pi, or between vectors of very different lengths,
// is a small remainder of these sums (docs/decisions.md, "Numbers"). In exchange the work grows with the number of
// pairs. The results are P norms, then the distances of (0,1), (0,2), ..., (0,P-1), (1,2), ...
#pragma once

#include "common.h"

namespace warpmerge {

WM_FN int gram_size(int vectors) { return vectors + vectors * (vectors - 1) / 2; }

}  // namespace warpmerge
