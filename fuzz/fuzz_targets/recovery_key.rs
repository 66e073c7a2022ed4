//! libFuzzer's way into [`hostveil_fuzz::recovery_key`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hostveil_fuzz::recovery_key(data));
