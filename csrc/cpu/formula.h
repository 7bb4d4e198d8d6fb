// A formula's program, owned; items take it as plain data (kernels.h).
#pragma once

#include <memory>
#include <vector>

#include "kernels.h"

namespace warpmerge {

// The instructions, made ready once for all formulas that differ in numbers, masks, keys and vectors only.
class Code {
 public:
  // `inputs`: how many deltas; the base is the operand after them. Throws std::invalid_argument if an instruction names
  // what is not there.
  Code(int inputs, std::vector<Step> code, int registers, std::vector<int> outputs, int constants);

 private:
  friend class Formula;
  const int inputs_, registers_, constants_;
  int rules_ = 0, keys_ = 0, vectors_ = 0;  // how many the instructions name
  std::vector<Step> code_;
  const std::vector<int> outputs_;
  std::vector<int> firsts_;
  std::vector<int> ranked_;
};

class Formula {
 public:
  // Throws std::invalid_argument if there is less than the code names.
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
