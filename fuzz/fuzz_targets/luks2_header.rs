//! libFuzzer's way into [`hostveil_fuzz::luks2_header`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hostveil_fuzz::luks2_header(data));
