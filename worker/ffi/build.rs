//! Compiles the C++ shim against the libtorch that torch-sys found.
//!
//! In: `DEP_TCH_LIBTORCH_LIB` (torch-sys), `LIBTORCH_INCLUDE` and `CUDA_HOME` if set. Out: the
//! static library `g2rl_shim`, the cfg `g2rl_cuda` where CUDA is compiled in and `g2rl_kernels` where the GPU's own kernels
//! are, and for the build scripts of dependants `DEP_G2RL_SHIM_TORCH_LIB` (folder to embed as rpath) and
//! `DEP_G2RL_SHIM_CUDA` (`1` or `0`).

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};

#[path = "build/kernels.rs"]
mod kernels;

/// Translation units of the shim. Those that touch CUDA compile to a refusal without it.
const SOURCES: [&str; 17] = [
    "status.cpp",
    "process_group.cpp",
    "process_group_abort.cpp",
    "autograd.cpp",
    "optimizer.cpp",
    "attention.cpp",
    "packed.cpp",
    "packed_tiles.cpp",
    "decoder.cpp",
    "layer.cpp",
    "packed_attention.cpp",
    "head.cpp",
    "features.cpp",
    "sampling.cpp",
    "flash.cpp",
    "cuda.cpp",
    "launch.cpp",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=csrc");
    println!("cargo:rerun-if-changed=build");
    println!("cargo:rustc-check-cfg=cfg(g2rl_cuda, g2rl_kernels)");
    for name in ["LIBTORCH_INCLUDE", "LIBTORCH_CXX11_ABI", "CUDA_HOME"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let lib = PathBuf::from(
        env::var("DEP_TCH_LIBTORCH_LIB").map_err(|_| "torch-sys did not name libtorch's folder")?,
    );
    let root = env::var("LIBTORCH_INCLUDE")
        .map(PathBuf::from)
        .ok()
        .or_else(|| lib.parent().map(Path::to_owned))
        .ok_or("libtorch's folder has no parent")?;
    let include = root.join("include");
    let cuda = cuda_includes(&lib, &root);

    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .opt_level(3)
        .include("csrc")
        // After the real headers: a libtorch that brings gloo's own wins.
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .include("csrc/gloo_stubs")
        .define("_GLIBCXX_USE_CXX11_ABI", env::var("LIBTORCH_CXX11_ABI").unwrap_or("1".into()).as_str())
        .define("USE_C10D_GLOO", None)
        .define("USE_DISTRIBUTED", None)
        .flag("-fopenmp")
        .flag("-fno-math-errno")
        .flag("-fno-trapping-math")
        .flag("-Wno-psabi")
        // A guess at a virtual call's target would inline the CUDA allocator's functions, and with
        // them calls of a CUDA runtime that this library does not link.
        .flag_if_supported("-fno-devirtualize-speculatively")
        .warnings(false)
        .files(SOURCES.iter().map(|name| Path::new("csrc").join(name)));
    if let Some(folders) = &cuda {
        build.define("G2RL_CUDA", None).define("USE_C10D_NCCL", None).includes(folders);
        println!("cargo:rustc-cfg=g2rl_cuda");
        if kernels::compile(folders, &PathBuf::from(env::var("OUT_DIR")?))? {
            println!("cargo:rustc-cfg=g2rl_kernels");
        } else {
            println!(
                "cargo:warning=there is no NVRTC, so GPUs work with libtorch's kernels only, which is slower"
            );
        }
    }
    build.compile("g2rl_shim");

    println!("cargo:rustc-link-search=native={}", lib.display());
    for name in ["torch_cpu", "torch", "c10"] {
        println!("cargo:rustc-link-lib={name}");
    }
    if cuda.is_some() {
        println!("cargo:rustc-link-lib=torch_cuda");
        println!("cargo:rustc-link-lib=c10_cuda");
    }
    println!("cargo:rustc-link-lib=gomp");
    // The same OpenMP runtime that libtorch uses: both name libgomp.so.1.
    println!("cargo:rustc-link-lib=gomp");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    println!("cargo:torch_lib={}", lib.display());
    println!("cargo:cuda={}", u8::from(cuda.is_some()));
    Ok(())
}

/// Header folders for the CUDA parts, if libtorch has them and all headers are there: those of the
/// wheels beside torch (`nvidia/cu13`, `nvidia/nccl`), or of a toolkit in `CUDA_HOME`.
fn cuda_includes(lib: &Path, root: &Path) -> Option<Vec<PathBuf>> {
    if !lib.join("libtorch_cuda.so").exists() || !lib.join("libc10_cuda.so").exists() {
        return None;
    }
    let mut folders = Vec::new();
    if let Some(packages) = root.parent() {
        let cuda = packages.join("nvidia/cu13/include");
        folders.extend([cuda.join("cccl"), cuda, packages.join("nvidia/nccl/include")]);
    }
    if let Ok(home) = env::var("CUDA_HOME") {
        let toolkit = Path::new(&home).join("include");
        folders.extend([toolkit.join("cccl"), toolkit]);
    }
    folders.retain(|folder| folder.is_dir());
    let found = |header: &str| folders.iter().any(|folder| folder.join(header).is_file());
    let missing: Vec<&str> = ["cuda_runtime_api.h", "crt/host_defines.h", "nv/target", "nccl.h"]
        .into_iter()
        .filter(|header| !found(header))
        .collect();
    if missing.is_empty() {
        return Some(folders);
    }
    println!(
        "cargo:warning=libtorch has CUDA, but these headers are missing, so GPUs are not supported by this build: {}",
        missing.join(", ")
    );
    None
}
