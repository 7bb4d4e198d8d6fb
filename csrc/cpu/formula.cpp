#include "formula.h"

#include <algorithm>
#include <map>
#include <stdexcept>

#include "formula_item.h"

namespace warpmerge {
namespace {

// Joins two neighbours if the second one reads the result of the first one once, and overwrites it.
std::vector<Step> paired(const std::vector<Step>& code) {
  std::vector<Step> result;
  for (const Step& step : code) {
    Step* last = result.empty() ? nullptr : &result.back();
    const bool follows = last && last->then == FormulaOp::keep && begins_pair(last->op) && ends_pair(step.op) &&
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

// The cost of an instruction; an addition costs 1. Testing a condition in a whole stage costs about 1, too.
int cost(const Step& step) {
  if (step.op > FormulaOp::rank) return 8;
  return step.op == FormulaOp::div || step.op == FormulaOp::sqrt ? 2 : 1;
}
constexpr int kWorthAsking = 4;

// Inserts skips: they pass over the steps that only the last operand of a `where` needs, if no element of the stage
// takes that operand.
std::vector<Step> skipping(const std::vector<Step>& code, const std::vector<int>& outputs) {
  const size_t never = code.size();
  std::map<int, size_t> maker;  // of an operand: the last step that made it
  std::vector<size_t> last_reader(code.size(), 0);
  std::vector<std::vector<size_t>> skips(code.size());  // of a step: the choices whose skips begin with it
  std::vector<size_t> asked(code.size());               // of a choice: the step that made its condition
  const auto read = [&](int operand, size_t reader) {
    if (const auto made = maker.find(operand); made != maker.end()) last_reader[made->second] = reader;
  };
  for (size_t n = 0; n < code.size(); ++n) {
    for (int operand : {code[n].a, code[n].b, code[n].c}) read(operand, n);
    if (code[n].op == FormulaOp::where) asked[n] = maker.count(code[n].a) ? maker[code[n].a] : n;
    maker[code[n].target] = n;
  }
  for (int operand : outputs) read(operand, never);
  for (size_t n = 0; n < code.size(); ++n) {
    const Step& choice = code[n];
    if (choice.op != FormulaOp::where || choice.c == choice.a || choice.c == choice.b) continue;
    size_t first = n;
    int saved = 0;
    for (; first > asked[n] + 1; --first) {
      const size_t reader = last_reader[first - 1];
      if (reader > n || (reader == n && code[first - 1].target != choice.c)) break;
      saved += cost(code[first - 1]);
    }
    if (saved >= kWorthAsking) skips[first].push_back(n);
  }
  std::vector<Step> result;
  std::vector<int> place(code.size());
  for (size_t n = 0; n < code.size(); ++n) {
    place[n] = int(result.size());
    for (auto choice = skips[n].rbegin(); choice != skips[n].rend(); ++choice)
      result.push_back({kSkip, 0, code[*choice].a, 0, 0, int(*choice)});
    result.push_back(code[n]);
  }
  for (Step& step : result)
    if (step.op == kSkip) step.payload = place[size_t(step.payload)];
  return result;
}

void require(bool sound) {
  if (!sound)
    throw std::invalid_argument(
        "a formula's instruction has a number out of range: an operation, an operand or a target");
}

}  // namespace

Code::Code(int inputs, std::vector<Step> code, int registers, std::vector<int> outputs, int constants)
    : inputs_(inputs),
      registers_(registers),
      constants_(constants),
      code_(std::move(code)),
      outputs_(std::move(outputs)) {
  const int first_constant = inputs + 1 + registers, operands = first_constant + constants;
  const auto require_operand = [operands](int number) { require(number >= 0 && number < operands); };
  for (Step& step : code_) {
    require(step.op >= FormulaOp::add && step.op <= kLastOperation && step.payload >= 0);
    require(step.target > inputs && step.target < first_constant);
    for (int number : {step.a, step.b, step.c}) require_operand(number);
    const auto needs = [&step](int& count) { count = std::max(count, step.payload + 1); };
    if (step.op == FormulaOp::keep) needs(rules_);
    if (step.op == FormulaOp::draw) needs(keys_);
    if (step.op == FormulaOp::row || step.op == FormulaOp::column) needs(vectors_);
    if (step.op != FormulaOp::rank) continue;
    require(step.a < inputs);
    const auto known = std::find(ranked_.begin(), ranked_.end(), step.a);
    step.payload = int(known - ranked_.begin());
    if (known == ranked_.end()) ranked_.push_back(step.a);
  }
  for (int number : outputs_) {
    require_operand(number);
    firsts_.push_back(int(std::find(outputs_.begin(), outputs_.end(), number) - outputs_.begin()));
  }
  code_ = skipping(paired(code_), outputs_);
}

Formula::Formula(std::shared_ptr<const Code> code, std::vector<double> constants, std::vector<Mask> rules,
                 std::vector<uint64_t> keys, std::vector<std::vector<double>> vectors, int64_t columns)
    : code_(std::move(code)),
      constants_(std::move(constants)),
      rules_(std::move(rules)),
      keys_(std::move(keys)),
      vectors_(std::move(vectors)) {
  require(int(constants_.size()) == code_->constants_ && int(rules_.size()) >= code_->rules_);
  require(int(keys_.size()) >= code_->keys_ && int(vectors_.size()) >= code_->vectors_);
  require((code_->vectors_ == 0 && code_->ranked_.empty()) || columns > 0);
  for (const auto& vector : vectors_) vector_data_.push_back(vector.data());
  const Code& c = *code_;
  program_ = {c.code_.data(),         int(c.code_.size()),  c.outputs_.data(),   c.firsts_.data(),
              int(c.outputs_.size()), c.registers_,         constants_.data(),   c.constants_,
              rules_.data(),          keys_.data(),         vector_data_.data(), columns,
              c.ranked_.data(),       int(c.ranked_.size())};
}

FormulaItem::FormulaItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements, int agree,
                         std::vector<Output> outputs)
    : CombineItem(kernels, tensors, tile_step(*tensors, tile_elements, kStage), std::move(outputs)), agree_(agree) {}

void FormulaItem::combine(const Operands& operands, int64_t begin, int64_t count, void* const* out, Worker& worker,
                          int64_t* nonfinite) {
  const Dtype dtype = outputs_[0].dtype;
  if (tensors_->fp64)
    set<double>().formula(operands, agree_, begin, count, out, dtype, scratch(worker), nonfinite);
  else
    set<float>().formula(operands, agree_, begin, count, out, dtype, scratch(worker), nonfinite);
}

}  // namespace warpmerge
