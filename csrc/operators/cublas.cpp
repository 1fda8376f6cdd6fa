#include "cublas.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <map>
#include <mutex>

namespace tagrank::cublas {

namespace {

// What is used of cuBLASLt's interface, in plain C++ types. The numbers are those of its enums, the same in versions 12 and 13.
constexpr int kFloat32 = 0, kFloat16 = 2, kBFloat16 = 14;  // cudaDataType
constexpr int kComputeFloat32 = 68, kComputeTf32 = 77;     // cublasComputeType_t
constexpr int kTransposeA = 3, kTransposeB = 4, kEpilogue = 7, kBiasPointer = 8;
constexpr int kMostWorkspace = 1, kReductions = 3, kAlignments = 5;  // kAlignments + i for A, B, C and D
constexpr uint32_t kBiasEpilogue = 4, kReduceInComputeType = 2;

// cublasLtMatmulHeuristicResult_t.
struct Heuristic {
  uint64_t algorithm[8];
  std::size_t workspace;
  int state;
  float waves;
  int reserved[4];
};

struct Library {
  int (*create)(void** handle);
  int (*create_description)(void** description, int compute_type, int scale_type);
  int (*describe)(void* description, int attribute, const void* value, std::size_t bytes);
  int (*destroy_description)(void* description);
  int (*create_layout)(void** layout, int dtype, uint64_t rows, uint64_t columns, int64_t leading);
  int (*destroy_layout)(void* layout);
  int (*create_preference)(void** preference);
  int (*prefer)(void* preference, int attribute, const void* value, std::size_t bytes);
  int (*destroy_preference)(void* preference);
  int (*find)(void* handle, void* description, void* a, void* b, void* c, void* d, void* preference, int count,
              Heuristic* found, int* how_many);
  int (*multiply)(void* handle, void* description, const void* alpha, const void* a, void* a_layout, const void* b,
                  void* b_layout, const void* beta, const void* c, void* c_layout, void* d, void* d_layout,
                  const void* algorithm, void* workspace, std::size_t workspace_bytes, void* stream);
  bool complete;
};

// Tests have another library.
#ifndef TAGRANK_CUBLASLT
#define TAGRANK_CUBLASLT "libcublasLt.so.13", "libcublasLt.so.12"
#endif

Library load() {
  Library library{};
  void* file = nullptr;
  for (const char* name : {TAGRANK_CUBLASLT}) {
    if (file == nullptr) file = dlopen(name, RTLD_LAZY | RTLD_NOLOAD);
  }
  if (file == nullptr) return library;
  library.complete = true;
  const auto get = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(file, name));
    library.complete = library.complete && function != nullptr;
  };
  get(library.create, "cublasLtCreate");
  get(library.create_description, "cublasLtMatmulDescCreate");
  get(library.describe, "cublasLtMatmulDescSetAttribute");
  get(library.destroy_description, "cublasLtMatmulDescDestroy");
  get(library.create_layout, "cublasLtMatrixLayoutCreate");
  get(library.destroy_layout, "cublasLtMatrixLayoutDestroy");
  get(library.create_preference, "cublasLtMatmulPreferenceCreate");
  get(library.prefer, "cublasLtMatmulPreferenceSetAttribute");
  get(library.destroy_preference, "cublasLtMatmulPreferenceDestroy");
  get(library.find, "cublasLtMatmulAlgoGetHeuristic");
  get(library.multiply, "cublasLtMatmul");
  return library;
}

const Library& loaded() {
  static const Library library = load();
  return library;
}

void check(int status) { STD_TORCH_CHECK(status == 0, "tagrank: cuBLASLt failed with status ", status); }

// cuBLASLt's handle for the current device, whose number is `device`.
void* handle_on(int device) {
  static std::mutex mutex;
  static std::map<int, void*> handles;
  const std::lock_guard<std::mutex> lock(mutex);
  void*& handle = handles[device];
  if (handle == nullptr) check(loaded().create(&handle));
  return handle;
}

