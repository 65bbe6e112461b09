//! A binary that uses this crate must keep libtorch's CUDA library among the libraries it needs
//! (DT_NEEDED): a linker that drops it leaves a worker that silently sees no GPU.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::path::Path;

/// Little-endian integer of `N` bytes at an offset of an ELF64 file.
fn read<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + N].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// The DT_NEEDED entries of an ELF64 file, by its section headers: the dynamic section (type 6)
/// holds pairs (tag, value), tag 1 is DT_NEEDED and its value an offset into the linked strings.
fn needed(file: &Path) -> Vec<String> {
    let bytes = std::fs::read(file).unwrap();
    assert_eq!(&bytes[..5], b"\x7fELF\x02");
    let (table, size, count) = (read::<8>(&bytes, 40), read::<2>(&bytes, 58), read::<2>(&bytes, 60));
    let header = |index: u64| (table + index * size) as usize;
    let dynamic = (0..count).map(header).find(|at| read::<4>(&bytes, at + 4) == 6).unwrap();
    let strings = read::<8>(&bytes, header(read::<4>(&bytes, dynamic + 40)) + 24) as usize;
    let (start, length) =
        (read::<8>(&bytes, dynamic + 24) as usize, read::<8>(&bytes, dynamic + 32) as usize);
    bytes[start..start + length]
        .chunks_exact(16)
        .filter(|entry| read::<8>(entry, 0) == 1)
        .map(|entry| {
            let name = &bytes[strings + read::<8>(entry, 8) as usize..];
            let end = name.iter().position(|byte| *byte == 0).unwrap();
            String::from_utf8(name[..end].to_vec()).unwrap()
        })
        .collect()
}

#[test]
fn the_cuda_libraries_are_kept() {
    // Any call of the shim will do; this one exists in every build.
    assert!(g2rl_ffi::cuda::device_count() < 1024);
    let needed = needed(&std::env::current_exe().unwrap());
    assert!(needed.iter().any(|name| name == "libtorch_cpu.so"), "{needed:?}");
    if g2rl_ffi::CUDA_BUILD {
        for library in ["libtorch_cuda.so", "libc10_cuda.so"] {
            assert!(needed.iter().any(|name| name == library), "{library} is not in {needed:?}");
        }
    }
}
