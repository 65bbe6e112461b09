#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    // Whether it was accepted is of no interest here.
    let _ = g2rl_tests::fuzz::journal_file(data);
});
