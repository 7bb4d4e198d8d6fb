// The request `Map`, and the values of formulas that are measured: an interpreter of programs.
//
// csrc/ops/formula.h has the instructions; docs/numerics.md ("Formulas") defines the results. All threads carry out the
// same program, and each has a pack of elements. Operands lie in a file with a column for each thread, because
// registers cannot be indexed at run time. The file is in shared memory: for kPack elements a thread if they fit, else
// for one element. A program with more operands has its file in global memory, not in local memory: that would be
// reserved for every thread that the device can hold. The last result stays in registers, because access to the file
// takes longer than deciding what to do. On eight elements an addition takes 53 to 62 machine instructions
// (docs/decisions.md), so long programs are bound by issue, not by memory. In exchange nothing is compiled at run time.
#include "../ops/formula.h"

#include "../ops/weighted_sum.h"
#include "deltas.h"
#include "draws.h"
#include "stores.h"

namespace warpmerge {
namespace {

constexpr int kFormulaThreads = 128;
constexpr int kFormulaWarp = 32;

// A thread's column of the file. A row has `stride` bytes: N elements of one operand for each thread, in vectors of 16
// bytes. The first vectors of all threads come first, then the second ones.
template <class T, int N>
struct File {
  static constexpr int kVector = N == 1 ? 1 : 16 / int(sizeof(T));
  static constexpr int kVectors = N / kVector;
  struct alignas(kVector * sizeof(T)) Vector {
    T element[kVector];
  };
  char* mine;
  int stride;

  WM_METHOD File(char* memory) : mine(memory + threadIdx.x * sizeof(Vector)), stride(row_bytes(int(blockDim.x))) {}

  static constexpr WM_METHOD int row_bytes(int threads) { return threads * N * int(sizeof(T)); }

  WM_METHOD Vector* at(int operand, int vector) const {
    return reinterpret_cast<Vector*>(mine + int64_t(operand) * stride + vector * (stride / kVectors));
  }
  WM_METHOD void get(int operand, T (&values)[N]) const {
    WM_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const Vector vector = *at(operand, v);
      WM_UNROLL
      for (int e = 0; e < kVector; ++e) values[v * kVector + e] = vector.element[e];
    }
  }
  WM_METHOD void put(int operand, const T (&values)[N]) const {
    WM_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      Vector vector;
      WM_UNROLL
      for (int e = 0; e < kVector; ++e) vector.element[e] = values[v * kVector + e];
      *at(operand, v) = vector;
    }
  }
};

// The position of a pack, for the instructions that depend on it.
struct ElementPosition {
  const int64_t* words;
  const int64_t* rules;
  int64_t flat;         // of the pack's first element
  int64_t row, column;  // of that element
  int64_t in_segment;   // its position in the segment
};

template <class T, int N>
WM_DEVICE void keep_pack(const int64_t* keep, int64_t flat, const T (&a)[N], T (&y)[N]) {
  const Rule<T> rule = rule_of<T>(keep);
  uint32_t bits[N] = {};
  if (rule.drawn) draws(rule.key, flat, bits);
  WM_UNROLL
  for (int e = 0; e < N; ++e) {
    const bool kept =
        rule.drawn ? bits[e] < rule.cut : canonical_key(a[e]) >= (flat + e < rule.tie_end ? rule.before : rule.after);
    y[e] = kept ? a[e] : T(0);
  }
}

// Elements of a vector, one per row or one per column; 0 past the end of the segment.
template <class T, int N>
WM_DEVICE void vector_pack(const ElementPosition& position, int64_t address, bool by_row, int n, T (&y)[N]) {
  const double* entries = reinterpret_cast<const double*>(address);
  const int64_t columns = position.words[kWordColumns];
  int64_t row = position.row, column = position.column;
  WM_UNROLL
  for (int e = 0; e < N; ++e) {
    y[e] = e < n ? T(entries[by_row ? row : column]) : T(0);
    if (++column == columns) column = 0, ++row;
  }
}

