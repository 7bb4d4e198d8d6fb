// Programs of expressions (python/warpmerge/expr/program.py), made ready for the CPU. Kernels take them as plain data
// (kernels.h).
//
// `Code` is the structure of a program. It is checked and rewritten once for all tensors. `Formula` adds the values of
// the slots, so a tensor with other numbers costs little. The rewriting changes no result. Two neighbouring
// instructions become one if the second overwrites the result of the first: the value between them is not stored.
// Instructions that only the last operand of a `where` needs are skipped if no element of the stage takes that operand.
// The test for that costs about as much as an addition, so a skip must save several.
#pragma once

#include <memory>
#include <vector>

#include "kernels.h"

namespace warpmerge {

// The structure: the common part of formulas that differ only in numbers, masks, keys and vectors.
class Code {
 public:
  // `inputs`: the number of deltas; the base is the operand after them. Throws std::invalid_argument if an instruction
  // names an operand or a slot that does not exist.
  Code(int inputs, std::vector<Step> code, int registers, std::vector<int> outputs, int constants);

 private:
  friend class Formula;
  const int inputs_, registers_, constants_;
  int rules_ = 0, keys_ = 0, vectors_ = 0;  // numbers of slots that the instructions name
  std::vector<Step> code_;
  const std::vector<int> outputs_;
  std::vector<int> firsts_;
  std::vector<int> ranked_;
};

class Formula {
 public:
  // Throws std::invalid_argument if a slot that the code names has no value.
  Formula(std::shared_ptr<const Code> code, std::vector<double> constants, std::vector<Mask> rules,
          std::vector<uint64_t> keys, std::vector<std::vector<double>> vectors, int64_t columns);
  Formula(const Formula&) = delete;
  Formula& operator=(const Formula&) = delete;

  const Program& program() const { return program_; }
  int inputs() const { return code_->inputs_; }

 private:
  const std::shared_ptr<const Code> code_;
  const std::vector<double> constants_;
  const std::vector<Mask> rules_;
  const std::vector<uint64_t> keys_;
  const std::vector<std::vector<double>> vectors_;
  std::vector<const double*> vector_data_;
  Program program_;
};

}  // namespace warpmerge
