// The masks of a request, one for each delta, and the decisions of rank masks.
//
// A rank mask (python/warpmerge/expr/masks.py) compares an element's draw with a cut that rises with the element's rank
// in its row. It needs whole rows, so it is the one mask that is expensive. Its decisions are made once, and kept with
// the tensor until the tensor is merged. A second pass reads them. In exchange they take one bit for each element and
// model. The other masks are evaluated anew in each pass. by_rank.inl makes the decisions without sorting a row.
#pragma once

#include <vector>

#include "item.h"

namespace warpmerge {

class MaskRules {
 public:
  // `keep`: one mask for each delta. Throws std::invalid_argument if rows do not fit the tensor.
  MaskRules(Tensors& tensors, std::vector<Mask> keep);

  const Mask* data() const { return keep_.data(); }
  // Length of the rows that tiles load whole; 0 if nothing is left to decide.
  int64_t columns() const { return columns_; }
  // Decides the elements of a tile if they are not decided yet.
  void decide(const Kernels& kernels, bool fp64, const Operands& operands, int64_t begin, int64_t count,
              Worker& worker) const;
  // To be called after all tiles are decided.
  void finish() const;

 private:
  struct Open {
    int model;
    Decisions* decisions;
  };
  std::vector<Mask> keep_;
  std::vector<Open> open_;
  int64_t columns_ = 0;
};

}  // namespace warpmerge
