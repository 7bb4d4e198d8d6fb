#include "item.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "../ops/digest.h"

namespace warpmerge {

Decisions& Tensors::decisions_of(int model, const Mask& rule) {
  for (Decisions& known : decisions_)
    if (known.model == model && known.rule.key == rule.key && known.rule.columns == rule.columns &&
        known.rule.low == rule.low && known.rule.step == rule.step)
      return known;
  decisions_.push_back({model, rule, false, std::vector<uint8_t>(size_t(count + kStage - 1) / kStage * kStage / 8)});
  return decisions_.back();
}

void Output::write(const void* data, int64_t bytes, int64_t begin) const {
  if (bytes == 0) return;  // a result of no elements may have no place
  file->write(data, size_t(bytes), offset + begin);
  if (background) background->wrote(file, bytes);
}

Loaded::Loaded(const Tensors& tensors, int64_t begin, int64_t count, Worker& worker, int64_t columns, int only)
    : models_(tensors.models()),
      base_(nullptr),
      first_(begin),
      policy_(tensors.policy),
      program_(tensors.formula ? &tensors.formula->program() : nullptr) {
  if (tensors.ranked()) columns = program_->columns;
  if (columns) {
    const int64_t end = (begin + count + columns - 1) / columns * columns;
    first_ = begin = begin / columns * columns;
    count = end - begin;
  }
  if (tensors.ranked()) prepare_ranks(columns, tensors.fp64, worker);
  const auto aligned = [](int64_t bytes) { return (bytes + 63) / 64 * 64; };
  std::vector<const View*> views;
  for (const View& view : tensors.inputs) views.push_back(&view);
  if (tensors.has_base) views.push_back(&tensors.base);
  for (int k = 0; only >= 0 && k < models_; ++k)
    if (k != only) views[size_t(k)] = nullptr;
  int64_t needed = 0;
  for (const View* view : views)
    if (view && !view->memory) needed += aligned(count * itemsize(view->dtype));
  char* buffer = needed ? static_cast<char*>(worker.input_buffer(size_t(needed))) : nullptr;
  for (const View* view : views) {
    if (!view) {
      sources_.push_back({});
      continue;
    }
    const int64_t size = itemsize(view->dtype);
    if (view->memory) {
      sources_.push_back({view->memory + begin * size, view->dtype});
      continue;
    }
    view->read(begin * size, count * size, buffer);
    sources_.push_back({buffer, view->dtype});
    buffer += aligned(count * size);
  }
  if (tensors.has_base) base_ = &sources_.back();
}

void Loaded::prepare_ranks(int64_t columns, bool fp64, Worker& worker) {
  const size_t row = (size_t(columns) * (fp64 ? sizeof(double) : sizeof(float)) + 63) / 64 * 64;
  const size_t rows = row * size_t(program_->ranked_count);
  char* memory = static_cast<char*>(worker.rank_buffer(rows + rank_work(columns)));
  for (int r = 0; r < program_->ranked_count; ++r) ranks_.push_back({-1, memory + row * size_t(r), memory + rows});
}

int64_t tile_step(const Tensors& tensors, int64_t tile_elements, int64_t unit, int64_t columns) {
  const auto whole = [](int64_t elements, int64_t of) { return (elements + of - 1) / of * of; };
  const int64_t step = whole(tile_elements, unit);
  if (tensors.ranked()) columns = tensors.formula->program().columns;
  if (columns == 0) return step;
  const int64_t both = std::lcm(columns, unit);
  return both <= step ? step / both * both : std::max(step, whole(columns, unit));
}

TensorItem::TensorItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements, int64_t columns)
    : kernels_(kernels),
      tensors_(std::move(tensors)),
      step_(tile_elements),
      columns_(columns),
      nonfinite_(tensors_->models() + 2) {}

void TensorItem::tile(int64_t index, Worker& worker) {
  if (idle()) return;
  const int64_t begin = first_of(index);
  part(index, begin, first_of(index + 1) - begin, worker);
}

void TensorItem::part(int64_t index, int64_t begin, int64_t count, Worker& worker) {
  std::vector<int64_t> found(nonfinite_.size());
  Loaded loaded(*tensors_, begin, count, worker, columns_);
  range(index, loaded.operands(), begin, count, worker, found.data());
  for (size_t k = 0; k < found.size(); ++k)
    if (found[k]) nonfinite_[k] += found[k];
}

CombineItem::CombineItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements,
                         std::vector<Output> outputs, int64_t columns)
    : TensorItem(kernels, std::move(tensors), tile_elements, columns),
      outputs_(std::move(outputs)),
      digests_(outputs_.size()) {}

void CombineItem::range(int64_t, const Operands& operands, int64_t begin, int64_t count, Worker& worker,
                        int64_t* nonfinite) {
  const size_t outputs = outputs_.size();
  std::vector<void*> target(outputs);
  size_t staged = 0;
  for (const Output& output : outputs_)
    if (!output.memory) staged += size_t(count) * itemsize(output.dtype) + 64;
  char* buffer = staged ? static_cast<char*>(worker.output_buffer(staged)) : nullptr;
  for (size_t m = 0; m < outputs; ++m) {
    const size_t size = itemsize(outputs_[m].dtype);
    if (outputs_[m].memory) {
      target[m] = outputs_[m].memory + begin * size;
    } else {
      target[m] = buffer;
      buffer += (count * size + 63) / 64 * 64;
    }
  }
  combine(operands, begin, count, target.data(), worker, nonfinite);
  for (size_t m = 0; m < outputs; ++m) {
    const Output& output = outputs_[m];
    if (output.memory) continue;
    const int64_t size = itemsize(output.dtype);
    digests_[m] += kernels_.digest(target[m], size_t(count * size), uint64_t(begin * size / 8));
    output.write(target[m], count * size, begin * size);
  }
}

std::vector<uint64_t> CombineItem::digests() const {
  std::vector<uint64_t> result;
  for (size_t m = 0; m < outputs_.size(); ++m)
    result.push_back(digests_[m] + digest_length(uint64_t(tensors_->count * itemsize(outputs_[m].dtype))));
  return result;
}

CopyItem::CopyItem(const Kernels& kernels, View source, int64_t bytes, int64_t tile_bytes, Output output,
                   int64_t position, bool digested)
    : kernels_(kernels),
      source_(std::move(source)),
      bytes_(bytes),
      step_(tile_bytes),
      output_(std::move(output)),
      position_(position),
      digested_(digested) {}

void CopyItem::tile(int64_t index, Worker& worker) {
  const int64_t begin = index * step_;
  const int64_t count = std::min(step_, bytes_ - begin);
  const char* data = source_.memory + begin;
  char* target = output_.memory ? output_.memory + begin : nullptr;
  if (source_.memory) {
    if (target) std::memcpy(target, data, size_t(count));
  } else {
    char* buffer = target ? target : static_cast<char*>(worker.input_buffer(size_t(count)));
    source_.read(begin, count, buffer);
    data = buffer;
  }
  if (digested_) digest_ += kernels_.digest(data, size_t(count), uint64_t((position_ + begin) / 8));
  if (output_.file) output_.write(data, count, begin);
}

uint64_t CopyItem::digest() const { return digest_ + digest_length(uint64_t(bytes_)); }

}  // namespace warpmerge
