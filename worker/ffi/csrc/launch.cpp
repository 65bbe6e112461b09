// Kernels of the project's own: modules of PTX, loaded by the driver, launched on libtorch's current stream. Without CUDA
// every call says so.
#include "status.h"

#include <cstdint>
#include <string>

using g2rl::Failure;
using g2rl::guarded;

#ifdef G2RL_CUDA

// The driver's library comes with the driver: it is opened when the first kernel is loaded, so that the binary starts
// where there is none.
#include <c10/core/DeviceGuard.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda.h>
#include <dlfcn.h>

namespace {

class Driver {
 public:
  static const Driver& get() {
    static const Driver driver;
    return driver;
  }

  void check(CUresult result, const char* what) const {
    if (result != CUDA_SUCCESS) {
      const char* text = nullptr;
      error_string(result, &text);
      throw Failure(G2RL_FAILED, std::string(what) + ": " + (text == nullptr ? "unknown error" : text));
    }
  }

  // The context that libtorch uses, as the thread's.
  void enter(int device) const {
    CUcontext context = nullptr;
    check(current(&context), "cuCtxGetCurrent");
    if (context == nullptr) {
      check(retain(&context, device), "cuDevicePrimaryCtxRetain");
      check(set_current(context), "cuCtxSetCurrent");
    }
  }

  decltype(&cuGetErrorString) error_string;
  decltype(&cuCtxGetCurrent) current;
  decltype(&cuCtxSetCurrent) set_current;
  decltype(&cuDevicePrimaryCtxRetain) retain;
  decltype(&cuModuleLoadData) load;
  decltype(&cuModuleGetFunction) function;
  decltype(&cuLaunchKernel) launch;

 private:
  Driver() {
    library_ = dlopen("libcuda.so.1", RTLD_NOW);
    if (library_ == nullptr) {
      throw Failure(G2RL_NO_CUDA, "there is no libcuda.so.1");
    }
    find(error_string, "cuGetErrorString");
    find(current, "cuCtxGetCurrent");
    find(set_current, "cuCtxSetCurrent");
    find(retain, "cuDevicePrimaryCtxRetain");
    find(load, "cuModuleLoadData");
    find(function, "cuModuleGetFunction");
    find(launch, "cuLaunchKernel");
  }

  template <class Function>
  void find(Function& function, const char* name) {
    function = reinterpret_cast<Function>(dlsym(library_, name));
    if (function == nullptr) {
      throw Failure(G2RL_NO_CUDA, std::string("libcuda.so.1 has no ") + name);
    }
  }

  void* library_;
};

} // namespace

// Loads PTX that ends in a zero byte. A module lives as long as the process.
extern "C" G2rlStatus g2rl_gpu_module(int32_t device, const char* ptx, void** out) {
  return guarded([&] {
    if (device < 0 || device >= c10::cuda::device_count()) {
      throw Failure(G2RL_NO_CUDA, "there is no GPU " + std::to_string(device));
    }
    c10::DeviceGuard guard(c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device)));
    const Driver& driver = Driver::get();
    driver.enter(device);
    CUmodule module = nullptr;
    driver.check(driver.load(&module, ptx), "cuModuleLoadData");
    *out = module;
  });
}

extern "C" G2rlStatus g2rl_gpu_function(void* module, const char* name, void** out) {
  return guarded([&] {
    CUfunction function = nullptr;
    const Driver& driver = Driver::get();
    driver.check(driver.function(&function, static_cast<CUmodule>(module), name), name);
    *out = function;
  });
}

extern "C" G2rlStatus g2rl_gpu_launch(
    int32_t device,
    void* function,
    const uint32_t* grid,
    uint32_t block,
    uint32_t shared_bytes,
    void** arguments) {
  return guarded([&] {
    const auto index = static_cast<c10::DeviceIndex>(device);
    c10::DeviceGuard guard(c10::Device(c10::DeviceType::CUDA, index));
    const Driver& driver = Driver::get();
    driver.enter(device);
    const auto stream = c10::cuda::getCurrentCUDAStream(index).stream();
    driver.check(
        driver.launch(
            static_cast<CUfunction>(function), grid[0], grid[1], grid[2], block, 1, 1, shared_bytes, stream, arguments, nullptr),
        "cuLaunchKernel");
  });
}

#else

extern "C" {
static G2rlStatus no_cuda() {
  return guarded([] { throw Failure(G2RL_NO_CUDA, "built without CUDA"); });
}
G2rlStatus g2rl_gpu_module(int32_t, const char*, void**) { return no_cuda(); }
G2rlStatus g2rl_gpu_function(void*, const char*, void**) { return no_cuda(); }
G2rlStatus g2rl_gpu_launch(int32_t, void*, const uint32_t*, uint32_t, uint32_t, void**) { return no_cuda(); }
}

#endif
