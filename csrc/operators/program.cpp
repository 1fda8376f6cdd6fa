#include "program.h"

#include "layer.h"

namespace tagrank {

std::tuple<Tensor, Tensor, Tensor, Tensor> lstm_forward(const Tensor& gates_x, const Tensor& weight_hh, const MaybeTensor& h0,
                                                        const MaybeTensor& c0, int64_t steps, std::string backend,
                                                        bool save_gates, bool save_cells) {
  const Kind kind = kind_of(gates_x);
  STD_TORCH_CHECK(kind.cpu(), "tagrank: without its Python package the library runs programs on CPUs only; this one, for the ",
                  "backend ", backend, ", has tensors on another device: import tagrank");
  const bool constant = gates_x.dim() == 2;
  const MaybeTensor context = constant ? MaybeTensor(gates_x) : std::nullopt;
  const MaybeTensor input = constant ? std::nullopt : MaybeTensor(gates_x);
  // The launch: torch's threads run at the same time, as OpenMP's do, with which torch is built for Linux.
  const auto results = layer_forward(context, input, h0, c0, std::nullopt, weight_hh, std::nullopt, std::nullopt,
                                     constant ? steps : gates_x.size(0), /*state_dimensions=*/2, save_gates,
                                     save_gates || save_cells, {1});
  const Tensor gates = save_gates ? results[3] : empty({0}, kind);
  const Tensor cells = save_cells ? results[4] : empty({0}, with_dtype(kind, cell_dtype(kind.dtype)));
  return {results[0], results[2], gates, cells};
}

}  // namespace tagrank
