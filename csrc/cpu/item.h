// What the items of all kernels share: their operands, their output and the walk over tiles.
#pragma once

#include <algorithm>
#include <atomic>
#include <deque>
#include <memory>
#include <vector>

#include "../io/file.h"
#include "formula.h"
#include "kernels.h"
#include "pool.h"
#include "view.h"

namespace warpmerge {

// What a rule that keeps by rank decided of a model's elements, a bit each, with room for what is read at once.
struct Decisions {
  int model;
  Mask rule;
  bool complete = false;
  std::vector<uint8_t> bits;
};

// The inputs of one output tensor.
struct Tensors {
  int64_t count = 0;
  std::vector<View> inputs;
  View base;
  bool has_base = false;
  bool fp64 = false;  // compute in float64
  Nonfinite policy = Nonfinite::error;
  std::shared_ptr<const Formula> formula;  // null: none

  int models() const { return int(inputs.size()); }
  // What is measured of them, or written: the values of the formula, else the deltas.
  int values() const { return formula ? formula->program().values : models(); }
  // The first value that is the same as value k.
  int first_like(int k) const { return formula ? formula->program().firsts[k] : k; }
  // The input whose delta value k is; -1: it is none.
  int input_of(int k) const {
    const int number = formula ? formula->program().outputs[k] : k;
    return number < models() ? number : -1;
  }
  // Whether rows must be read whole.
  bool ranked() const { return formula && formula->program().ranked_count > 0; }

  // Those of the rule for the model's deltas, made anew if there are none.
  Decisions& decisions_of(int model, const Mask& rule);
  bool decided() const { return !decisions_.empty(); }

 private:
  std::deque<Decisions> decisions_;  // references to them stay good
};

// The elements [begin, begin + count) of all operands: where they are in memory, or produced in the worker's buffer.
// For ranks, or if a length of rows is given, also the rest of the rows that they lie in. `only`: of the inputs just
// this one, unless it is -1.
class Loaded {
 public:
  Loaded(const Tensors& tensors, int64_t begin, int64_t count, Worker& worker, int64_t columns = 0, int only = -1);
  Operands operands() { return {sources_.data(), models_, base_, first_, policy_, program_, ranks_.data()}; }

 private:
  void prepare_ranks(int64_t columns, bool fp64, Worker& worker);

  std::vector<Source> sources_;  // the models, then the base
  std::vector<RankedRow> ranks_;
  int models_;
  const Source* base_;
  int64_t first_;
  Nonfinite policy_;
  const Program* program_;
};

// Where results go: memory, or a region of a file.
struct Output {
  Dtype dtype = Dtype::f32;
  char* memory = nullptr;
  int fd = -1;
  int64_t offset = 0;
  std::shared_ptr<Background> background;
};

// An item over the elements of `tensors`, in tiles of `tile_elements`.
class TensorItem : public Item {
 public:
  // `columns`: of the rows that every tile needs whole, 0 for none.
  TensorItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements, int64_t columns = 0);
  int64_t tiles() const override { return tensors_->count == 0 ? 1 : (tensors_->count + step_ - 1) / step_; }
  void tile(int64_t index, Worker& worker) override;

  // Elements that are NaN or infinite, per model and last for the base.
  std::vector<int64_t> nonfinite() const { return {nonfinite_.begin(), nonfinite_.end()}; }
  bool any_nonfinite() const {
    return std::any_of(nonfinite_.begin(), nonfinite_.end(), [](const auto& count) { return count != 0; });
  }
  const Tensors& tensors() const { return *tensors_; }

 protected:
  // Whether tiles have nothing to do: then they are not even read.
  virtual bool idle() const { return false; }
  // The first element of a tile; that of one behind the last is the tensor's end.
  virtual int64_t first_of(int64_t index) const { return std::min(index * step_, tensors_->count); }
  virtual void range(int64_t index, const Operands& operands, int64_t begin, int64_t count, Worker& worker,
                     int64_t* nonfinite) = 0;
  // Reads elements and has them worked on by `range`.
  void part(int64_t index, int64_t begin, int64_t count, Worker& worker);
  template <class T>
  const KernelSet<T>& set() const {
    return kernels_.of<T>();
  }
  size_t scratch_size() const {
    return scratch_bytes(tensors_->models()) + (tensors_->formula ? scratch_bytes(tensors_->formula->program()) : 0);
  }
  void* scratch(Worker& worker) const { return worker.scratch(scratch_size()); }

  const Kernels& kernels_;
  const std::shared_ptr<Tensors> tensors_;
  const int64_t step_;

 private:
  const int64_t columns_;
  std::vector<std::atomic<int64_t>> nonfinite_;
};

// The elements of a tile, a multiple of `unit`. Rows whose ranks are asked for are cut as seldom as can be, as each
// tile that has part of a row ranks all of it.
int64_t tile_step(const Tensors& tensors, int64_t tile_elements, int64_t unit, int64_t columns = 0);

// A measuring item: its tiles are whole blocks of the reduction order.
inline int64_t whole_blocks(const Tensors& tensors, int64_t tile_elements, int64_t columns = 0) {
  return tile_step(tensors, tile_elements, kBlock, columns);
}

// An item that makes one or several output tensors.
class CombineItem : public TensorItem {
 public:
  CombineItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements,
              std::vector<Output> outputs, int64_t columns = 0);
  std::vector<uint64_t> digests() const;

 protected:
  void range(int64_t index, const Operands& operands, int64_t begin, int64_t count, Worker& worker,
             int64_t* nonfinite) final;
  virtual void combine(const Operands& operands, int64_t begin, int64_t count, void* const* out, Worker& worker,
                       int64_t* nonfinite) = 0;
  const std::vector<Output> outputs_;

 private:
  std::vector<std::atomic<uint64_t>> digests_;
};

// Copies bytes and takes their digest, unless `digested` is false; without an output only the digest. `position`: where
// in the byte string that the digest is of these bytes begin, a multiple of 8.
class CopyItem final : public Item {
 public:
  CopyItem(const Kernels& kernels, View source, int64_t bytes, int64_t tile_bytes, Output output, int64_t position,
           bool digested);
  int64_t tiles() const override { return bytes_ == 0 ? 1 : (bytes_ + step_ - 1) / step_; }
  void tile(int64_t index, Worker& worker) override;
  uint64_t digest() const;
  // The words' share of the digest: those of the pieces of a byte string add up.
  uint64_t partial_digest() const { return digest_; }

 private:
  const Kernels& kernels_;
  const View source_;
  const int64_t bytes_;
  const int64_t step_;
  const Output output_;
  const int64_t position_;
  const bool digested_;
  std::atomic<uint64_t> digest_{0};
};

}  // namespace warpmerge
