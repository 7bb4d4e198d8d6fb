#include "formula.h"

#include <algorithm>
#include <stdexcept>

#include "formula_item.h"

namespace warpmerge {
namespace {

// Joins neighbours of which the second overwrites what the first one made, having read it once.
std::vector<Step> paired(const std::vector<Step>& code) {
  std::vector<Step> result;
  for (const Step& step : code) {
    Step* last = result.empty() ? nullptr : &result.back();
    const bool follows = last && last->then == FormulaOp::keep && pairs(last->op) && pairs(step.op) &&
                         last->target == step.target && (step.a == step.target) != (step.b == step.target);
    if (!follows) {
      result.push_back(step);
      continue;
    }
    last->then = step.op;
    last->swapped = step.b == step.target;
    last->c = last->swapped ? step.a : step.b;
  }
  return result;
}

}  // namespace

Formula::Formula(int inputs, std::vector<Step> code, int registers, std::vector<int> outputs,
                 std::vector<double> constants, std::vector<Keep> rules, std::vector<uint64_t> keys,
                 std::vector<std::vector<double>> vectors, int64_t columns)
    : inputs_(inputs),
      code_(std::move(code)),
      outputs_(std::move(outputs)),
      constants_(std::move(constants)),
      rules_(std::move(rules)),
      keys_(std::move(keys)),
      vectors_(std::move(vectors)) {
  const int first_constant = inputs + 1 + registers, operands = first_constant + int(constants_.size());
  const auto require = [](bool sound) {
    if (!sound) throw std::invalid_argument("a formula's instruction names what is not there");
  };
  const auto below = [](int number, size_t size) { return number >= 0 && size_t(number) < size; };
  for (Step& step : code_) {
    require(step.op >= FormulaOp::add && step.op <= FormulaOp::rank);
    require(step.target > inputs && step.target < first_constant);
    for (int number : {step.a, step.b, step.c}) require(below(number, size_t(operands)));
    require(step.op != FormulaOp::keep || below(step.payload, rules_.size()));
    require(step.op != FormulaOp::draw || below(step.payload, keys_.size()));
    const bool vector = step.op == FormulaOp::row || step.op == FormulaOp::column;
    require(!vector || below(step.payload, vectors_.size()));
    require((!vector && step.op != FormulaOp::rank) || columns > 0);
    if (step.op != FormulaOp::rank) continue;
    require(step.a < inputs);
    const auto known = std::find(ranked_.begin(), ranked_.end(), step.a);
    step.payload = int(known - ranked_.begin());
    if (known == ranked_.end()) ranked_.push_back(step.a);
  }
  code_ = paired(code_);
  for (int number : outputs_) {
    require(below(number, size_t(operands)));
    firsts_.push_back(int(std::find(outputs_.begin(), outputs_.end(), number) - outputs_.begin()));
  }
  for (const auto& vector : vectors_) vector_data_.push_back(vector.data());
  program_ = {code_.data(),        int(code_.size()), outputs_.data(),        firsts_.data(),     int(outputs_.size()),
              registers,           constants_.data(), int(constants_.size()), rules_.data(),      keys_.data(),
              vector_data_.data(), columns,           ranked_.data(),         int(ranked_.size())};
}

FormulaItem::FormulaItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements, int agree,
                         std::vector<Output> outputs)
    : CombineItem(kernels, tensors, tile_step(*tensors, tile_elements, kStage), std::move(outputs)), agree_(agree) {}

void FormulaItem::combine(const Operands& operands, int64_t begin, int64_t count, void* const* out, Worker& worker,
                          int64_t* nonfinite) {
  const Dtype dtype = outputs_[0].dtype;
  if (tensors_->wide)
    set<double>().formula(operands, agree_, begin, count, out, dtype, scratch(worker), nonfinite);
  else
    set<float>().formula(operands, agree_, begin, count, out, dtype, scratch(worker), nonfinite);
}

}  // namespace warpmerge
