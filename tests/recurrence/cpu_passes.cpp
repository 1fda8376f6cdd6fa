// Runs both passes of csrc/cpu on a problem from stdin and writes the results to stdout, for test_aarch64.py, which runs this
// program in an emulator of another CPU. Built without torch.

#include <array>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <thread>
#include <vector>

#include "recurrence.h"

using namespace tagrank::cpu;

namespace {

template <typename T>
std::vector<T> read(int64_t count) {
  std::vector<T> numbers(static_cast<std::size_t>(count));
  if (std::fread(numbers.data(), sizeof(T), numbers.size(), stdin) != numbers.size()) throw std::runtime_error("stdin ends");
  return numbers;
}

template <typename T>
void write(const std::vector<T>& numbers) {
  if (std::fwrite(numbers.data(), sizeof(T), numbers.size(), stdout) != numbers.size()) throw std::runtime_error("stdout");
}

// All bits set, which is NaN in each type: what a pass does not write, or reads before it has written it, shows.
template <typename T>
std::vector<T> unwritten(int64_t count) {
  std::vector<T> numbers(static_cast<std::size_t>(count));
  std::fill_n(reinterpret_cast<unsigned char*>(numbers.data()), numbers.size() * sizeof(T), static_cast<unsigned char>(0xff));
  return numbers;
}

Threads threads(int64_t count) {
  return {count, [](int64_t n, const std::function<void(int64_t, int64_t)>& body) {
            std::vector<std::thread> running;
            for (int64_t i = 1; i < n; ++i) running.emplace_back([&body, i] { body(i, i + 1); });
            body(0, 1);
            for (std::thread& thread : running) thread.join();
          }};
}

template <typename T>
void run(const Threads& threads, int64_t batch, int64_t hidden, int64_t steps, bool constant) {
  const int64_t states = batch * hidden, gates_count = (constant ? 1 : steps) * 4 * states;
  const auto gates_x = read<T>(gates_count), weight_hh = read<T>(4 * hidden * hidden);
  const auto h0 = read<T>(states), c0 = read<T>(states);
  const auto grad_output = read<T>(steps * states), grad_c_n = read<T>(states);
  auto output = unwritten<T>(steps * states), c_n = unwritten<T>(states), gates = unwritten<T>(steps * 4 * states);
  auto cells = unwritten<compute_t<T>>(steps * states);
  forward(ForwardCall<T>{batch, hidden, steps, constant, gates_x.data(), weight_hh.data(), nullptr, hidden, h0.data(), c0.data(),
                         output.data(), c_n.data(), gates.data(), cells.data(), nullptr},
          threads);
  auto d_gates_x = unwritten<T>(gates_count), d_weight_hh = unwritten<T>(4 * hidden * hidden);
  auto d_h0 = unwritten<T>(states), d_c0 = unwritten<T>(states);
  backward(BackwardCall<T>{batch, hidden, steps, constant, grad_output.data(), {states, hidden, 1}, nullptr,
                           grad_c_n.data(), gates_x.data(), weight_hh.data(), nullptr, hidden, h0.data(), c0.data(),
                           output.data(), gates.data(), cells.data(), d_gates_x.data(), d_weight_hh.data(), d_h0.data(),
                           d_c0.data(), nullptr, nullptr, nullptr, nullptr},
           threads);
  for (const auto* result : {&output, &c_n, &d_gates_x, &d_weight_hh, &d_h0, &d_c0}) write(*result);
}

}  // namespace

// In stdin: the dtype (0: float32, 1: float64, 2: bfloat16), the number of threads, B, H, T, and whether gates_x is constant, each
// as int64; then gates_x, weight_hh, h0, c0, and the gradients of output and c_n. In stdout: output, c_n, and the gradients of
// gates_x, weight_hh, h0 and c0.
int main() {
  const auto header = read<int64_t>(6);
  const auto pass = std::array{run<float>, run<double>, run<bfloat16>}.at(static_cast<std::size_t>(header[0]));
  pass(threads(header[1]), header[2], header[3], header[4], header[5] != 0);
}
