// Squared norms and pairwise squared distances of P vectors, in the order of reduce.h. Distances are accumulated from
// differences, never derived from dot products: the angle between two near-identical models would cancel.
// Layout of the results: P norms, then the distances of (0,1), (0,2), ..., (0,P-1), (1,2), ...
#pragma once

#include "common.h"

namespace warpmerge {

WM_FN int gram_size(int vectors) { return vectors + vectors * (vectors - 1) / 2; }

}  // namespace warpmerge
