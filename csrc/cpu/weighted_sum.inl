// weighted_sum over one tile. K > 0: unrolled over the models, all in registers; K = 0: any number, through arrays.

template <class T, int K, bool kBase, bool kAgree>
void weighted_sum_fused(T* const* x, const T* __restrict base, const T* coefficients, int count, T* __restrict out) {
  const T* __restrict xs[K];
  T c[K];
  for (int k = 0; k < K; ++k) xs[k] = x[k], c[k] = coefficients[k];
  for (int j = 0; j < count; ++j) {
    T sum = c[0] * (kBase ? xs[0][j] - base[j] : xs[0][j]);
    Bits<T> differ = 0;
    for (int k = 1; k < K; ++k) {
      sum = sum + c[k] * (kBase ? xs[k][j] - base[j] : xs[k][j]);
      if (kAgree) differ |= differing_bits(xs[k][j], xs[0][j]);
    }
    if (kBase)
      out[j] = add_delta(base[j], sum);
    else if (kAgree)
      out[j] = differ == 0 ? xs[0][j] : sum;
    else
      out[j] = sum;
  }
}

// `x` holds deltas already if there is a base.
template <class T>
void weighted_sum_any(T* const* x, int models, const T* base, const T* c, bool agree, int count, T* __restrict out,
                      Bits<T>* __restrict differ) {
  for (int j = 0; j < count; ++j) out[j] = c[0] * x[0][j], differ[j] = 0;
  for (int k = 1; k < models; ++k) {
    const T* __restrict xk = x[k];
    const T* __restrict x0 = x[0];
    for (int j = 0; j < count; ++j) {
      out[j] = out[j] + c[k] * xk[j];
      differ[j] |= differing_bits(xk[j], x0[j]);
    }
  }
  if (base)
    for (int j = 0; j < count; ++j) out[j] = add_delta(base[j], out[j]);
  else if (agree)
    for (int j = 0; j < count; ++j) out[j] = differ[j] == 0 ? x[0][j] : out[j];
}

template <class T, bool kBase, bool kAgree>
bool weighted_sum_few(int models, T* const* x, const T* base, const T* c, int count, T* out) {
  switch (models) {
    case 1:
      return weighted_sum_fused<T, 1, kBase, kAgree>(x, base, c, count, out), true;
    case 2:
      return weighted_sum_fused<T, 2, kBase, kAgree>(x, base, c, count, out), true;
    case 3:
      return weighted_sum_fused<T, 3, kBase, kAgree>(x, base, c, count, out), true;
    case 4:
      return weighted_sum_fused<T, 4, kBase, kAgree>(x, base, c, count, out), true;
    default:
      return false;
  }
}

template <class T>
void weighted_sum(const Operands& operands, const WeightedSumArgs& args, int64_t begin, int64_t count, void* const* out,
                  Dtype out_dtype, void* scratch, int64_t* nonfinite) {
  const int models = operands.models;
  const bool relative = operands.base != nullptr;
  Arena arena(scratch);
  Staged<T> staged(operands, arena);
  T* result = arena.take<T>(kStage);
  Bits<T>* differ = arena.take<Bits<T>>(kStage);
  T* c = arena.take<T>(models);
  for (int64_t done = 0; done < count; done += kStage) {
    const int n = int(count - done < kStage ? count - done : kStage);
    staged.load(operands, begin + done, n, nonfinite);
    const bool fused = staged.finite && models <= 4;
    if (relative && !fused) staged.subtract_base(operands, n);
    for (int m = 0; m < args.outputs; ++m) {
      for (int k = 0; k < models; ++k) c[k] = T(args.coefficients[m * models + k]);
      if (!fused)
        weighted_sum_any(staged.x, models, relative ? staged.base : nullptr, c, args.agree, n, result, differ);
      else if (relative)
        weighted_sum_few<T, true, false>(models, staged.x, staged.base, c, n, result);
      else if (args.agree)
        weighted_sum_few<T, false, true>(models, staged.x, staged.base, c, n, result);
      else
        weighted_sum_few<T, false, false>(models, staged.x, staged.base, c, n, result);
      narrow_into(result, out_dtype, out[m], done, n);
    }
  }
}