// A matrix whose columns are contiguous, as BLAS has them: `rows` x `columns`, a column `leading` numbers after the one before.
struct Columns {
  int64_t rows, columns, leading;
  bool transposed;  // whether this is the transpose of the matrix that the product takes
};

// Whether the rows of a matrix with these sizes and strides are contiguous, one after the other.
bool in_rows(int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride) {
  return (columns == 1 || column_stride == 1) && (rows == 1 || row_stride >= columns);
}

// The transpose of a factor: BLAS computes out^T = b^T a^T. A matrix with contiguous rows is its transpose in columns.
std::optional<Columns> transpose_of(const Tensor& matrix) {
  const int64_t rows = matrix.size(0), columns = matrix.size(1), row = matrix.stride(0), column = matrix.stride(1);
  if (in_rows(rows, columns, row, column)) return Columns{columns, rows, rows == 1 ? columns : row, false};
  if (in_rows(columns, rows, column, row)) return Columns{rows, columns, columns == 1 ? rows : column, true};
  return std::nullopt;
}

// The largest power of two, up to 256, of which an address is a multiple.
uint32_t alignment_of(const void* address) {
  const uintptr_t bits = reinterpret_cast<uintptr_t>(address) | 256;
  return static_cast<uint32_t>(bits & -bits);
}

int data_type(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return kFloat32;
    case ScalarType::Half:
      return kFloat16;
    case ScalarType::BFloat16:
      return kBFloat16;
    default:
      return -1;
  }
}

// What cuBLASLt wants to know of a product before it runs. Products with the same key can share one.
struct Plan {
  void *description, *a, *b, *out;
  std::array<uint64_t, 8> algorithm;
  int64_t workspace;
  bool found;
};

void destroy(const Plan& plan) {
  const Library& library = loaded();
  library.destroy_description(plan.description);
  for (void* layout : {plan.a, plan.b, plan.out}) library.destroy_layout(layout);
}

struct Problem {
  int device, dtype, out_dtype;
  bool tf32, has_bias, accumulate;
  Columns a, b, out;
  uint32_t a_alignment, b_alignment, out_alignment, bias_alignment;
};

using Key = std::array<int64_t, 15>;
Key key_of(const Problem& p) {
  const int64_t flags = p.tf32 + 2 * p.has_bias + 4 * p.accumulate + 8 * p.a.transposed + 16 * p.b.transposed;
  return {p.device,     p.dtype,   p.out_dtype,   flags,         p.a.rows,      p.a.columns,     p.a.leading,     p.b.rows,
          p.b.columns,  p.b.leading, p.out.leading, p.a_alignment, p.b_alignment, p.out_alignment, p.bias_alignment};
}

Plan make_plan(const Problem& problem, const void* bias) {
  // More than the fastest products of recent GPUs take.
  constexpr uint64_t kWorkspace = 32 << 20;
  const Library& library = loaded();
  Plan plan{};
  check(library.create_description(&plan.description, problem.tf32 ? kComputeTf32 : kComputeFloat32, kFloat32));
  const auto describe = [&](int attribute, auto value) {
    check(library.describe(plan.description, attribute, &value, sizeof value));
  };
  describe(kTransposeA, static_cast<int32_t>(problem.a.transposed));
  describe(kTransposeB, static_cast<int32_t>(problem.b.transposed));
  if (problem.has_bias) {
    describe(kEpilogue, kBiasEpilogue);
    describe(kBiasPointer, bias);
  }
  const auto layout = [&](void** made, int dtype, const Columns& of) {
    check(library.create_layout(made, dtype, static_cast<uint64_t>(of.rows), static_cast<uint64_t>(of.columns), of.leading));
  };
  layout(&plan.a, problem.dtype, problem.a);
  layout(&plan.b, problem.dtype, problem.b);
  layout(&plan.out, problem.out_dtype, problem.out);
  void* preference = nullptr;
  check(library.create_preference(&preference));
  const auto prefer = [&](int attribute, auto value) { check(library.prefer(preference, attribute, &value, sizeof value)); };
  prefer(kMostWorkspace, kWorkspace);
  // Parts of a sum are not rounded to 16 bit before they are added up.
  prefer(kReductions, kReduceInComputeType);
  const uint32_t alignments[] = {problem.a_alignment, problem.b_alignment, problem.out_alignment, problem.out_alignment};
  for (int i = 0; i < 4; ++i) prefer(kAlignments + i, alignments[i]);
  Heuristic best{};
  int count = 0;
  const int status = library.find(handle_on(problem.device), plan.description, plan.a, plan.b, plan.out, plan.out, preference,
                                  1, &best, &count);
  check(library.destroy_preference(preference));
  plan.found = status == 0 && count > 0 && best.state == 0;
  std::copy(std::begin(best.algorithm), std::end(best.algorithm), plan.algorithm.begin());
  plan.workspace = static_cast<int64_t>(best.workspace);
  return plan;
}

