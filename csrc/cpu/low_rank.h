// Views whose elements are computed: a tensor of a model under an adapter, and a tensor in another storage type.
// python/warpmerge/models/low_rank.py defines them.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "kernels.h"
#include "view.h"

namespace warpmerge {

// W + s L R, and with magnitudes (DoRA) each row or column of that scaled to a length.
//
// The elements of W are read into the caller's memory and changed there. L and R are read when a range is first asked
// for. They are kept widened while a worker uses them, and for a while after that: views share a fixed number of bytes
// for it. Magnitudes need the lengths of all rows or columns, so W is read once more for them, at the same time.
class LowRank final : public Composition {
 public:
  struct Shape {
    int64_t rows, columns;
    int rank;
    bool transposed;  // whether L and R lie transposed: rank x rows and columns x rank
  };
  LowRank(const Kernels& kernels, View base, View left, View right, Shape shape, double scale,
          std::shared_ptr<const View> magnitudes, bool by_column);
  ~LowRank() override;
  LowRank(const LowRank&) = delete;
  LowRank& operator=(const LowRank&) = delete;
  void read(int64_t begin, int64_t bytes, char* out) const override;

 private:
  struct Factors {
    std::vector<double> left, right;
  };
  std::shared_ptr<const Factors> factors() const;
  std::vector<double> lengthen(const LowRankArgs& args) const;
  LowRankArgs args(const Factors& factors) const;

  const Kernels& kernels_;
  const View base_, left_, right_;
  const Shape shape_;
  const double scale_;
  const std::shared_ptr<const View> magnitudes_;
  const bool by_column_;
  mutable std::mutex mutex_;
  mutable std::weak_ptr<const Factors> factors_;
  mutable std::vector<double> lengths_;  // what rows or columns are multiplied by; made once
};

// Elements of `source` in another storage type.
class Rounded final : public Composition {
 public:
  Rounded(const Kernels& kernels, View source, Dtype to) : kernels_(kernels), source_(std::move(source)), to_(to) {}
  void read(int64_t begin, int64_t bytes, char* out) const override;

 private:
  const Kernels& kernels_;
  const View source_;
  const Dtype to_;
};

// Bytes of widened factors that are kept after their use. Plans count them (python/warpmerge/models/low_rank.py).
constexpr size_t kHeldFactors = size_t(64) << 20;

}  // namespace warpmerge
