#include "layer.h"

#include "products.h"

namespace tagrank {

namespace {

// The input's columns of weight_ih, and the context's.
Tensor columns(const Tensor& weight, int64_t first, int64_t count) {
  return view(weight, {weight.size(0), count}, {weight.stride(0), weight.stride(1)}, first * weight.stride(1));
}

// A state with one leading dimension of size 1 or none.
void expect_state(const char* name, const MaybeTensor& state, const Kind& kind, const Sizes& sizes) {
  if (!state.has_value()) return;
  if (state->dim() == 3) {
    expect(name, *state, kind, {1, sizes.batch, sizes.hidden});
  } else {
    expect(name, *state, kind, {sizes.batch, sizes.hidden});
  }
}

Tensor new_state(const Sizes& sizes, const Kind& kind, int64_t dimensions) {
  return dimensions == 3 ? empty({1, sizes.batch, sizes.hidden}, kind) : empty({sizes.batch, sizes.hidden}, kind);
}

// What is added to U h_{t-1}.
struct Gates {
  Tensor gates_x;      // [T, B, 4H] or [B, 4H]
  MaybeTensor addend;  // see ForwardPass
};

// The input of a single step may have no dimension for the steps.
MaybeTensor with_steps(const MaybeTensor& input, int64_t steps) {
  if (!input.has_value() || input->dim() != 2 || steps != 1) return input;
  return view(*input, {1, input->size(0), input->size(1)}, {0, input->stride(0), input->stride(1)});
}

// Whether the context is its share of the gates itself.
bool context_is_ready(const MaybeTensor& context, const MaybeTensor& input, const MaybeTensor& weight_ih) {
  if (!weight_ih.has_value()) return true;
  return context.has_value() && input.has_value() && input->size(2) == weight_ih->size(1);
}

// gates_x and the addend, from the products of a layer. With `together`, all is in gates_x: CPUs take no addend, and backward
// takes none where it computes the gates again.
Gates input_gates(const MaybeTensor& context, const MaybeTensor& input, const MaybeTensor& weight_ih,
                  const MaybeTensor& bias_ih, const MaybeTensor& bias_hh, const Sizes& sizes, bool together,
                  const Products& by) {
  if (!weight_ih.has_value()) return {made_contiguous(context.has_value() ? *context : *input), std::nullopt};
  const int64_t outputs = 4 * sizes.hidden, features = weight_ih->size(1);
  // `bias` is [4H], or [B, 4H] if there is one step.
  const auto of_input = [&](const Tensor& weight, const MaybeTensor& bias, const MaybeTensor& other_bias) {
    const Tensor rows = matrix(made_contiguous(*input), sizes.steps * sizes.batch, input->size(2));
    const Tensor gates = by.linear(rows, weight, bias, other_bias);
    return view(gates, {sizes.steps, sizes.batch, outputs}, {sizes.batch * outputs, outputs, 1});
  };
  if (context_is_ready(context, input, weight_ih)) {
    if (sizes.steps == 1) return {of_input(*weight_ih, context, std::nullopt), std::nullopt};
    const Tensor varying = of_input(*weight_ih, std::nullopt, std::nullopt);
    return together ? Gates{add(varying, *context), std::nullopt} : Gates{varying, context};
  }
  if (!context.has_value() || !input.has_value()) {
    const MaybeTensor other = together ? bias_hh : std::nullopt, addend = together ? std::nullopt : bias_hh;
    if (context.has_value()) return {by.linear(*context, *weight_ih, bias_ih, other), addend};
    return {of_input(*weight_ih, bias_ih, other), addend};
  }
  const int64_t inputs = input->size(2);
  const Tensor for_context = columns(*weight_ih, inputs, features - inputs), for_input = columns(*weight_ih, 0, inputs);
  if (!together) {
    return {of_input(for_input, bias_hh, std::nullopt), by.linear(*context, for_context, bias_ih, std::nullopt)};
  }
  const Tensor constant = by.linear(*context, for_context, bias_ih, bias_hh);
  return {add(of_input(for_input, std::nullopt, std::nullopt), constant), std::nullopt};
}

}  // namespace

std::vector<Tensor> layer_forward(const MaybeTensor& context, const MaybeTensor& given_input, const MaybeTensor& h0,
                                  const MaybeTensor& c0, const MaybeTensor& weight_ih, const Tensor& weight_hh_,
                                  const MaybeTensor& bias_ih, const MaybeTensor& bias_hh, int64_t steps,
                                  int64_t state_dimensions, bool save_gates, bool save_cells, Launch launch) {
  STD_TORCH_CHECK(weight_hh_.dim() == 2 && weight_hh_.size(1) > 0 && weight_hh_.size(0) == 4 * weight_hh_.size(1),
                  "tagrank: weight_hh: expected shape [4H, H] with H >= 1; got ", describe_shape(weight_hh_));
  STD_TORCH_CHECK(steps > 0, "tagrank: steps: expected at least 1; got ", steps);
  const MaybeTensor input = with_steps(given_input, steps);
  const bool one_input = weight_ih.has_value() || context.has_value() != input.has_value();
  STD_TORCH_CHECK((context.has_value() || input.has_value()) && one_input,
                  "tagrank: expected a context or an input, and not both without weight_ih");
  const Kind kind = kind_of(weight_hh_);
  const int64_t hidden = weight_hh_.size(1);
  if (input.has_value()) expect("input", *input, kind, {steps, -1, weight_ih.has_value() ? -1 : 4 * hidden});
  if (weight_ih.has_value()) expect("weight_ih", *weight_ih, kind, {4 * hidden, -1});
  const bool ready = context_is_ready(context, input, weight_ih);
  if (context.has_value()) {
    expect("context", *context, kind, {input.has_value() ? input->size(1) : -1, ready ? 4 * hidden : -1});
  }
  const int64_t batch = context.has_value() ? context->size(0) : input->size(1);
  if (weight_ih.has_value()) {
    const int64_t of_context = context.has_value() && !ready ? context->size(1) : 0;
    expect("weight_ih", *weight_ih, kind, {4 * hidden, of_context + (input.has_value() ? input->size(2) : 0)});
  }
  expect("bias_ih", bias_ih, kind, {4 * hidden});
  expect("bias_hh", bias_hh, kind, {4 * hidden});
  const Sizes sizes{steps, batch, hidden};
  expect_state("h0", h0, kind, sizes);
  expect_state("c0", c0, kind, sizes);

  const Tensor weight_hh = made_contiguous(weight_hh_);
  const bool recompute = save_cells && !save_gates;
  const Gates gates = input_gates(context, input, weight_ih, bias_ih, bias_hh, sizes, kind.cpu() || recompute,
                                  Products(kind, launch));
  const Tensor output = empty({steps, batch, hidden}, kind);
  const Tensor h_n = state_dimensions == 3 ? new_state(sizes, kind, 3)
                                           : view(output, {batch, hidden}, {hidden, 1}, (steps - 1) * batch * hidden);
  const Tensor c_n = new_state(sizes, kind, state_dimensions);
  MaybeTensor saved, cells;
  if (save_gates) saved = empty({steps, batch, 4 * hidden}, kind);
  if (save_cells) cells = empty({steps, batch, hidden}, with_dtype(kind, cell_dtype(kind.dtype)));
  const ForwardPass pass{sizes,
                         /*constant=*/!input.has_value(),
                         gates.gates_x,
                         made_contiguous(gates.addend),
                         weight_hh,
                         made_contiguous(h0),
                         made_contiguous(c0),
                         output,
                         h_n,
                         c_n,
                         saved,
                         cells};
  kind.cpu() ? cpu_forward(pass, launch) : gpu_forward(pass, launch);
  std::vector<Tensor> results{output, h_n, c_n};
  if (save_cells) {
    results.push_back(recompute ? gates.gates_x : *saved);
    results.push_back(*cells);
  }
  return results;
}

std::vector<Tensor> layer_backward(const MaybeTensor& grad_output, const MaybeTensor& grad_h_n, const MaybeTensor& grad_c_n,
                                   const MaybeTensor& context, const MaybeTensor& given_input, const MaybeTensor& h0,
                                   const MaybeTensor& c0, const MaybeTensor& weight_ih, const Tensor& weight_hh_,
                                   const MaybeTensor& output, const Tensor& saved, const Tensor& cells, bool constant,
                                   bool summed, bool recompute, int64_t wanted, Launch launch) {
  STD_TORCH_CHECK(cells.dim() == 3, "tagrank: cells: expected shape [T, B, H]; got ", describe_shape(cells));
  const Kind kind = kind_of(weight_hh_);
  const Sizes sizes{cells.size(0), cells.size(1), cells.size(2)};
  const auto [steps, batch, hidden] = sizes;
  const int64_t outputs = 4 * hidden, all_rows = steps * batch;
  const MaybeTensor input = with_steps(given_input, steps);
  expect("weight_hh", weight_hh_, kind, {outputs, hidden});
  expect("cells", cells, with_dtype(kind, cell_dtype(kind.dtype)), {steps, batch, hidden});
  expect("grad_output", grad_output, kind, {steps, batch, hidden});
  expect_state("grad_h_n", grad_h_n, kind, sizes);
  expect_state("grad_c_n", grad_c_n, kind, sizes);
  expect_state("h0", h0, kind, sizes);
  expect_state("c0", c0, kind, sizes);
  if (steps > 1) {
    STD_TORCH_CHECK(output.has_value(), "tagrank: output: expected a tensor if there are several steps; got none");
    expect("output", *output, kind, {steps, batch, hidden});
  }
  if (recompute && constant) {
    expect("saved", saved, kind, {batch, 4 * hidden});
  } else {
    expect("saved", saved, kind, {steps, batch, 4 * hidden});
  }

  if (weight_ih.has_value()) {
    STD_TORCH_CHECK(constant ? context.has_value() : input.has_value(), "tagrank: ", constant ? "context" : "input",
                    ": expected a tensor beside weight_ih; got none");
    expect("input", input, kind, {steps, batch, -1});
    const bool ready = context_is_ready(context, input, weight_ih);
    expect("context", context, kind, {batch, ready ? outputs : -1});
    const int64_t of_context = context.has_value() && !ready ? context->size(1) : 0;
    expect("weight_ih", *weight_ih, kind, {outputs, of_context + (input.has_value() ? input->size(2) : 0)});
  }

  BackwardPass pass{sizes,
                    /*summed=*/kind.cpu() ? constant : summed,
                    grad_output,
                    made_contiguous(grad_h_n),
                    made_contiguous(grad_c_n),
                    constant,
                    recompute ? MaybeTensor(made_contiguous(saved)) : std::nullopt,
                    recompute ? std::nullopt : MaybeTensor(made_contiguous(saved)),
                    made_contiguous(weight_hh_),
                    made_contiguous(h0),
                    made_contiguous(c0),
                    made_contiguous(output),
                    made_contiguous(cells),
                    (wanted & kWeightHh) != 0,
                    (wanted & kH0) != 0 && h0.has_value(),
                    (wanted & kC0) != 0 && c0.has_value()};
  const Products by(kind, launch);
  const Gradients gradients = kind.cpu() ? cpu_backward(pass, launch) : gpu_backward(pass, launch);

  // The gradients of the gates over all rows that the input has, and their sum over time, which is the context's.
  MaybeTensor rows, sums = gradients.gates_sum;
  if (!constant) rows = matrix(*gradients.gates, all_rows, outputs);
  if (!sums.has_value() && steps == 1) sums = rows;
  if (!sums.has_value() && summed) sums = sum_of_rows(*gradients.gates);
  const int64_t inputs = !constant && weight_ih.has_value() && input.has_value() ? input->size(2) : 0;
  std::vector<Tensor> results;
  if (wanted & kContext) {
    const bool ready = context_is_ready(context, input, weight_ih);
    results.push_back(ready ? *sums : by.product(*sums, columns(*weight_ih, inputs, weight_ih->size(1) - inputs)));
  }
  if (wanted & kInput) {
    const bool as_matrix = given_input.has_value() && given_input->dim() == 2;
    const auto gradient = [&] {
      const Tensor of_rows = by.product(*rows, columns(*weight_ih, 0, inputs));
      return as_matrix ? of_rows : view(of_rows, {steps, batch, inputs}, {batch * inputs, inputs, 1});
    };
    results.push_back(weight_ih.has_value() ? gradient() : *gradients.gates);
  }
  if (wanted & kWeightIh) {
    const bool both = inputs > 0 && weight_ih->size(1) > inputs;
    const auto of_input = [&] { return by.product_over_rows(*rows, matrix(made_contiguous(*input), all_rows, inputs)); };
    if (!both) {
      results.push_back(inputs > 0 ? of_input() : by.product_over_rows(*sums, *context));
    } else {
      const Tensor gradient = empty({outputs, weight_ih->size(1)}, kind);
      by.over_rows_into(columns(gradient, 0, inputs), *rows, matrix(made_contiguous(*input), all_rows, inputs));
      by.over_rows_into(columns(gradient, inputs, context->size(1)), *sums, *context);
      results.push_back(gradient);
    }
  }
  if (wanted & kWeightHh) results.push_back(*gradients.weight_hh);
  if (wanted & kBias) results.push_back(sum_of_rows(sums.has_value() ? *sums : *rows));
  const auto like = [](const Tensor& gradient, const Tensor& state) {
    return state.dim() == 2 ? gradient
                            : view(gradient, {1, gradient.size(0), gradient.size(1)},
                                   {gradient.numel(), gradient.size(1), 1});
  };
  if (pass.h0_wanted) results.push_back(like(*gradients.h0, *h0));
  if (pass.c0_wanted) results.push_back(like(*gradients.c0, *c0));
  return results;
}

}  // namespace tagrank