// An instruction that depends on the element's position.
template <class T, int N>
WM_DEVICE void positional_pack(const KernelProgram& program, const ElementPosition& position, FormulaOp op, int payload,
                               int n, const T (&a)[N], T (&y)[N]) {
  if (op == FormulaOp::keep) return keep_pack(position.rules + payload * 4, position.flat, a, y);
  const int64_t* words = position.words + kWordRest;
  if (op == FormulaOp::draw) {
    uint32_t bits[N];
    const uint64_t key = uint64_t(words[payload]);
    draws(PhiloxKey{uint32_t(key), uint32_t(key >> 32)}, position.flat, bits);
    WM_UNROLL
    for (int e = 0; e < N; ++e) y[e] = T(int(bits[e]));
    return;
  }
  words += program.keys;
  if (op != FormulaOp::rank) return vector_pack(position, words[payload], op == FormulaOp::row, n, y);
  const T* ranks = reinterpret_cast<const T*>(words[program.vectors + payload]) + position.in_segment;
  WM_UNROLL
  for (int e = 0; e < N; ++e) y[e] = e < n ? ranks[e] : T(0);
}

// Carries out the program for the pack whose inputs and base are in the file.
template <class T, int N>
WM_DEVICE void carry_out(const KernelProgram& program, const File<T, N>& file, const T* constants,
                         const ElementPosition& position, int n) {
  const auto operand = [&](unsigned number, const T(&last)[N], T(&values)[N]) {
    if (number < unsigned(program.operands)) {
      file.get(int(number), values);
    } else {
      const bool is_last = number >= kNoOperand;  // or not used
      const T constant = is_last ? T(0) : constants[number - unsigned(program.operands)];
      WM_UNROLL
      for (int e = 0; e < N; ++e) values[e] = is_last ? last[e] : constant;
    }
  };
  const uint4* code = reinterpret_cast<const uint4*>(program.code);
  T last[N] = {};
  uint4 next = __ldg(code);
  WM_ROLLED
  for (int i = 0; i < program.instructions; ++i) {
    const uint4 fields = next;
    next = __ldg(code + i + 1);  // behind the last row are the numbers of the values
    const FormulaOp op = FormulaOp(fields.x & 0xffffu);
    T a[N], b[N];
    operand(fields.y & 0xffffu, last, a);
    operand(fields.y >> 16, last, b);
    if (op < FormulaOp::keep) {
      visit_calculation(op, [&](auto instruction) {
        constexpr FormulaOp kOp = decltype(instruction)::op;
        T c[N] = {};
        if constexpr (kOp == FormulaOp::where) operand(fields.z & 0xffffu, last, c);
        WM_UNROLL
        for (int e = 0; e < N; ++e) last[e] = calculate<kOp>(a[e], b[e], c[e]);
      });
    } else {
      positional_pack(program, position, op, int(fields.z >> 16), n, a, last);
    }
    const unsigned target = fields.x >> 16;
    if (target != kNoOperand) file.put(int(target), last);
  }
}

// With a base: base plus value. Without one: if the first `agree` inputs are bit-identical, the output is that input.
template <class T, int N>
WM_DEVICE void finish_pack(const Table& table, const File<T, N>& file, int agree, T (&y)[N]) {
  T first[N];
  if (table.has_base) {
    file.get(table.models, first);
    WM_UNROLL
    for (int e = 0; e < N; ++e) y[e] = add_delta(first[e], y[e]);
  } else if (agree) {
    file.get(0, first);
    Bits<T> differ[N] = {};
    WM_ROLLED
    for (int k = 1; k < agree; ++k) {
      T x[N];
      file.get(k, x);
      WM_UNROLL
      for (int e = 0; e < N; ++e) differ[e] |= differing_bits(x[e], first[e]);
    }
    WM_UNROLL
    for (int e = 0; e < N; ++e) y[e] = differ[e] == 0 ? first[e] : y[e];
  }
}

template <class T, int N>
WM_DEVICE void store_results(const Table& table, const Chunk& chunk, int m, int at, int n, const T (&y)[N]) {
  if constexpr (sizeof(T) == 4 && N == kPack) {
    if (n == N && table.aligned && table.out != Dtype::f64) {
      store_packed(table, chunk, m, at, y);
      return;
    }
  }
  store_any(table, chunk, m, at, n, y);
}

