#include "tensor_group.h"

#include <stdexcept>

namespace warpmerge {

ViewColumn::ViewColumn(std::vector<uint8_t> dtypes, std::vector<int32_t> file_of, std::vector<int64_t> offsets,
                       std::vector<std::shared_ptr<File>> files)
    : dtypes_(std::move(dtypes)), file_of_(std::move(file_of)), offsets_(std::move(offsets)), files_(std::move(files)) {
  if (dtypes_.size() != file_of_.size() || dtypes_.size() != offsets_.size())
    throw std::invalid_argument("the columns of views differ in length");
}

void ViewColumn::set(int64_t row, View view) { others_[row] = std::move(view); }

View ViewColumn::at(int64_t row) const {
  if (!others_.empty()) {
    const auto found = others_.find(row);
    if (found != others_.end()) return found->second;
  }
  const auto& file = files_.at(size_t(file_of_.at(size_t(row))));
  return {Dtype(dtypes_[size_t(row)]), nullptr, file, offsets_[size_t(row)], nullptr};
}

TensorGroup::TensorGroup(std::shared_ptr<const std::vector<int64_t>> counts, std::vector<Column> inputs, Column base,
                         bool fp64, Nonfinite policy)
    : counts_(std::move(counts)), inputs_(std::move(inputs)), base_(std::move(base)), fp64_(fp64), policy_(policy) {}

std::shared_ptr<Tensors> TensorGroup::tensors(int64_t row, bool with_base,
                                              std::shared_ptr<const Formula> formula) const {
  with_base = with_base && base_;
  const auto [first, last] = kept_.equal_range(row);
  for (auto known = first; known != last; ++known)
    if (known->second->has_base == with_base && known->second->formula == formula) return known->second;
  if (formula && formula->inputs() != int(inputs_.size()))
    throw std::invalid_argument("the formula is for another number of inputs");
  auto made = std::make_shared<Tensors>();
  made->count = counts_->at(size_t(row));
  made->inputs.reserve(inputs_.size());
  for (const Column& column : inputs_) made->inputs.push_back(column->at(row));
  made->has_base = with_base;
  if (with_base) made->base = base_->at(row);
  made->fp64 = fp64_;
  made->policy = policy_;
  made->formula = std::move(formula);
  return made;
}

void TensorGroup::keep(int64_t row, const std::shared_ptr<Tensors>& tensors) {
  if (!tensors->decided()) return;
  const auto [first, last] = kept_.equal_range(row);
  for (auto known = first; known != last; ++known)
    if (known->second == tensors) return;
  kept_.emplace(row, tensors);
}

}  // namespace warpmerge