// Each thread has its own plans: the pointer to the bias is in a plan, and is another one in each call.
class Plans {
 public:
  Plan& get(const Problem& problem, const void* bias) {
    const Key key = key_of(problem);
    const auto known = plans_.find(key);
    if (known != plans_.end()) return known->second;
    if (plans_.size() >= kMost) clear();
    return plans_.emplace(key, make_plan(problem, bias)).first->second;
  }

 private:
  // A program with batches of ever new sizes must not fill the memory.
  static constexpr std::size_t kMost = 4096;
  void clear() {
    for (const auto& [key, plan] : plans_) destroy(plan);
    plans_.clear();
  }
  std::map<Key, Plan> plans_;
};

}  // namespace

bool multiply(const Tensor& out, const Tensor& a, const Tensor& b, const MaybeTensor& bias, bool accumulate, bool tf32,
              void* stream) {
  const Kind kind = kind_of(a);
  const int dtype = data_type(kind.dtype), out_dtype = data_type(out.scalar_type());
  if (dtype < 0 || (out_dtype != dtype && out_dtype != kFloat32) || out.numel() == 0 || a.numel() == 0) return false;
  if (bias.has_value() && (a.size(1) == 1 || b.size(1) == 1)) return false;
  // In columns, all is transposed and the factors change places.
  const std::optional<Columns> left = transpose_of(b), right = transpose_of(a), result = transpose_of(out);
  if (!left.has_value() || !right.has_value() || !result.has_value() || result->transposed || !loaded().complete) return false;
  const void *left_data = b.const_data_ptr(), *right_data = a.const_data_ptr();
  const void* bias_data = bias.has_value() ? bias->const_data_ptr() : nullptr;
  void* data = out.mutable_data_ptr();
  const Problem problem{kind.device,
                        dtype,
                        out_dtype,
                        tf32 && dtype == kFloat32,
                        bias.has_value(),
                        accumulate,
                        *left,
                        *right,
                        *result,
                        alignment_of(left_data),
                        alignment_of(right_data),
                        alignment_of(data),
                        alignment_of(bias_data)};
  static thread_local Plans plans;
  Plan& plan = plans.get(problem, bias_data);
  if (!plan.found) return false;
  const Library& library = loaded();
  if (bias.has_value()) check(library.describe(plan.description, kBiasPointer, &bias_data, sizeof bias_data));
  // Torch's allocator gives memory back to calls of the same stream only, so that nobody else writes to it meanwhile.
  void* workspace = nullptr;
  Tensor memory = out;
  if (plan.workspace > 0) {
    memory = empty({plan.workspace}, with_dtype(kind, ScalarType::Byte));
    workspace = memory.mutable_data_ptr();
  }
  const float one = 1.0f, beta = accumulate ? 1.0f : 0.0f;
  check(library.multiply(handle_on(kind.device), plan.description, &one, left_data, plan.a, right_data, plan.b, &beta, data,
                         plan.out, data, plan.out, plan.algorithm.data(), workspace, static_cast<std::size_t>(plan.workspace),
                         stream));
  return true;
}

}  // namespace tagrank::cublas
