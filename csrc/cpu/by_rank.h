// Which elements of each delta are kept. What rules that keep by rank decide is kept with the tensor, a bit per
// element, so that a second pass need not decide again.
#pragma once

#include <vector>

#include "item.h"

namespace warpmerge {

class MaskRules {
 public:
  // One rule per delta. Throws std::invalid_argument if rows do not fit the tensor.
  MaskRules(Tensors& tensors, std::vector<Mask> keep);

  const Mask* data() const { return keep_.data(); }
  // Length of the rows that tiles must load whole: 0 if there is nothing to decide.
  int64_t columns() const { return columns_; }
  // Decides the elements of a tile, if they are not yet decided.
  void decide(const Kernels& kernels, bool fp64, const Operands& operands, int64_t begin, int64_t count,
              Worker& worker) const;
  // To be called when all tiles have been decided.
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
