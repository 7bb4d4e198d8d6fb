// elect_and_sum over one tile, in two forms. For up to four models the loops over models are unrolled, and one
// element's deltas stay in registers. For more models the votes, totals and divisors of a stage are arrays. Both forms
// add in the order of the models, so their bits agree. There are no intrinsics: compilers vectorise the loops over
// elements.

template <class T>
struct ElectAndSumCoefficients {
  const T *value, *vote, *divisor;
  T lambda;
};

// `kWeighted`: the vote of each model is its term. Seen in the elected direction, the agreeing part of a term is its
// positive part.
template <class T, int K, bool kElect, bool kWeighted>
void elect_and_sum_fused(T* const* deltas, const T* __restrict base, const ElectAndSumCoefficients<T>& c, int count,
                         T* __restrict out) {
  const T* __restrict d[K];
  T value[K], vote[K], divisor[K];
  const T lambda = c.lambda;
  for (int k = 0; k < K; ++k) d[k] = deltas[k], value[k] = c.value[k], vote[k] = c.vote[k], divisor[k] = c.divisor[k];
  for (int j = 0; j < count; ++j) {
    T total = 0, weight = 0, votes = 0;
    if (kElect)
      for (int k = 0; k < K; ++k) votes = votes + (kWeighted ? value[k] : vote[k]) * d[k][j];
    const bool negative = votes < T(0);
    for (int k = 0; k < K; ++k) {
      const T term = value[k] * d[k][j];
      if (!kElect) {
        total = total + term;
        continue;
      }
      const T along = toward(kWeighted ? term : vote[k] * d[k][j], negative);
      total = total + (kWeighted ? (along > T(0) ? along : T(0)) : (along > T(0) ? term : T(0)));
      weight = weight + (along > T(0) ? divisor[k] : T(0));
    }
    if (kWeighted) total = toward(total, negative);
    out[j] = add_delta(base[j], elect_and_sum_delta(votes, total, weight, lambda));
  }
}

template <class T, bool kElect>
void elect_and_sum_any(T* const* deltas, int models, const T* __restrict base, const ElectAndSumCoefficients<T>& c,
                       int count, T* __restrict out, T* __restrict votes, T* __restrict weight) {
  for (int j = 0; j < count; ++j) out[j] = 0, votes[j] = 0, weight[j] = 0;
  if (kElect)
    for (int k = 0; k < models; ++k) {
      const T* __restrict d = deltas[k];
      const T vote = c.vote[k];
      for (int j = 0; j < count; ++j) votes[j] = votes[j] + vote * d[j];
    }
  for (int k = 0; k < models; ++k) {
    const T* __restrict d = deltas[k];
    const T value = c.value[k], vote = c.vote[k], divisor = c.divisor[k];
    for (int j = 0; j < count; ++j) {
      const bool counted = !kElect || toward(vote * d[j], votes[j] < T(0)) > T(0);
      out[j] = out[j] + (counted ? value * d[j] : T(0));
      if (kElect) weight[j] = weight[j] + (counted ? divisor : T(0));
    }
  }
  for (int j = 0; j < count; ++j)
    out[j] = add_delta(base[j], elect_and_sum_delta(votes[j], out[j], weight[j], c.lambda));
}

template <class T, bool kElect, bool kWeighted>
void elect_and_sum_stage(T* const* d, int models, const T* base, const ElectAndSumCoefficients<T>& c, int count, T* out,
                         T* votes, T* weight) {
  switch (models) {
    case 1:
      return elect_and_sum_fused<T, 1, kElect, kWeighted>(d, base, c, count, out);
    case 2:
      return elect_and_sum_fused<T, 2, kElect, kWeighted>(d, base, c, count, out);
    case 3:
      return elect_and_sum_fused<T, 3, kElect, kWeighted>(d, base, c, count, out);
    case 4:
      return elect_and_sum_fused<T, 4, kElect, kWeighted>(d, base, c, count, out);
    default:
      return elect_and_sum_any<T, kElect>(d, models, base, c, count, out, votes, weight);
  }
}

template <class T>
void elect_and_sum(const Operands& operands, const ElectAndSumArgs& args, int64_t begin, int64_t count, void* out,
                   Dtype out_dtype, void* scratch, int64_t* nonfinite) {
  const int models = operands.models;
  Arena arena(scratch);
  Staged<T> staged(operands, arena);
  T* result = arena.take<T>(kStage);
  T* votes = arena.take<T>(kStage);
  T* weight = arena.take<T>(kStage);
  T* coefficients = arena.take<T>(3 * models);
  bool weighted = true;
  for (int k = 0; k < models; ++k) {
    weighted &= args.value[k] == args.vote[k];
    coefficients[k] = T(args.value[k]);
    coefficients[models + k] = T(args.vote[k]);
    coefficients[2 * models + k] = T(args.divisor[k]);
  }
  const ElectAndSumCoefficients<T> c{coefficients, coefficients + models, coefficients + 2 * models, T(args.lambda)};
  for (int64_t done = 0; done < count; done += kStage) {
    const int n = int(count - done < kStage ? count - done : kStage);
    staged.load(operands, args.keep, begin + done, n, nonfinite);
    if (!args.elect)
      elect_and_sum_stage<T, false, false>(staged.d, models, staged.base, c, n, result, votes, weight);
    else if (weighted)
      elect_and_sum_stage<T, true, true>(staged.d, models, staged.base, c, n, result, votes, weight);
    else
      elect_and_sum_stage<T, true, false>(staged.d, models, staged.base, c, n, result, votes, weight);
    staged.finish(operands, begin + done, n, result, out_dtype, element(out, out_dtype, done), nonfinite);
  }
}
