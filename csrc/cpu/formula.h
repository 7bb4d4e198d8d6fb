// A formula's program, owned; items take it as plain data (kernels.h).
#pragma once

#include <vector>

#include "kernels.h"

namespace warpmerge {

class Formula {
 public:
  // `inputs`: how many deltas; the base is the operand after them. Throws std::invalid_argument if an instruction names
  // what is not there.
  Formula(int inputs, std::vector<Step> code, int registers, std::vector<int> outputs, std::vector<double> constants,
          std::vector<Mask> rules, std::vector<uint64_t> keys, std::vector<std::vector<double>> vectors,
          int64_t columns);
  Formula(const Formula&) = delete;
  Formula& operator=(const Formula&) = delete;

  const Program& program() const { return program_; }
  int inputs() const { return inputs_; }

 private:
  const int inputs_;
  std::vector<Step> code_;
  const std::vector<int> outputs_;
  std::vector<int> firsts_;
  const std::vector<double> constants_;
  const std::vector<Mask> rules_;
  const std::vector<uint64_t> keys_;
  const std::vector<std::vector<double>> vectors_;
  std::vector<const double*> vector_data_;
  std::vector<int> ranked_;
  Program program_;
};

}  // namespace warpmerge
