#include "cell.h"

#include <algorithm>

#include "activations.h"
#include "capability.h"

namespace tagrank::cpu {
namespace {

// Equations (2)-(7) of Yan, Wang and Liao (2016) for columns [from, to) of one row.
template <bool keep_gates, typename T>
TAGRANK_INLINE void forward_row(const ForwardStep<T>& step, int64_t row, int64_t from, int64_t to) {
  using C = compute_t<T>;
  const int64_t H = step.hidden;
  const T* product = step.product + row * 4 * H;
  const T* gates_x = step.gates_x + row * 4 * H;
  const C* c_prev = step.c_prev + row * H;
  C* c = step.c + row * H;
  T* h = step.h + row * H;
  T* gates = keep_gates ? step.gates + row * 4 * H : nullptr;
#pragma omp simd
  for (int64_t j = from; j < to; ++j) {
    const C i = sigmoid(load(product[j]) + load(gates_x[j]));
    const C f = sigmoid(load(product[H + j]) + load(gates_x[H + j]));
    const C g = tanh(load(product[2 * H + j]) + load(gates_x[2 * H + j]));
    const C o = sigmoid(load(product[3 * H + j]) + load(gates_x[3 * H + j]));
    const C state = f * c_prev[j] + i * g;
    c[j] = state;
    store(h[j], o * tanh(state));
    if constexpr (keep_gates) {
      store(gates[j], i);
      store(gates[H + j], f);
      store(gates[2 * H + j], g);
      store(gates[3 * H + j], o);
    }
  }
}

// The chain rule through the same equations, from the last to the first.
template <bool sum, typename T>
TAGRANK_INLINE void backward_row(const BackwardStep<T>& step, int64_t row, int64_t from, int64_t to) {
  using C = compute_t<T>;
  const int64_t H = step.hidden;
  const T* grad_output = step.grad_output + row * H;
  const T* grad_h = step.grad_h + row * H;
  const T* gates = step.gates + row * 4 * H;
  const C* c_prev = step.c_prev + row * H;
  const C* c = step.c + row * H;
  C* grad_c = step.grad_c + row * H;
  T* grad_gates = step.grad_gates + row * 4 * H;
  C* grad_sum = sum ? step.grad_sum + row * 4 * H : nullptr;
#pragma omp simd
  for (int64_t j = from; j < to; ++j) {
    const C i = load(gates[j]);
    const C f = load(gates[H + j]);
    const C g = load(gates[2 * H + j]);
    const C o = load(gates[3 * H + j]);
    const C tanh_c = tanh(c[j]);
    const C dh = load(grad_output[j]) + load(grad_h[j]);
    const C dc = grad_c[j] + dh * o * (1 - tanh_c * tanh_c);
    const C d_i = dc * g * i * (1 - i);
    const C d_f = dc * c_prev[j] * f * (1 - f);
    const C d_g = dc * i * (1 - g * g);
    const C d_o = dh * tanh_c * o * (1 - o);
    grad_c[j] = dc * f;
    store(grad_gates[j], d_i);
    store(grad_gates[H + j], d_f);
    store(grad_gates[2 * H + j], d_g);
    store(grad_gates[3 * H + j], d_o);
    if constexpr (sum) {
      grad_sum[j] += d_i;
      grad_sum[H + j] += d_f;
      grad_sum[2 * H + j] += d_g;
      grad_sum[3 * H + j] += d_o;
    }
  }
}

template <typename T>
TAGRANK_INLINE void forward(const ForwardStep<T>& step, int64_t begin, int64_t end) {
  while (begin < end) {
    const int64_t row = begin / step.hidden, first = row * step.hidden;
    const int64_t stop = std::min(end, first + step.hidden);
    if (step.gates != nullptr) {
      forward_row<true>(step, row, begin - first, stop - first);
    } else {
      forward_row<false>(step, row, begin - first, stop - first);
    }
    begin = stop;
  }
}

template <typename T>
TAGRANK_INLINE void backward(const BackwardStep<T>& step, int64_t begin, int64_t end) {
  while (begin < end) {
    const int64_t row = begin / step.hidden, first = row * step.hidden;
    const int64_t stop = std::min(end, first + step.hidden);
    if (step.grad_sum != nullptr) {
      backward_row<true>(step, row, begin - first, stop - first);
    } else {
      backward_row<false>(step, row, begin - first, stop - first);
    }
    begin = stop;
  }
}

#if defined(TAGRANK_X86)
template <typename T>
TAGRANK_AVX512 void forward_avx512(const ForwardStep<T>& step, int64_t begin, int64_t end) {
  forward(step, begin, end);
}
template <typename T>
TAGRANK_AVX512 void backward_avx512(const BackwardStep<T>& step, int64_t begin, int64_t end) {
  backward(step, begin, end);
}
template <typename T>
TAGRANK_AVX2 void forward_avx2(const ForwardStep<T>& step, int64_t begin, int64_t end) {
  forward(step, begin, end);
}
template <typename T>
TAGRANK_AVX2 void backward_avx2(const BackwardStep<T>& step, int64_t begin, int64_t end) {
  backward(step, begin, end);
}
#endif

}  // namespace

template <typename T>
void cell_forward(const ForwardStep<T>& step, int64_t begin, int64_t end) {
  switch (capability()) {
#if defined(TAGRANK_X86)
    case Capability::avx512:
      return forward_avx512(step, begin, end);
    case Capability::avx2:
      return forward_avx2(step, begin, end);
#endif
    default:
      return forward(step, begin, end);
  }
}

template <typename T>
void cell_backward(const BackwardStep<T>& step, int64_t begin, int64_t end) {
  switch (capability()) {
#if defined(TAGRANK_X86)
    case Capability::avx512:
      return backward_avx512(step, begin, end);
    case Capability::avx2:
      return backward_avx2(step, begin, end);
#endif
    default:
      return backward(step, begin, end);
  }
}

template void cell_forward(const ForwardStep<float>&, int64_t, int64_t);
template void cell_forward(const ForwardStep<double>&, int64_t, int64_t);
template void cell_forward(const ForwardStep<bfloat16>&, int64_t, int64_t);
template void cell_backward(const BackwardStep<float>&, int64_t, int64_t);
template void cell_backward(const BackwardStep<double>&, int64_t, int64_t);
template void cell_backward(const BackwardStep<bfloat16>&, int64_t, int64_t);

}  // namespace tagrank::cpu
