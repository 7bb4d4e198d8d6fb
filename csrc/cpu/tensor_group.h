// Tensors in columns: a group (python/warpmerge/tasks.py) as the native module has it.
//
// A checkpoint of experts has 100,000 tensors, so a tensor must cost little. A group holds what its tensors have in
// common, and columns of what differs. A row is one tensor. The views and operands of a row are made when a batch of
// requests names the row. They are dropped with the batch, unless the decisions of a rank mask were kept with them.
#pragma once

#include <unordered_map>

#include "item.h"

namespace warpmerge {

// A view for each row: a region of an open file, or any other kind.
class ViewColumn {
 public:
  // Regions: the dtype, the number of the file and the offset in the file of each row; the files.
  ViewColumn(std::vector<uint8_t> dtypes, std::vector<int32_t> file_of, std::vector<int64_t> offsets,
             std::vector<std::shared_ptr<File>> files);
  void set(int64_t row, View view);
  // Throws std::out_of_range for a row that has none.
  View at(int64_t row) const;

 private:
  const std::vector<uint8_t> dtypes_;
  const std::vector<int32_t> file_of_;
  const std::vector<int64_t> offsets_;
  const std::vector<std::shared_ptr<File>> files_;
  std::unordered_map<int64_t, View> others_;
};

class TensorGroup {
 public:
  using Column = std::shared_ptr<const ViewColumn>;

  // `counts`: elements of each row. `base` may be null.
  TensorGroup(std::shared_ptr<const std::vector<int64_t>> counts, std::vector<Column> inputs, Column base, bool fp64,
              Nonfinite policy);
  // The operands of a row: those that were kept for it, or new ones.
  std::shared_ptr<Tensors> tensors(int64_t row, bool with_base, std::shared_ptr<const Formula> formula) const;
  // Keeps operands for the next request on the row, if a rank mask has decided on them.
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
