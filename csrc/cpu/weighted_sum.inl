// weighted_sum over one tile, in two forms. For up to four models the loop over models is unrolled, and a sum stays in
// a register. For more models the sums of a stage are an array. Both forms add in the order of the models, so their
// bits agree. A stage is loaded once for all outputs. There are no intrinsics: compilers vectorise the loops over
// elements.

template <class T, bool kBase, bool kAgree>
WM_FN T finish_sum(T sum, T base, T first, Bits<T> differ) {
  if (kBase) return add_delta(base, sum);
  return kAgree && differ == 0 ? first : sum;
}

template <class T, int K, bool kBase, bool kAgree>
void weighted_sum_fused(T* const* deltas, const T* __restrict base, const T* coefficients, int count,
                        T* __restrict out) {
  const T* __restrict d[K];
  T c[K];
  for (int k = 0; k < K; ++k) d[k] = deltas[k], c[k] = coefficients[k];
  for (int j = 0; j < count; ++j) {
    T sum = c[0] * d[0][j];
    Bits<T> differ = 0;
    for (int k = 1; k < K; ++k) {
      sum = sum + c[k] * d[k][j];
      if (kAgree) differ |= differing_bits(d[k][j], d[0][j]);
    }
    out[j] = finish_sum<T, kBase, kAgree>(sum, base[j], d[0][j], differ);
  }
}

template <class T, bool kBase, bool kAgree>
void weighted_sum_any(T* const* deltas, int models, const T* __restrict base, const T* c, int count, T* __restrict out,
                      Bits<T>* __restrict differ) {
  const T* __restrict first = deltas[0];
  for (int j = 0; j < count; ++j) out[j] = c[0] * first[j], differ[j] = 0;
  for (int k = 1; k < models; ++k) {
    const T* __restrict d = deltas[k];
    for (int j = 0; j < count; ++j) {
      out[j] = out[j] + c[k] * d[j];
      if (kAgree) differ[j] |= differing_bits(d[j], first[j]);
    }
  }
  for (int j = 0; j < count; ++j) out[j] = finish_sum<T, kBase, kAgree>(out[j], base[j], first[j], differ[j]);
}

template <class T, bool kBase, bool kAgree>
void weighted_sum_stage(T* const* d, int models, const T* base, const T* c, int count, T* out, Bits<T>* differ) {
  switch (models) {
    case 1:
      return weighted_sum_fused<T, 1, kBase, kAgree>(d, base, c, count, out);
    case 2:
      return weighted_sum_fused<T, 2, kBase, kAgree>(d, base, c, count, out);
    case 3:
      return weighted_sum_fused<T, 3, kBase, kAgree>(d, base, c, count, out);
    case 4:
      return weighted_sum_fused<T, 4, kBase, kAgree>(d, base, c, count, out);
    default:
      return weighted_sum_any<T, kBase, kAgree>(d, models, base, c, count, out, differ);
  }
}

template <class T>
void weighted_sum(const Operands& operands, const WeightedSumArgs& args, int64_t begin, int64_t count, void* const* out,
                  Dtype out_dtype, void* scratch, int64_t* nonfinite) {
  const int models = operands.models;
  Arena arena(scratch);
  Staged<T> staged(operands, arena);
  T* result = arena.take<T>(kStage);
  Bits<T>* differ = arena.take<Bits<T>>(kStage);
  T* c = arena.take<T>(models);
  for (int64_t done = 0; done < count; done += kStage) {
    const int n = int(count - done < kStage ? count - done : kStage);
    staged.load(operands, nullptr, begin + done, n, nonfinite);
    for (int m = 0; m < args.outputs; ++m) {
      for (int k = 0; k < models; ++k) c[k] = T(args.coefficients[m * models + k]);
      if (operands.base)
        weighted_sum_stage<T, true, false>(staged.d, models, staged.base, c, n, result, differ);
      else if (args.agree)
        weighted_sum_stage<T, false, true>(staged.d, models, staged.base, c, n, result, differ);
      else
        weighted_sum_stage<T, false, false>(staged.d, models, staged.base, c, n, result, differ);
      staged.finish(operands, begin + done, n, result, out_dtype, element(out[m], out_dtype, done), nonfinite);
    }
  }
}
