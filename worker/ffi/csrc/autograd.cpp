// Autograd calls that take output gradients, preset gradients, and inference mode.
#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/autograd/autograd.h>

#include "status.h"
#include "tensors.h"

using g2rl::guarded;
using g2rl::TensorSlice;

// Writes one new tensor for each input into `gradients`, or null where an input is unused.
extern "C" G2rlStatus g2rl_autograd_grad(
    TensorSlice outputs, TensorSlice grad_outputs, TensorSlice inputs, at::Tensor** gradients) {
  return guarded([&] {
    auto found = torch::autograd::grad(
        outputs.vec(), inputs.vec(), grad_outputs.vec(),
        /*retain_graph=*/false, /*create_graph=*/false, /*allow_unused=*/true);
    for (size_t i = 0; i < found.size(); ++i) {
      gradients[i] = found[i].defined() ? new at::Tensor(std::move(found[i])) : nullptr;
    }
  });
}

extern "C" G2rlStatus g2rl_autograd_backward(TensorSlice outputs, TensorSlice grad_outputs) {
  return guarded([&] { torch::autograd::backward(outputs.vec(), grad_outputs.vec()); });
}

extern "C" G2rlStatus g2rl_set_grad(at::Tensor* parameter, at::Tensor* gradient) {
  return guarded([&] {
    TORCH_CHECK(parameter->is_leaf(), "only a leaf has a gradient to set");
    TORCH_CHECK(
        parameter->sizes() == gradient->sizes() && parameter->scalar_type() == gradient->scalar_type() &&
            parameter->device() == gradient->device(),
        "the gradient must have the parameter's shape, kind and device");
    parameter->mutable_grad() = gradient->detach();
  });
}

extern "C" G2rlStatus g2rl_inference_mode_enter(c10::InferenceMode** guard) {
  return guarded([&] { *guard = new c10::InferenceMode(true); });
}

extern "C" void g2rl_inference_mode_leave(c10::InferenceMode* guard) {
  delete guard;
}
