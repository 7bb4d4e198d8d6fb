// Tensors in columns. A group is what many tensors have in common; a row is one of them. Views and operands of a row
// are made when a batch of requests names it.
#pragma once

#include <unordered_map>

#include "item.h"

namespace warpmerge {

// A view for each row: a region of an open file, or any other kind.
class ViewColumn {
 public:
  // Regions: of each row the dtype, the file's number and the offset in the file; of each file the descriptor.
  ViewColumn(std::vector<uint8_t> dtypes, std::vector<int32_t> files, std::vector<int64_t> offsets,
             std::vector<int> descriptors);
  void set(int64_t row, View view);
  // Throws std::out_of_range for a row that has none.
  View at(int64_t row) const;

 private:
  const std::vector<uint8_t> dtypes_;
  const std::vector<int32_t> files_;
  const std::vector<int64_t> offsets_;
  const std::vector<int> descriptors_;
  std::unordered_map<int64_t, View> others_;
};

class TensorGroup {
 public:
  using Column = std::shared_ptr<const ViewColumn>;

  // `counts`: elements of each row. `base` may be null.
  TensorGroup(std::shared_ptr<const std::vector<int64_t>> counts, std::vector<Column> inputs, Column base, bool fp64,
              Nonfinite policy);
  // The operands of a row: those that are kept for it, or new ones.
  std::shared_ptr<Tensors> tensors(int64_t row, bool with_base, std::shared_ptr<const Formula> formula) const;
  // Keeps operands for the next request on the row, if something was decided of them.
  void keep(int64_t row, const std::shared_ptr<Tensors>& tensors);
  void drop(int64_t row) { kept_.erase(row); }

 private:
  const std::shared_ptr<const std::vector<int64_t>> counts_;
  const std::vector<Column> inputs_;
  const Column base_;
  const bool fp64_;
  const Nonfinite policy_;
  std::unordered_multimap<int64_t, std::shared_ptr<Tensors>> kept_;
};

}  // namespace warpmerge
