#include "packed.h"

#include "layer.h"

namespace tagrank {

namespace {

PackedRows rows_of(const std::vector<int64_t>& batch_sizes) {
  STD_TORCH_CHECK(!batch_sizes.empty() && batch_sizes.back() > 0, "tagrank: batch_sizes: expected at least one, none below 1");
  PackedRows rows;
  rows.first.push_back(0);
  for (std::size_t t = 0; t < batch_sizes.size(); ++t) {
    STD_TORCH_CHECK(t == 0 || batch_sizes[t] <= batch_sizes[t - 1], "tagrank: batch_sizes: expected none above the one before");
    rows.first.push_back(rows.first.back() + batch_sizes[t]);
  }
  rows.before.reserve(static_cast<std::size_t>(rows.count()));
  for (std::size_t t = 0; t < batch_sizes.size(); ++t) {
    const int64_t previous = t > 0 ? batch_sizes[t - 1] : 0;
    for (int64_t row = rows.first[t]; row < rows.first[t + 1]; ++row) rows.before.push_back(row - previous);
  }
  return rows;
}

}  // namespace

std::vector<Tensor> packed_forward(const Tensor& gates_x, const Tensor& weight_hh, const MaybeTensor& h0, const MaybeTensor& c0,
                                   const MaybeTensor& weight_hr, std::vector<int64_t> batch_sizes, bool constant, bool save,
                                   Launch launch) {
  STD_TORCH_CHECK(weight_hh.dim() == 2 && weight_hh.size(1) > 0 && weight_hh.size(0) > 0 && weight_hh.size(0) % 4 == 0 &&
                      (weight_hr.has_value() || weight_hh.size(0) == 4 * weight_hh.size(1)),
                  "tagrank: weight_hh: expected shape [4H, H], or [4H, P] beside weight_hr, with H and P >= 1; got ",
                  describe_shape(weight_hh));
  const Kind kind = kind_of(weight_hh);
  STD_TORCH_CHECK(kind.cpu(), "tagrank: weight_hh: a packed batch runs on the CPU");
  const PackedRows rows = rows_of(batch_sizes);
  const Sizes sizes{static_cast<int64_t>(batch_sizes.size()), batch_sizes[0], weight_hh.size(0) / 4};
  const int64_t batch = sizes.batch, hidden = sizes.hidden, outputs = weight_hh.size(1), all = rows.count();
  expect("gates_x", gates_x, kind, {constant ? batch : all, 4 * hidden});
  expect("h0", h0, kind, {batch, outputs});
  expect("c0", c0, kind, {batch, hidden});
  expect("weight_hr", weight_hr, kind, {outputs, hidden});
  const Tensor output = empty({all, outputs}, kind), h_n = empty({batch, outputs}, kind), c_n = empty({batch, hidden}, kind);
  MaybeTensor gates, cells;
  if (save) {
    gates = empty({all, 4 * hidden}, kind);
    cells = empty({all, hidden}, with_dtype(kind, cell_dtype(kind.dtype)));
  }
  const ForwardPass pass{sizes,
                         constant,
                         made_contiguous(gates_x),
                         std::nullopt,
                         made_contiguous(weight_hh),
                         made_contiguous(h0),
                         made_contiguous(c0),
                         output,
                         h_n,
                         c_n,
                         gates,
                         cells,
                         &rows,
                         made_contiguous(weight_hr)};
  cpu_forward(pass, launch);
  std::vector<Tensor> results{output, h_n, c_n};
  if (save) {
    results.push_back(*gates);
    results.push_back(*cells);
  }
  return results;
}

std::vector<Tensor> packed_backward(const MaybeTensor& grad_output, const MaybeTensor& grad_h_n, const MaybeTensor& grad_c_n,
                                    const Tensor& weight_hh, const MaybeTensor& h0, const MaybeTensor& c0,
                                    const MaybeTensor& weight_hr, std::vector<int64_t> batch_sizes, const Tensor& output,
                                    const Tensor& gates, const Tensor& cells, bool constant, int64_t wanted, Launch launch) {
  const Kind kind = kind_of(weight_hh);
  STD_TORCH_CHECK(kind.cpu(), "tagrank: weight_hh: a packed batch runs on the CPU");
  STD_TORCH_CHECK(cells.dim() == 2, "tagrank: cells: expected shape [N, H]; got ", describe_shape(cells));
  const PackedRows rows = rows_of(batch_sizes);
  const Sizes sizes{static_cast<int64_t>(batch_sizes.size()), batch_sizes[0], cells.size(1)};
  const int64_t batch = sizes.batch, hidden = sizes.hidden, all = rows.count();
  expect("weight_hh", weight_hh, kind, {4 * hidden, weight_hr.has_value() ? -1 : hidden});
  const int64_t outputs = weight_hh.size(1);
  expect("weight_hr", weight_hr, kind, {outputs, hidden});
  expect("cells", cells, with_dtype(kind, cell_dtype(kind.dtype)), {all, hidden});
  expect("gates", gates, kind, {all, 4 * hidden});
  expect("output", output, kind, {all, outputs});
  expect("grad_output", grad_output, kind, {all, outputs});
  expect("grad_h_n", grad_h_n, kind, {batch, outputs});
  expect("grad_c_n", grad_c_n, kind, {batch, hidden});
  expect("h0", h0, kind, {batch, outputs});
  expect("c0", c0, kind, {batch, hidden});
  const BackwardPass pass{sizes,
                          /*summed=*/constant,
                          grad_output,
                          made_contiguous(grad_h_n),
                          made_contiguous(grad_c_n),
                          constant,
                          /*gates_x=*/std::nullopt,
                          made_contiguous(gates),
                          made_contiguous(weight_hh),
                          made_contiguous(h0),
                          made_contiguous(c0),
                          made_contiguous(output),
                          made_contiguous(cells),
                          (wanted & kWeightHh) != 0,
                          (wanted & kH0) != 0 && h0.has_value(),
                          (wanted & kC0) != 0 && c0.has_value(),
                          &rows,
                          made_contiguous(weight_hr),
                          (wanted & kWeightHr) != 0 && weight_hr.has_value()};
  const Gradients gradients = cpu_backward(pass, launch);
  std::vector<Tensor> results{constant ? *gradients.gates_sum : *gradients.gates};
  for (const MaybeTensor& gradient : {gradients.weight_hh, gradients.h0, gradients.c0, gradients.weight_hr}) {
    if (gradient.has_value()) results.push_back(*gradient);
  }
  return results;
}

}  // namespace tagrank
