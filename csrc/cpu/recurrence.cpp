#include "recurrence.h"

#include <atomic>
#include <chrono>

namespace tagrank::cpu {

RowShares::RowShares(const Grid& grid, const Rows& rows, int64_t unit) : grid_(grid), batch_(rows.batch), unit_(unit) {
  if (rows.first == nullptr) return;
  bounds_.assign(static_cast<std::size_t>(grid.rows) + 1, batch_);
  bounds_[0] = 0;
  int64_t done = 0, next = 1;
  for (int64_t row = 0, t = rows.steps; row < batch_; row += unit_) {
    for (; next < grid.rows && done * grid.rows >= rows.at(rows.steps) * next; ++next) {
      bounds_[static_cast<std::size_t>(next)] = row;
    }
    for (int64_t r = row; r < std::min(row + unit_, batch_); ++r, done += t) {
      while (rows.count(t - 1) <= r) --t;  // t is the length of row r
    }
  }
}

Range RowShares::of(int64_t worker) const {
  if (bounds_.empty()) {
    const Range units = grid_.row_share(worker, (batch_ + unit_ - 1) / unit_);
    return {units.begin * unit_, std::min(units.end * unit_, batch_)};
  }
  const auto i = static_cast<std::size_t>(worker / grid_.columns);
  return {bounds_[i], bounds_[i + 1]};
}

namespace {

const InstructionSet& functions_of(Capability capability) {
  switch (capability) {
#if defined(TAGRANK_X86)
#if defined(TAGRANK_AMX)
    case Capability::amx:
      return amx::kFunctions;
#endif
    case Capability::avx512:
      return avx512::kFunctions;
    case Capability::avx2:
      return avx2::kFunctions;
#endif
    default:
      return portable::kFunctions;
  }
}

const InstructionSet& functions() {
  static const InstructionSet& chosen = functions_of(capability());
  return chosen;
}

bool is_nan(float x) { return x != x; }
bool is_nan(double x) { return x != x; }
bool is_nan(bfloat16 x) { return (x.bits & 0x7fff) > 0x7f80; }

template <typename T>
bool has_nan(const T* numbers, int64_t count) {
  if (numbers == nullptr) return false;
  int64_t nans = 0;
  for (int64_t i = 0; i < count; ++i) nans += is_nan(numbers[i]);
  return nans != 0;
}

// The functions that compute a pass again if the matrix unit made NaN, or null if nothing else would have. The unit multiplies
// floats in parts, and an infinity has none: all that it touches becomes NaN, where vectors give an infinity.
const InstructionSet* if_by_matrix_unit() {
#if defined(TAGRANK_X86) && defined(TAGRANK_AMX)
  if (capability() == Capability::amx) return &avx512::kFunctions;
#endif
  return nullptr;
}

}  // namespace

template <typename T>
void forward(const ForwardCall<T>& call, const Threads& threads) {
  functions().passes(T{}).forward(call, threads);
  const InstructionSet* vectors = if_by_matrix_unit();
  if (vectors == nullptr) return;
  // NaN stays in c until the last step, and NaN of an output gate is in h until the step after.
  // In a packed batch each step may be the last one of a sequence.
  const int64_t from = call.first_rows != nullptr ? 0 : (call.steps - 1) * call.batch * call.outputs;
  const int64_t to = call.rows().at(call.steps) * call.outputs;
  if (has_nan(call.c_n, call.batch * call.hidden) || has_nan(call.output + from, to - from)) {
    vectors->passes(T{}).forward(call, threads);
  }
}

template <typename T>
void backward(const BackwardCall<T>& call, const Threads& threads) {
  functions().passes(T{}).backward(call, threads);
  const InstructionSet* vectors = if_by_matrix_unit();
  if (vectors == nullptr) return;
  // NaN stays in the gradient of c until the first step.
  const int64_t states = call.batch * call.hidden;
  if (has_nan(call.d_gates_x, 4 * states) || has_nan(call.d_h0, call.batch * call.outputs) || has_nan(call.d_c0, states) ||
      has_nan(call.d_weight_hh, 4 * call.hidden * call.outputs)) {
    vectors->passes(T{}).backward(call, threads);
  }
}

template <typename T>
void linear(const LinearCall<T>& call) {
  functions().passes(T{}).linear(call);
}

double multiply_add_rate(double seconds, const Threads& threads) {
  using Clock = std::chrono::steady_clock;
  std::atomic<int64_t> operations{0};
  const Clock::time_point start = Clock::now(), end = start + std::chrono::duration_cast<Clock::duration>(
                                                                  std::chrono::duration<double>(seconds));
  threads.run(threads.count, [&](int64_t, int64_t) {
    volatile float sink;
    while (Clock::now() < end) {
      float result;
      operations += functions().multiply_adds(&result);
      sink = result;
    }
    (void)sink;
  });
  return static_cast<double>(operations) / std::chrono::duration<double>(Clock::now() - start).count() / 1e9;
}

template void forward(const ForwardCall<float>&, const Threads&);
template void forward(const ForwardCall<double>&, const Threads&);
template void forward(const ForwardCall<bfloat16>&, const Threads&);
template void backward(const BackwardCall<float>&, const Threads&);
template void backward(const BackwardCall<double>&, const Threads&);
template void backward(const BackwardCall<bfloat16>&, const Threads&);
template void linear(const LinearCall<float>&);
template void linear(const LinearCall<double>&);
template void linear(const LinearCall<bfloat16>&);

}  // namespace tagrank::cpu
