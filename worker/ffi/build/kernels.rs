//! Compiles the GPU's kernels (csrc/gpu) to PTX with NVRTC, which needs no GPU: an error in a kernel ends the build.
//!
//! NVRTC is the library beside torch's wheel (`nvidia/cu13/lib`) or in a toolkit's `lib64` (`CUDA_HOME`).

use std::error::Error;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fs;
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// Name, source, definitions. The GPU compiles the PTX for itself when a module is loaded.
const MODULES: [(&str, &str, &[&str]); 5] = [
    ("attention_64", "attention.cu", &["-DHEAD_DIM=64"]),
    ("attention_128", "attention.cu", &["-DHEAD_DIM=128"]),
    ("head", "head.cu", &[]),
    ("rows", "rows.cu", &[]),
    ("sampling", "sampling.cu", &[]),
];

/// The oldest GPUs that the kernels run on: bf16 needs 8.0.
const ARCHITECTURE: &str = "--gpu-architecture=compute_80";

/// Writes `<name>.ptx`, each ending in a zero byte, into `out`. `Ok(false)` if there is no NVRTC.
pub(crate) fn compile(folders: &[PathBuf], out: &Path) -> Result<bool, Box<dyn Error>> {
    let Some(nvrtc) = folders.iter().find_map(|include| Nvrtc::open(include)) else { return Ok(false) };
    for (name, source, definitions) in MODULES {
        let ptx = nvrtc.compile(&Path::new("csrc/gpu").join(source), folders, definitions)?;
        fs::write(out.join(name).with_extension("ptx"), ptx)?;
    }
    Ok(true)
}

struct Nvrtc {
    library: Library,
    /// Found by name once it is loaded.
    _builtins: Option<Library>,
}

type Program = *mut c_void;
type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Text = unsafe extern "C" fn(Program, *mut c_char) -> c_int;

impl Nvrtc {
    /// The library that belongs to a folder of headers.
    fn open(include: &Path) -> Option<Self> {
        let root = include.parent()?;
        let libraries =
            || ["lib", "lib64"].into_iter().filter_map(|name| fs::read_dir(root.join(name)).ok()).flatten();
        let named = |start: &str| {
            let name =
                |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(start));
            libraries().filter_map(Result::ok).map(|entry| entry.path()).filter(|path| name(path)).min()
        };
        // SAFETY: NVIDIA's libraries run no code of their own when they are loaded.
        let load = |path: &Path| unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.ok();
        let builtins = named("libnvrtc-builtins.so").and_then(|path| load(&path));
        let library = load(&named("libnvrtc.so")?)?;
        Some(Self { library, _builtins: builtins })
    }

    fn compile(
        &self,
        source: &Path,
        folders: &[PathBuf],
        definitions: &[&str],
    ) -> Result<Vec<u8>, Box<dyn Error>> {
        let text = CString::new(fs::read(source)?)?;
        let name = CString::new(source.to_string_lossy().as_bytes())?;
        let options = [ARCHITECTURE, "--std=c++17", "-default-device", "-Icsrc/gpu"]
            .into_iter()
            .chain(definitions.iter().copied())
            .map(str::to_owned)
            .chain(folders.iter().map(|folder| format!("-I{}", folder.display())))
            .map(CString::new)
            .collect::<Result<Vec<_>, _>>()?;
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        type Create = unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> c_int;
        type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
        // SAFETY: the symbols have these types by nvrtc.h, the pointers live for the calls, and the buffers are as large
        // as the library says.
        unsafe {
            let mut program = std::ptr::null_mut();
            let create = self.library.get::<Create>(b"nvrtcCreateProgram\0")?;
            let none = std::ptr::null();
            if create(&mut program, text.as_ptr(), name.as_ptr(), 0, none, none) != 0 {
                return Err("NVRTC makes no program".into());
            }
            let compile = self.library.get::<Compile>(b"nvrtcCompileProgram\0")?;
            let failed = compile(program, pointers.len() as c_int, pointers.as_ptr()) != 0;
            let read = |size: &[u8], text: &[u8]| -> Result<Vec<u8>, libloading::Error> {
                let mut bytes = 0;
                self.library.get::<Size>(size)?(program, &mut bytes);
                let mut buffer = vec![0u8; bytes.max(1)];
                self.library.get::<Text>(text)?(program, buffer.as_mut_ptr().cast());
                Ok(buffer)
            };
            if failed {
                let log = read(b"nvrtcGetProgramLogSize\0", b"nvrtcGetProgramLog\0")?;
                return Err(CStr::from_bytes_until_nul(&log)?.to_string_lossy().into());
            }
            Ok(read(b"nvrtcGetPTXSize\0", b"nvrtcGetPTX\0")?)
        }
    }
}