// `kSharedFile`: the file lies in shared memory, in front of the constants.
template <class T, int N, bool kSharedFile>
__global__ void __launch_bounds__(kFormulaThreads, 4)
    formula_values(WM_PARAM Table table, WM_PARAM KernelProgram program, bool combine, int agree) {
  const int64_t file_bytes = int64_t(program.operands) * File<T, N>::row_bytes(int(blockDim.x));
  T* constants = reinterpret_cast<T*>(dynamic_shared() + (kSharedFile ? file_bytes : 0));
  const File<T, N> file(kSharedFile ? dynamic_shared()
                                    : static_cast<char*>(program.file) + int64_t(blockIdx.x) * file_bytes);
  const int words = kWordRest + program.keys + program.vectors + program.ranks;
  const uint16_t* values = reinterpret_cast<const uint16_t*>(program.code) + program.instructions * kFormulaFields;
  for (int64_t number = blockIdx.x; number < table.chunks; number += gridDim.x) {
    const Chunk chunk = chunk_of(table, number);
    __syncthreads();  // all threads are done with the last chunk's constants
    for (int i = int(threadIdx.x); i < program.constants; i += int(blockDim.x))
      constants[i] = T(table.numbers[chunk.segment * program.constants + i]);
    __syncthreads();
    ElementPosition position{
        table.words + chunk.segment * words, table.rules + chunk.segment * program.rules * 4, 0, 0, 0, 0};
    WM_ROLLED
    for (int at = int(threadIdx.x) * N; at < chunk.count; at += int(blockDim.x) * N) {
      const int n = chunk.count - at < N ? chunk.count - at : N;
      Widened<T, N> base;
      load_base(table, chunk, at, n, base);
      file.put(table.models, base.values);
      WM_ROLLED
      for (int k = 0; k < table.models; ++k) {
        T d[N];
        load_deltas(table, chunk, k, base, at, n, true, d);
        file.put(k, d);
      }
      position.in_segment = chunk.begin + at;
      position.flat = chunk.segment_row[kSegmentFirst] + position.in_segment;
      if (program.vectors) {
        const int64_t columns = position.words[kWordColumns];
        position.row = position.flat / columns;
        position.column = position.flat - position.row * columns;
      }
      carry_out(program, file, constants, position, n);
      WM_ROLLED
      for (int m = 0; m < program.values; ++m) {
        const int operand = values[m];
        T y[N];
        if (operand < program.operands) {
          file.get(operand, y);
        } else {
          WM_UNROLL
          for (int e = 0; e < N; ++e) y[e] = constants[operand - program.operands];
        }
        if (combine) {
          finish_pack(table, file, agree, y);
          settle_results(table, chunk, at, n, y);
        } else {
          WM_UNROLL
          for (int e = 0; e < N; ++e) y[e] = measured(y[e]);
        }
        store_results(table, chunk, m, at, n, y);
      }
    }
  }
}

// Threads of a block: so few that two blocks fit on a multiprocessor, but at least one warp.
int formula_threads(int64_t warp_bytes, int64_t constants) {
  int threads = kFormulaThreads;
  while (threads > kFormulaWarp && threads / kFormulaWarp * warp_bytes + constants > kFormulaShared / 2) threads /= 2;
  return threads;
}

template <class T>
void queue_formula(cudaStream_t stream, const Table& table, const KernelProgram& program, bool combine, int agree) {
  const int64_t constants = int64_t(program.constants) * int64_t(sizeof(T));
  const int64_t alone = int64_t(program.operands) * kFormulaWarp * int64_t(sizeof(T));  // one element a thread
  const auto in_shared = [&](auto kernel, int64_t warp_bytes) {
    const int threads = formula_threads(warp_bytes, constants);
    const int64_t shared = threads / kFormulaWarp * warp_bytes + constants;
    launch_with(shared, "formula", kernel, table.chunks, threads, stream, table, program, combine, agree);
  };
  if (alone * kPack + constants <= kFormulaShared) return in_shared(formula_values<T, kPack, true>, alone * kPack);
  if (alone + constants <= kFormulaShared) return in_shared(formula_values<T, 1, true>, alone);
  const int64_t blocks = program.file_bytes / alone;
  if (blocks < 1) throw std::runtime_error("formula: too little memory for its operands");
  launch_with(constants, "formula", formula_values<T, 1, false>, blocks < table.chunks ? blocks : table.chunks,
              kFormulaWarp, stream, table, program, combine, agree);
}

}  // namespace

void formula(cudaStream_t stream, const KernelLaunch& work, const KernelProgram& program, bool combine, int agree,
             int64_t* nonfinite) {
  if (program.operands < work.models + 1 || program.values != work.outputs)
    throw std::runtime_error("formula: the program is not one for the tensors of the launch");
  const Table table = make_table(work, program.constants, nonfinite);
  if (work.fp64)
    queue_formula<double>(stream, table, program, combine, agree);
  else
    queue_formula<float>(stream, table, program, combine, agree);
}

}  // namespace warpmerge
