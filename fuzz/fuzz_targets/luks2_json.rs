//! libFuzzer's way into [`hostveil_fuzz::luks2_json`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hostveil_fuzz::luks2_json(data));
