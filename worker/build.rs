//! Lets the worker's binary and tests find libtorch, and keeps its CUDA libraries.
//!
//! In: what the shim's build script exports. Without the folder as rpath a binary starts only with
//! `LD_LIBRARY_PATH` set; without naming the CUDA library here the linker may drop it (as-needed),
//! and the worker would silently see no GPU.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let Ok(lib) = std::env::var("DEP_G2RL_SHIM_TORCH_LIB") else {
        println!("cargo:warning=the libtorch folder is unknown; set LD_LIBRARY_PATH to start the worker");
        return;
    };
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    if std::env::var("DEP_G2RL_SHIM_CUDA").is_ok_and(|cuda| cuda == "1") {
        println!("cargo:rustc-link-arg=-L{lib}");
        for argument in ["--push-state,--no-as-needed", "-ltorch_cuda", "--pop-state"] {
            println!("cargo:rustc-link-arg=-Wl,{argument}");
        }
    }
}
