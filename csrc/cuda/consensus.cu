#include "../ops/consensus.h"

#include <math.h>

#include "../ops/weighted_sum.h"
#include "deltas.h"
#include "stores.h"

namespace warpmerge {
namespace {

constexpr int kConsensusThreads = 256;

// Thread blocks on a multiprocessor: as many as the registers for K models allow.
constexpr int consensus_blocks(int models, size_t itemsize) {
  return models <= 2 || (models == 3 && itemsize == 2) ? 4 : models <= 4 ? 3 : 2;
}

// One group by any road: running votes, totals and divisors; with an election the models are read twice.
template <class T, int N>
WM_DEVICE void consensus_group(const Table& table, const Chunk& chunk, bool elect, int at, int n) {
  const int models = table.models;
  const double* numbers = table.numbers + chunk.segment * table.numbers_per_segment;
  const int64_t flat = chunk.place[kPlaceFirst] + chunk.begin + at;
  Widened<T, N> base;
  load_base(table, chunk, at, n, base);
  T votes[N], total[N], weight[N];
  WM_UNROLL
  for (int e = 0; e < N; ++e) votes[e] = total[e] = weight[e] = T(0);
  const int first_pass = elect ? 0 : 1;
  WM_ROLLED
  for (int pass = first_pass; pass < 2; ++pass) {
    WM_ROLLED
    for (int k = 0; k < models; ++k) {
      T d[N];
      load_deltas(table, chunk, k, base, at, n, pass == first_pass, d);
      drop(rule_of<T>(table.keeps + (chunk.segment * models + k) * 4), flat, d);
      const T value = T(numbers[k]), ballot = T(numbers[models + k]), divisor = T(numbers[2 * models + k]);
      WM_UNROLL
      for (int e = 0; e < N; ++e) {
        if (pass == 0) {
          votes[e] = votes[e] + ballot * d[e];
        } else {
          const bool counted = !elect || toward(ballot * d[e], votes[e] < T(0)) > T(0);
          total[e] = total[e] + (counted ? value * d[e] : T(0));
          weight[e] = weight[e] + (elect && counted ? divisor : T(0));
        }
      }
    }
  }
  const T lambda = T(numbers[3 * models]);
  WM_UNROLL
  for (int e = 0; e < N; ++e) total[e] = add_delta(base.get(e), consensus_delta(votes[e], total[e], weight[e], lambda));
  store_any(table, chunk, 0, at, n, total);
}

// What a packed kernel leaves out, one element at a time to need few registers.
WM_DEVICE void unusual_consensus(const Table& table, const Chunk& chunk, bool elect, int at) {
  WM_ROLLED
  for (int e = at; e < at + kGroup && e < chunk.count; ++e) consensus_group<float, 1>(table, chunk, elect, e, 1);
}

template <class T>
__global__ void __launch_bounds__(kConsensusThreads, 1) consensus_any(WM_PARAM Table table, bool elect) {
  const Chunk chunk = chunk_of(table, blockIdx.x);
  for (int at = int(threadIdx.x) * kGroup; at < chunk.count; at += kConsensusThreads * kGroup)
    consensus_group<T, kGroup>(table, chunk, elect, at, chunk.count - at < kGroup ? chunk.count - at : kGroup);
}

// All inputs and the base have storage type S and are aligned.
template <class S, int K, bool kElect>
__global__ void __launch_bounds__(kConsensusThreads, consensus_blocks(K, sizeof(S)))
    consensus_packed(WM_PARAM Table table, bool elect) {
  __shared__ Rule<float> rules[K];
  const Chunk chunk = chunk_of(table, blockIdx.x);
  if (threadIdx.x < K) rules[threadIdx.x] = rule_of<float>(table.keeps + (chunk.segment * K + threadIdx.x) * 4);
  __syncthreads();
  const double* numbers = table.numbers + chunk.segment * table.numbers_per_segment;
  float value[K], ballot[K], divisor[K];
  Source inputs[K];
  bool drawn = false;
  WM_UNROLL
  for (int k = 0; k < K; ++k) {
    value[k] = float(numbers[k]), ballot[k] = float(numbers[K + k]), divisor[k] = float(numbers[2 * K + k]);
    inputs[k] = input_of(table, chunk, k);
    drawn |= rules[k].drawn;
  }
  const float lambda = float(numbers[3 * K]);
  const Source from = base_of(table, chunk);
  uint32_t unusual = 0;  // bit i: the group of iteration i, left for the end
  WM_ROLLED
  for (int i = 0; i < kChunk / (kConsensusThreads * kGroup); ++i) {
    const int at = (i * kConsensusThreads + int(threadIdx.x)) * kGroup;
    if (at >= chunk.count) break;
    bool usual = at + kGroup <= chunk.count;
    if (usual) {
      Packed<S, kGroup> x[K], base;
      WM_UNROLL
      for (int k = 0; k < K; ++k) x[k].template load<true>(inputs[k], at, kGroup);
      if (table.has_base)
        base.template load<true>(from, at, kGroup);
      else
        base.clear();
      const int64_t flat = chunk.place[kPlaceFirst] + chunk.begin + at;
      uint32_t bits[K];
      float lowest[K];
      WM_UNROLL
      for (int k = 0; k < K; ++k) {
        lowest[k] = bit_cast<float>(flat < rules[k].tie_end ? rules[k].before : rules[k].after);
        usual &= !straddles(rules[k], flat, kGroup);
        bits[k] = 0xffu;
      }
      if (drawn) {
        WM_UNROLL
        for (int k = 0; k < K; ++k)
          if (rules[k].drawn) bits[k] = drawn_bits(rules[k], flat);
      }
      float y[kGroup];
      float poison = 0;  // NaN as soon as a delta is not finite
      WM_UNROLL
      for (int e = 0; e < kGroup; ++e) {
        const float b = base.get(e);
        float d[K], votes = 0, total = 0, weight = 0;
        WM_UNROLL
        for (int k = 0; k < K; ++k) {
          const float delta = x[k].get(e) - b;
          poison = poison + (delta - delta);
          // Of finite numbers: keys order like magnitudes, and no magnitude is at least a NaN.
          d[k] = (bits[k] & (1u << e)) != 0 && fabsf(delta) >= lowest[k] ? delta : 0.0f;
          if (kElect) votes = k == 0 ? ballot[k] * d[k] : votes + ballot[k] * d[k];
        }
        // Terms that do not count are left out and the first is not added to 0: of zeros only the sign may differ,
        // which add_delta ignores.
        const float direction = toward(1.0f, votes < 0.0f);
        WM_UNROLL
        for (int k = 0; k < K; ++k) {
          const bool counted = !kElect || ballot[k] * d[k] * direction > 0.0f;
          const float term = value[k] * d[k];
          if (k == 0) {
            total = counted ? term : 0.0f;
            weight = kElect && counted ? divisor[k] : 0.0f;
          } else if (counted) {
            total = total + term;
            if (kElect) weight = weight + divisor[k];
          }
        }
        y[e] = add_delta(b, consensus_delta(votes, total, weight, lambda));
      }
      usual &= poison == poison;
      if (usual) store_packed(table, chunk, 0, at, y);
    }
    if (!usual) unusual |= 1u << i;
  }
  WM_ROLLED
  for (; unusual; unusual &= unusual - 1) {
    const int at = ((__ffs(int(unusual)) - 1) * kConsensusThreads + int(threadIdx.x)) * kGroup;
    unusual_consensus(table, chunk, elect, at);
  }
}

using ConsensusKernel = void (*)(Table, bool);

template <class S, bool kElect>
ConsensusKernel consensus_of(int models) {
  constexpr ConsensusKernel kernels[] = {consensus_packed<S, 1, kElect>, consensus_packed<S, 2, kElect>,
                                         consensus_packed<S, 3, kElect>, consensus_packed<S, 4, kElect>,
                                         consensus_packed<S, 5, kElect>, consensus_packed<S, 6, kElect>,
                                         consensus_packed<S, 7, kElect>, consensus_packed<S, 8, kElect>};
  return kernels[models - 1];
}

template <class S>
ConsensusKernel consensus_of(int models, bool elect) {
  return elect ? consensus_of<S, true>(models) : consensus_of<S, false>(models);
}

}  // namespace

void consensus(cudaStream_t stream, const Launch& work, bool elect, int64_t* nonfinite) {
  const Table table = make_table(work, 3 * work.models + 1, nonfinite);
  ConsensusKernel kernel = work.wide ? consensus_any<double> : consensus_any<float>;
  if (packed(work) && work.models <= kMaxPacked && work.out != Dtype::f64)
    kernel = work.inputs[0] == Dtype::bf16  ? consensus_of<bf16>(work.models, elect)
             : work.inputs[0] == Dtype::f16 ? consensus_of<f16>(work.models, elect)
                                            : consensus_of<float>(work.models, elect);
  launch("consensus", kernel, work.chunks, kConsensusThreads, stream, table, elect);
}

}  // namespace warpmerge
