// A stand-in for cuBLASLt that multiplies on the CPU, in columns as BLAS does, with the layouts and options that it is given. It
// takes float32 and bfloat16.
#include <cstdint>
#include <cstring>
#include <map>
#include <vector>

namespace {

struct Description {
  int compute = 0;
  std::map<int, std::vector<unsigned char>> attributes;
  template <typename T>
  T get(int attribute, T otherwise) const {
    const auto found = attributes.find(attribute);
    if (found == attributes.end() || found->second.size() != sizeof(T)) return otherwise;
    T value;
    std::memcpy(&value, found->second.data(), sizeof value);
    return value;
  }
};
struct Layout {
  int dtype;
  uint64_t rows, columns;
  int64_t leading;
};

float load(const void* data, int dtype, int64_t at) {
  if (dtype == 0) return static_cast<const float*>(data)[at];
  const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(data)[at]) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
void store(void* data, int dtype, int64_t at, float value) {
  if (dtype == 0) {
    static_cast<float*>(data)[at] = value;
    return;
  }
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  static_cast<uint16_t*>(data)[at] = static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

int plans = 0, last_compute = 0;

}  // namespace

extern "C" {

// What a test asks for.
int fake_plans() { return plans; }
int fake_compute() { return last_compute; }

int cublasLtCreate(void** handle) { return *handle = &plans, 0; }
int cublasLtMatmulDescCreate(void** description, int compute, int) {
  *description = new Description{compute, {}};
  return 0;
}
int cublasLtMatmulDescSetAttribute(void* description, int attribute, const void* value, std::size_t bytes) {
  const auto* from = static_cast<const unsigned char*>(value);
  static_cast<Description*>(description)->attributes[attribute].assign(from, from + bytes);
  return 0;
}
int cublasLtMatmulDescDestroy(void* description) { return delete static_cast<Description*>(description), 0; }
int cublasLtMatrixLayoutCreate(void** layout, int dtype, uint64_t rows, uint64_t columns, int64_t leading) {
  *layout = new Layout{dtype, rows, columns, leading};
  return leading < static_cast<int64_t>(rows);
}
int cublasLtMatrixLayoutDestroy(void* layout) { return delete static_cast<Layout*>(layout), 0; }
int cublasLtMatmulPreferenceCreate(void** preference) { return cublasLtMatmulDescCreate(preference, 0, 0); }
int cublasLtMatmulPreferenceSetAttribute(void* preference, int attribute, const void* value, std::size_t bytes) {
  return cublasLtMatmulDescSetAttribute(preference, attribute, value, bytes);
}
int cublasLtMatmulPreferenceDestroy(void* preference) { return cublasLtMatmulDescDestroy(preference); }

struct Heuristic {
  uint64_t algorithm[8];
  std::size_t workspace;
  int state;
  float waves;
  int reserved[4];
};
int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void* preference, int, Heuristic* found,
                                   int* count) {
  ++plans;
  // 3: the reductions, of which 2 is the one in the type of the sums.
  if (static_cast<Description*>(preference)->get<uint32_t>(3, 7) != 2) return 1;
  *found = Heuristic{};
  found->algorithm[0] = 11;
  found->workspace = 64;
  *count = 1;
  return 0;
}

int cublasLtMatmul(void*, void* described, const void* alpha, const void* a, void* a_layout, const void* b, void* b_layout,
                   const void* beta, const void* c, void* c_layout, void* d, void* d_layout, const uint64_t* algorithm,
                   void* workspace, std::size_t bytes, void*) {
  const auto &description = *static_cast<Description*>(described);
  const auto &la = *static_cast<Layout*>(a_layout), &lb = *static_cast<Layout*>(b_layout);
  const auto &lc = *static_cast<Layout*>(c_layout), &ld = *static_cast<Layout*>(d_layout);
  if (algorithm[0] != 11 || workspace == nullptr || bytes != 64) return 2;
  const bool ta = description.get<int32_t>(3, 0) != 0, tb = description.get<int32_t>(4, 0) != 0;
  const uint64_t inner = ta ? la.rows : la.columns;
  if ((ta ? la.columns : la.rows) != ld.rows || (tb ? lb.rows : lb.columns) != ld.columns) return 3;
  if ((tb ? lb.columns : lb.rows) != inner) return 4;
  const bool with_bias = description.get<uint32_t>(7, 1) == 4;
  const void* bias = description.get<const void*>(8, nullptr);
  last_compute = description.compute;
  for (uint64_t column = 0; column < ld.columns; ++column) {
    for (uint64_t row = 0; row < ld.rows; ++row) {
      double sum = 0;
      for (uint64_t k = 0; k < inner; ++k) {
        const float left = load(a, la.dtype, ta ? row * la.leading + k : k * la.leading + row);
        const float right = load(b, lb.dtype, tb ? k * lb.leading + column : column * lb.leading + k);
        sum += static_cast<double>(left) * right;
      }
      float value = *static_cast<const float*>(alpha) * static_cast<float>(sum);
      const float by = *static_cast<const float*>(beta);
      if (by != 0) value += by * load(c, lc.dtype, column * lc.leading + row);
      if (with_bias) value += load(bias, ld.dtype, row);
      store(d, ld.dtype, column * ld.leading + row, value);
    }
  }
  return 0;
}

}  // extern "C"
